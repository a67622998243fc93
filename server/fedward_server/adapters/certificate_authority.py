"""The federation's certificate authority on disk: a root, an issuing authority, what they sign.

`root.key` is needed to renew the issuing authority, every two years, and for nothing else: after
the first start it belongs on a medium in a safe. Nothing here needs it to be there.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Self

from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId
from fedward_common.trust.certificates import (
    Identity,
    issue_server,
    issue_site,
    make_issuing,
    make_root,
)
from fedward_common.trust.private_files import write_atomically, write_private

ROOT, ROOT_KEY = "root.pem", "root.key"
ISSUING, ISSUING_KEY = "issuing.pem", "issuing.key"


class CertificateAuthority:
    """Signs the certificates of one federation: one per process, from the process's own request."""

    def __init__(self, *, federation: str, root_pem: bytes, issuing: Identity) -> None:
        self._federation = federation
        self._issuing = issuing
        self.root_pem = root_pem

    @classmethod
    def create(cls, folder: Path, *, federation: str, now: datetime) -> Self:
        """A new authority in `folder`; its keys are 0600.

        Raises:
            ConfigError: there is one already, or the federation's name is not a domain name.
        """
        if (folder / ROOT).exists():
            raise ConfigError(f"{folder}: expected no certificate authority, found one")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        root = make_root(federation, now=now)
        issuing = make_issuing(root, federation=federation, now=now)
        write_private(folder / ROOT_KEY, root.key_pem)
        write_private(folder / ISSUING_KEY, issuing.key_pem)
        write_atomically(folder / ISSUING, issuing.certificate_pem)
        # Last, because it is what says that an authority is there.
        write_atomically(folder / ROOT, root.certificate_pem)
        return cls(federation=federation, root_pem=root.certificate_pem, issuing=issuing)

    @classmethod
    def open(cls, folder: Path, *, federation: str) -> Self:
        """The authority in `folder`; the root's key need not be there.

        Raises:
            ConfigError: there is none, or its issuing key is open to others.
        """
        try:
            if (folder / ISSUING_KEY).stat().st_mode & 0o077:
                raise ConfigError(
                    f"{folder / ISSUING_KEY}: expected mode 0600, found it open to others"
                )
            issuing = Identity(
                certificate_pem=(folder / ISSUING).read_bytes(),
                key_pem=(folder / ISSUING_KEY).read_bytes(),
            )
            root_pem = (folder / ROOT).read_bytes()
        except FileNotFoundError as error:
            raise ConfigError(
                f"{folder}: expected a certificate authority, found no {Path(error.filename).name}"
            ) from error
        return cls(federation=federation, root_pem=root_pem, issuing=issuing)

    def issue_site(self, request_pem: bytes, *, site: SiteId, now: datetime) -> bytes:
        """The certificate chain of a site, 90 days: the URI spiffe://<federation>/site/<id>.

        Raises:
            SignatureRefused: the request is not signed by its own P-256 key.
        """
        return issue_site(
            self._issuing, request_pem, federation=self._federation, site=site, now=now
        )

    def issue_server(self, request_pem: bytes, *, hosts: Sequence[str], now: datetime) -> bytes:
        """The certificate chain of the edge, 90 days, for `hosts` (DNS names or IP addresses).

        Raises:
            ConfigError: `hosts` is empty.
            SignatureRefused: the request is not signed by its own P-256 key.
        """
        return issue_server(self._issuing, request_pem, hosts=hosts, now=now)
