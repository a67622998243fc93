"""Certificates and keys as the rest of Fedward meets them: a peer's, a process's own, a node's.

`parse_peer_certificate` says who called, `make_loopback_identity` gives a process TLS on this
machine, `NodeKey` is the key that Flower knows a site by. What an authority signs is in
`authority` and offered here as well.
"""

import base64
import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
    load_ssh_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedward_common.errors import ChannelError, ConfigError, SignatureRefused
from fedward_common.ids import LABEL, Digest, SiteId
from fedward_common.trust.authority import (
    TRUST_DOMAIN,
    CertificateRequest,
    Identity,
    belongs_together,
    issue_server,
    issue_site,
    make_issuing,
    make_root,
    new_request,
    parse_federation,
    site_uri,
)
from fedward_common.trust.private_files import write_atomically, write_private

__all__ = [
    "CertificateRequest",
    "Identity",
    "LoopbackIdentity",
    "NodeKey",
    "PeerCertificate",
    "expires_at",
    "issue_server",
    "issue_site",
    "make_issuing",
    "make_loopback_identity",
    "make_root",
    "new_request",
    "node_key_sha256",
    "parse_federation",
    "parse_peer_certificate",
    "site_uri",
    "verify_node_signature",
]

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
LOOPBACK_LIFETIME = timedelta(days=365)
LOOPBACK_MARGIN = timedelta(days=30)

_SITE_URI = re.compile(rf"spiffe://({TRUST_DOMAIN})/site/([^/]+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerCertificate:
    """Who a site's certificate says it is, and from when to when."""

    site_id: SiteId
    federation: str
    fingerprint_sha256: str
    not_before: datetime
    not_after: datetime

    def valid_at(self, now: datetime) -> bool:
        """Whether `now` (aware) lies in the certificate's validity, both ends included."""
        return self.not_before <= now <= self.not_after


def parse_peer_certificate(pem: bytes) -> PeerCertificate:
    """Who the site certificate `pem` (the first in it) names.

    Not checked here: that our authority signed it (the TLS handshake), that it is valid now
    (`valid_at`), that the roster knows it and it was not revoked (the edge, on every call).

    Raises:
        ChannelError: not a certificate of a site: no single SPIFFE site name, or not for clients.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (
        ValueError,
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise ChannelError(
            "site certificate: expected a certificate with a SPIFFE name and a key usage, "
            "found something else"
        ) from error
    uris = [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    match = _SITE_URI.fullmatch(uris[0]) if len(uris) == len(list(names)) == 1 else None
    site = match[match.lastindex or 0] if match else ""
    if match is None or not re.fullmatch(LABEL, site):
        raise ChannelError(
            "site certificate: expected exactly one name, spiffe://<federation>/site/<id>, "
            f"found {len(list(names))} names of other forms"
        )
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise ChannelError(
            f"site certificate of {site}: expected one for client authentication, found another"
        )
    return PeerCertificate(
        site_id=SiteId(site),
        federation=match[1],
        fingerprint_sha256=certificate.fingerprint(hashes.SHA256()).hex(),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def expires_at(certificate_pem: bytes) -> datetime:
    """When the first certificate in `certificate_pem` ends (aware, UTC).

    Raises:
        ConfigError: there is no certificate in it.
    """
    try:
        return x509.load_pem_x509_certificate(certificate_pem).not_valid_after_utc
    except ValueError as error:
        raise ConfigError("certificate: expected PEM, found something else") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopbackIdentity:
    """The files with which a process of this machine shows itself to another one over TLS."""

    ca: Path
    certificate: Path
    key: Path


def make_loopback_identity(folder: Path, *, now: datetime | None = None) -> LoopbackIdentity:
    """`ca.pem`, `cert.pem` and `key.pem` (0600) in `folder`, for localhost, 127.0.0.1 and ::1.

    An identity that is there, whole and good for another 30 days is kept; anything else is made
    anew. The root signs this one certificate and its key is never stored, so nobody can make a
    second certificate that the processes of this machine would trust.
    """
    now = now or datetime.now(UTC)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = LoopbackIdentity(
        ca=folder / "ca.pem", certificate=folder / "cert.pem", key=folder / "key.pem"
    )
    if not _usable(files, now):
        root = make_root("loopback", now=now)
        request = new_request("loopback")
        chain = issue_server(
            root,
            request.request_pem,
            hosts=LOOPBACK_HOSTS,
            now=now,
            lifetime=LOOPBACK_LIFETIME,
        )
        write_private(files.key, request.key_pem)
        write_atomically(files.certificate, chain)
        write_atomically(files.ca, root.certificate_pem)
    return files


def _usable(files: LoopbackIdentity, now: datetime) -> bool:
    try:
        identity = Identity(
            certificate_pem=files.certificate.read_bytes(), key_pem=files.key.read_bytes()
        )
        private = files.key.stat().st_mode & 0o077 == 0
        return (
            private
            and belongs_together(identity, files.ca.read_bytes())
            and expires_at(identity.certificate_pem) - now > LOOPBACK_MARGIN
        )
    except (FileNotFoundError, ConfigError):
        return False


class NodeKey:
    """The EC P-384 key by which Flower knows a site. Never printed: `repr` shows the digest only.

    Flower identifies a node by the PEM text of its public key, sent base64-encoded in the header
    `flwr-public-key` and given to the ServerApp as bytes; `sha256` is the digest of those bytes
    and what a study names as `node_key_sha256` (rules 15).
    """

    __slots__ = ("_key",)

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    def __repr__(self) -> str:
        return f"NodeKey(sha256={self.sha256!r})"

    @classmethod
    def generate(cls) -> Self:
        """A new key from the operating system's random source."""
        return cls(ec.generate_private_key(ec.SECP384R1()))

    @classmethod
    def from_openssh(cls, data: bytes) -> Self:
        """The key in `data` (OpenSSH private key format, unencrypted).

        Raises:
            ConfigError: `data` is something else; the text never contains any part of it.
        """
        try:
            key = load_ssh_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(
                "node key: expected an unencrypted OpenSSH private key, found something else"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(
            key.curve, ec.SECP384R1
        ):
            raise ConfigError("node key: expected an EC P-384 key, found a key of another kind")
        return cls(key)

    def to_openssh(self) -> bytes:
        """The OpenSSH private key file that `flower-supernode` reads."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())

    def write(self, path: Path) -> None:
        """Writes the OpenSSH private key file, 0600, atomically."""
        write_private(path, self.to_openssh())

    @property
    def public_openssh(self) -> bytes:
        """The one-line public key that `flwr supernode register` reads."""
        return self._key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)

    @property
    def public_bytes(self) -> bytes:
        """The public key as Flower's messages and `Grid.get_nodes` carry it: PEM text."""
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def header(self) -> str:
        """The value of Flower's `flwr-public-key` header: base64 of `public_bytes`."""
        return base64.b64encode(self.public_bytes).decode("ascii")

    @property
    def sha256(self) -> Digest:
        """SHA-256 of `public_bytes`."""
        return Digest(hashlib.sha256(self.public_bytes).hexdigest())


def node_key_sha256(header: str) -> Digest:
    """SHA-256 of the public key in a `flwr-public-key` header value, as a study names it.

    Raises:
        ConfigError: `header` is not the base64 form of a public key.
    """
    try:
        return Digest(hashlib.sha256(base64.b64decode(header, validate=True)).hexdigest())
    except ValueError as error:
        raise ConfigError("node key: expected base64, found something else") from error


def verify_node_signature(header: str, *, signature: str, text: str) -> None:
    """Returns only when the node key `header` signed `text`, as Flower signs a call's timestamp.

    `header` and `signature` are the values of `flwr-public-key` and `flwr-signature`.

    Raises:
        SignatureRefused: it did not, or one of the values is not what it should be.
    """
    try:
        key = load_pem_public_key(base64.b64decode(header, validate=True))
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("another kind of key")
        key.verify(
            base64.b64decode(signature, validate=True),
            text.encode("ascii"),
            ec.ECDSA(hashes.SHA256()),
        )
    except (InvalidSignature, ValueError, UnsupportedAlgorithm) as error:
        raise SignatureRefused(
            "node signature: expected one by this site's node key, found another"
        ) from error
