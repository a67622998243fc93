"""The site's TLS key and certificate on disk, which change together or not at all.

Two names cannot be renamed at once. So the new key waits beside the old one (`.next`), the new
certificate beside it is the decision, and whoever starts next finishes what was decided:

    key.next            asked for, nothing decided: the old pair holds, the key is used again
    key.next, pem.next  decided: `settle` renames both
    pem.next            decided, and the key is in its place: `settle` renames the certificate
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedward_client.adapters.key_files import (
    certificate_request,
    read_tls_key,
    sealed,
)
from fedward_common.errors import ConfigError
from fedward_common.trust.certificates import Identity, expires_at, new_request
from fedward_common.trust.chains import request_key_sha256, spki_sha256
from fedward_common.trust.private_files import write_atomically, write_private

MAX_PEM_BYTES: Final = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class TlsPair:
    """Where the pair lies; only one process may renew it."""

    certificate: Path
    key: Path
    passphrase: bytes | None = field(default=None, repr=False)

    @property
    def next_certificate(self) -> Path:
        """Where a new certificate waits for its key."""
        return self.certificate.with_name(self.certificate.name + ".next")

    @property
    def next_key(self) -> Path:
        """Where a new key waits for its certificate."""
        return self.key.with_name(self.key.name + ".next")

    def identity(self) -> Identity:
        """The present pair, the key opened.

        Raises:
            ConfigError: a file is missing, open to others, or not what it should be.
        """
        chain = _read(self.certificate)
        expires_at(chain)
        return Identity(
            certificate_pem=chain, key_pem=read_tls_key(self.key, passphrase=self.passphrase)
        )

    def settle(self) -> None:
        """Finishes a switch that was cut short. Safe at any time, and when there is none.

        Raises:
            ConfigError: a waiting file is damaged or open to others.
        """
        if not self.next_certificate.exists():
            return
        chain = _read(self.next_certificate)
        if self.next_key.exists() and self._fits(self.next_key, chain):
            self.next_key.replace(self.key)
        if self._fits(self.key, chain):
            self.next_certificate.replace(self.certificate)
        else:
            self.next_certificate.unlink()
        _sync(self.key.parent)
        _sync(self.certificate.parent)

    def prepare(self, common_name: str) -> bytes:
        """A request (PEM) for the next key, which is made and on disk before this returns.

        A next key from an attempt that came to nothing is used again: the coordinator may have
        signed it already.
        """
        if not self.next_key.exists():
            fresh = new_request(common_name)
            write_private(self.next_key, sealed(fresh.key_pem, self.passphrase))
        key_pem = read_tls_key(self.next_key, passphrase=self.passphrase)
        return certificate_request(key_pem, common_name=common_name)

    def switch(self, chain_pem: bytes) -> None:
        """Puts the next key and its certificate into the place of the present pair, durably.

        Raises:
            ConfigError: the certificate is not the next key's; nothing is changed then.
        """
        if not self._fits(self.next_key, chain_pem):
            raise ConfigError("certificate: expected one for the next key, found another's")
        write_atomically(self.next_certificate, chain_pem)
        self.settle()

    def _fits(self, key: Path, chain_pem: bytes) -> bool:
        if not key.exists():
            return False
        key_pem = read_tls_key(key, passphrase=self.passphrase)
        request = certificate_request(key_pem, common_name="compare")
        return request_key_sha256(request) == spki_sha256(chain_pem)


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteIdentity:
    """The pair and the federation's root, as the channel reads them (implements IdentitySource)."""

    pair: TlsPair
    ca: Path

    def read(self) -> tuple[Identity, bytes]:
        """The identity and the root in PEM. Raises ConfigError as `TlsPair.identity`."""
        root = _read(self.ca)
        expires_at(root)
        return self.pair.identity(), root


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_PEM_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: expected a readable file, found {error.strerror}") from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
