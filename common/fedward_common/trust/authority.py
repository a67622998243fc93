"""What a certificate authority signs: its root, its issuing authority, sites and servers.

All keys are EC P-256 (what HSMs and TPMs reach). A site is the URI `spiffe://<federation>/site/<id>`
and nothing else: no name that a site wrote into its request reaches its certificate. Where the
files lie and who holds which key is the business of the authority's adapter.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedward_common.errors import ConfigError, SignatureRefused
from fedward_common.ids import SiteId

ROOT_LIFETIME = timedelta(days=3650)
ISSUING_LIFETIME = timedelta(days=730)
PROCESS_LIFETIME = timedelta(days=90)
TRUST_DOMAIN = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"
BACKDATED = timedelta(minutes=5)
"""A certificate starts this much before it is made: hospital clocks differ by seconds, not more."""
UNREADABLE: Final = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    x509.DuplicateExtension,
)
"""What `cryptography` raises for certificates and requests that others made; not all are errors of
value, and one that is not caught would end the task that a stranger's bytes reached."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """A certificate chain (own certificate first, no root) and its private key, both in PEM."""

    certificate_pem: bytes
    key_pem: bytes

    def __repr__(self) -> str:
        return f"Identity(certificate_pem={self.certificate_pem!r}, key_pem=...)"


@dataclass(frozen=True, kw_only=True, slots=True)
class CertificateRequest:
    """What a process sends to the authority (`request_pem`) and what it keeps (`key_pem`)."""

    request_pem: bytes
    key_pem: bytes

    def __repr__(self) -> str:
        return f"CertificateRequest(request_pem={self.request_pem!r}, key_pem=...)"


def parse_federation(text: str) -> str:
    """`text` as a federation's name. Raises ConfigError when it is not a lower-case domain name."""
    if not re.fullmatch(TRUST_DOMAIN, text):
        raise ConfigError(
            f"federation: expected lower-case letters, digits, hyphens and dots, found {text!r}"
        )
    return text


def site_uri(federation: str, site: SiteId) -> str:
    """The SPIFFE name of a site, the only identity in its certificate."""
    return f"spiffe://{federation}/site/{site}"


def new_request(common_name: str) -> CertificateRequest:
    """A fresh P-256 key and a request signed by it; nobody trusts `common_name`."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(common_name))
    request = builder.sign(key, hashes.SHA256())
    return CertificateRequest(request_pem=request.public_bytes(Encoding.PEM), key_pem=_key_pem(key))


def make_root(federation: str, *, now: datetime) -> Identity:
    """A new self-signed root of `federation`, 10 years. Its key belongs offline."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"Fedward {parse_federation(federation)} root")
    builder = _builder(key.public_key(), subject=name, issuer=name, now=now, lifetime=ROOT_LIFETIME)
    builder = _authority(builder, path_length=1)
    builder = _key_identifiers(builder, key.public_key(), issuer=key.public_key())
    certificate = builder.sign(key, hashes.SHA256())
    return Identity(certificate_pem=certificate.public_bytes(Encoding.PEM), key_pem=_key_pem(key))


def make_issuing(root: Identity, *, federation: str, now: datetime) -> Identity:
    """A new issuing authority under `root`, 2 years, that can sign no further authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    parent, parent_key = _load(root)
    subject = _name(f"Fedward {parse_federation(federation)} issuing")
    lifetime = min(ISSUING_LIFETIME, parent.not_valid_after_utc - now)
    builder = _builder(
        key.public_key(), subject=subject, issuer=parent.subject, now=now, lifetime=lifetime
    )
    builder = _authority(builder, path_length=0)
    builder = _key_identifiers(builder, key.public_key(), issuer=parent_key.public_key())
    certificate = builder.sign(parent_key, hashes.SHA256())
    return Identity(certificate_pem=certificate.public_bytes(Encoding.PEM), key_pem=_key_pem(key))


def issue_site(
    issuing: Identity,
    request_pem: bytes,
    *,
    federation: str,
    site: SiteId,
    now: datetime,
    lifetime: timedelta = PROCESS_LIFETIME,
) -> bytes:
    """The certificate chain (PEM) of a site's gateway: client authentication only.

    Raises:
        ConfigError: the issuing authority has ended.
        SignatureRefused: the request is not signed by its own P-256 key.
    """
    uri = x509.UniformResourceIdentifier(site_uri(parse_federation(federation), site))
    names = x509.SubjectAlternativeName([uri])
    usage = ExtendedKeyUsageOID.CLIENT_AUTH
    return _issue(issuing, request_pem, site, names, usage=usage, now=now, lifetime=lifetime)


def issue_server(
    issuing: Identity,
    request_pem: bytes,
    *,
    hosts: Sequence[str],
    now: datetime,
    lifetime: timedelta = PROCESS_LIFETIME,
) -> bytes:
    """The certificate chain (PEM) of a server for `hosts` (DNS names or IP addresses).

    Raises:
        ConfigError: `hosts` is empty, or the issuing authority has ended.
        SignatureRefused: the request is not signed by its own P-256 key.
    """
    if not hosts:
        raise ConfigError("server certificate: expected at least one host name, found none")
    names = x509.SubjectAlternativeName([_host(host) for host in hosts])
    usage = ExtendedKeyUsageOID.SERVER_AUTH
    return _issue(issuing, request_pem, hosts[0], names, usage=usage, now=now, lifetime=lifetime)


def belongs_together(identity: Identity, ca_pem: bytes) -> bool:
    """Whether the key is the certificate's and the certificate was signed directly by `ca_pem`."""
    try:
        certificate, key = _load(identity)
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca_pem))
    except (ValueError, TypeError, InvalidSignature, ConfigError):
        return False
    return certificate.public_key() == key.public_key()


def _issue(
    issuing: Identity,
    request_pem: bytes,
    common_name: str,
    names: x509.SubjectAlternativeName,
    *,
    usage: x509.ObjectIdentifier,
    now: datetime,
    lifetime: timedelta,
) -> bytes:
    public_key = requested_key(request_pem)
    parent, parent_key = _load(issuing)
    if now >= parent.not_valid_after_utc:
        raise ConfigError(
            "issuing authority: expected one that is valid now, found one that has ended. Make the "
            "next one with the root"
        )
    builder = _builder(
        public_key,
        subject=_name(common_name),
        issuer=parent.subject,
        now=now,
        lifetime=min(lifetime, parent.not_valid_after_utc - now),
    )
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(names, critical=False)
    )
    builder = _key_identifiers(builder, public_key, issuer=parent_key.public_key())
    certificate = builder.sign(parent_key, hashes.SHA256())
    return certificate.public_bytes(Encoding.PEM) + issuing.certificate_pem


def requested_key(request_pem: bytes) -> ec.EllipticCurvePublicKey:
    """The key of a certificate request, after the proof that the asker holds its private half.

    Raises:
        SignatureRefused: not a request that its own P-256 key signed.
    """
    try:
        request = x509.load_pem_x509_csr(request_pem)
        proven, key = request.is_signature_valid, request.public_key()
    except UNREADABLE as error:
        raise SignatureRefused("certificate request: expected PEM, found something else") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise SignatureRefused("certificate request: expected an EC P-256 key, found another kind")
    if not proven:
        raise SignatureRefused("certificate request: expected a signature by its own key")
    return key


def _load(identity: Identity) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(identity.certificate_pem)
        key = load_pem_private_key(identity.key_pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError("identity: expected a certificate and its key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("identity: expected an EC key, found a key of another kind")
    return certificate, key


def _builder(
    public_key: ec.EllipticCurvePublicKey,
    *,
    subject: x509.Name,
    issuer: x509.Name,
    now: datetime,
    lifetime: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + lifetime)
    )


def _authority(builder: x509.CertificateBuilder, *, path_length: int) -> x509.CertificateBuilder:
    constraints = x509.BasicConstraints(ca=True, path_length=path_length)
    return builder.add_extension(constraints, critical=True).add_extension(
        _key_usage(signs_certificates=True), critical=True
    )


def _key_identifiers(
    builder: x509.CertificateBuilder,
    subject: ec.EllipticCurvePublicKey,
    *,
    issuer: ec.EllipticCurvePublicKey,
) -> x509.CertificateBuilder:
    # RFC 5280 4.2.1.1 and 4.2.1.2; strict verifiers refuse a chain without them.
    return builder.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(subject), critical=False
    ).add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
