"""The federation's certificate authority on disk: an offline root, an issuing authority.

The root's key is one encrypted file (PKCS 12, AES-256, 600,000 rounds of PBKDF2). It is needed to
make the next issuing authority, every two years, and for nothing else: it belongs on a medium in a
safe, and nothing here needs it to be there. The issuing key may be encrypted as well.
"""

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    pkcs12,
)

from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId
from fedward_common.trust.certificates import (
    Identity,
    issue_server,
    issue_site,
    make_issuing,
    make_root,
)
from fedward_common.trust.private_files import read_credential, write_atomically, write_private
from fedward_server.adapters.secret_files import read_passphrase
from fedward_server.settings import CoordinatorSettings

ROOT, ROOT_KEY = "root.pem", "root.p12"
ISSUING, ISSUING_KEY = "issuing.pem", "issuing.key"
ROOT_ROUNDS: Final = 600_000


class CertificateAuthority:
    """Signs the certificates of one federation: one per process, from the process's own request."""

    def __init__(self, *, federation: str, root_pem: bytes, issuing: Identity) -> None:
        self._federation = federation
        self._issuing = issuing
        self._root_pem = root_pem

    @property
    def root_pem(self) -> bytes:
        """The federation's root certificate."""
        return self._root_pem

    @property
    def issuing_pem(self) -> bytes:
        """The issuing authority's certificate."""
        return self._issuing.certificate_pem

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        federation: str,
        now: datetime,
        root_file: Path,
        root_passphrase: bytes,
        issuing_passphrase: bytes | None = None,
    ) -> Self:
        """A new authority in `folder`; its root's key goes into `root_file`, encrypted, 0600.

        Raises:
            ConfigError: there is one already, or the federation's name is not a domain name.
        """
        for path in (folder / ROOT, folder / ISSUING_KEY, root_file):
            if os.path.lexists(path):
                raise ConfigError(f"{path}: expected no certificate authority, found one")
        for made in (folder, root_file.parent):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
        root = make_root(federation, now=now)
        issuing = make_issuing(root, federation=federation, now=now)
        write_private(root_file, _sealed_root(root, root_passphrase))
        write_private(folder / ISSUING_KEY, _sealed_key(issuing.key_pem, issuing_passphrase))
        write_atomically(folder / ISSUING, issuing.certificate_pem)
        # Last, because it is what says that an authority is there.
        write_atomically(folder / ROOT, root.certificate_pem)
        return cls(federation=federation, root_pem=root.certificate_pem, issuing=issuing)

    @classmethod
    def open(cls, folder: Path, *, federation: str, passphrase: bytes | None = None) -> Self:
        """The authority in `folder`; the root's key need not be there.

        Raises:
            ConfigError: there is none, its issuing key is open to others, or the passphrase is
                another.
        """
        for name in (ROOT, ISSUING, ISSUING_KEY):
            if not (folder / name).exists():
                raise ConfigError(
                    f"{folder}: expected a certificate authority, found no {name}. "
                    "Make one with `fedward-server init`"
                )
        key = read_credential(folder / ISSUING_KEY, what="issuing key")
        issuing = Identity(
            certificate_pem=(folder / ISSUING).read_bytes(),
            key_pem=_opened_key(key, passphrase, path=folder / ISSUING_KEY),
        )
        root_pem = (folder / ROOT).read_bytes()
        return cls(federation=federation, root_pem=root_pem, issuing=issuing)

    @classmethod
    def renew_issuing(
        cls,
        folder: Path,
        *,
        federation: str,
        now: datetime,
        root_file: Path,
        root_passphrase: bytes,
        issuing_passphrase: bytes | None = None,
    ) -> Self:
        """A further issuing authority under the same root; certificates of the former stay good.

        Raises:
            ConfigError: `root_file` is not this federation's root, or the passphrase is another.
        """
        root = _opened_root(read_credential(root_file, what="root key"), root_passphrase)
        if not (folder / ROOT).exists() or (folder / ROOT).read_bytes() != root.certificate_pem:
            raise ConfigError(f"{root_file}: expected the key of {folder / ROOT}, found another's")
        issuing = make_issuing(root, federation=federation, now=now)
        write_private(folder / ISSUING_KEY, _sealed_key(issuing.key_pem, issuing_passphrase))
        write_atomically(folder / ISSUING, issuing.certificate_pem)
        return cls(federation=federation, root_pem=root.certificate_pem, issuing=issuing)

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


def open_authority(
    settings: CoordinatorSettings, *, passphrase_file: Path | None = None
) -> CertificateAuthority | None:
    """The authority of this coordinator, or None where it is not on this machine.

    `passphrase_file` is read instead of the one that the settings name.

    Raises:
        ConfigError: it is there and cannot be opened.
    """
    if not (settings.authority_folder / ISSUING_KEY).exists():
        return None
    secret = passphrase_file or settings.authority.passphrase_file
    return CertificateAuthority.open(
        settings.authority_folder,
        federation=settings.federation,
        passphrase=None if secret is None else read_passphrase(secret),
    )


def server_hosts(certificate_pem: bytes) -> list[str]:
    """The DNS names and addresses in a server's certificate.

    Raises:
        ConfigError: it is no certificate, or names none.
    """
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise ConfigError("server certificate: expected one with host names") from error
    dns = names.get_values_for_type(x509.DNSName)
    return [*dns, *(str(address) for address in names.get_values_for_type(x509.IPAddress))]


def _sealed_key(key_pem: bytes, passphrase: bytes | None) -> bytes:
    if passphrase is None:
        return key_pem
    key = load_pem_private_key(key_pem, password=None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase))


def _opened_key(data: bytes, passphrase: bytes | None, *, path: Path) -> bytes:
    if b"ENCRYPTED" not in data[:64]:
        return data
    if passphrase is None:
        raise ConfigError(
            f"{path}: expected a passphrase for this encrypted key, found none. "
            "Set authority.passphrase_file in coordinator.toml"
        )
    try:
        key = load_pem_private_key(data, password=passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: expected another passphrase for this key") from error
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _sealed_root(root: Identity, passphrase: bytes) -> bytes:
    key = load_pem_private_key(root.key_pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("root key: expected an EC key, found a key of another kind")
    encryption = (
        PrivateFormat.PKCS12.encryption_builder()
        .kdf_rounds(ROOT_ROUNDS)
        .key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC)
        .hmac_hash(hashes.SHA256())
        .build(passphrase)
    )
    certificate = x509.load_pem_x509_certificate(root.certificate_pem)
    return pkcs12.serialize_key_and_certificates(b"root", key, certificate, None, encryption)


def _opened_root(data: bytes, passphrase: bytes) -> Identity:
    try:
        key, certificate, _ = pkcs12.load_key_and_certificates(data, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError("root key: expected a PKCS 12 file and its passphrase") from error
    if key is None or certificate is None:
        raise ConfigError("root key: expected a key and its certificate, found one of them only")
    return Identity(
        certificate_pem=certificate.public_bytes(Encoding.PEM),
        key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
