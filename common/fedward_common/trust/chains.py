"""A site's certificate chain, proven from the federation's root, as the site itself receives it.

The edge leaves this to the TLS handshake. A site that is handed a chain (a grant, a renewal) has no
handshake yet and must know that the chain will pass before it replaces anything by it.
"""

import hashlib
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedward_common.errors import ChannelError, SignatureRefused
from fedward_common.ids import Digest, SiteId
from fedward_common.trust.authority import UNREADABLE, requested_key
from fedward_common.trust.certificates import PeerCertificate, parse_peer_certificate

MAX_CHAIN_BYTES: Final = 1 << 14


def spki_sha256(certificate_pem: bytes) -> Digest:
    """SHA-256 of the public key (SubjectPublicKeyInfo, DER) of the first certificate in the PEM.

    An invite pins the federation's root by this.

    Raises:
        SignatureRefused: there is no certificate in it.
    """
    return _key_digest(_public_key(_certificates(certificate_pem)[0]))


def request_key_sha256(request_pem: bytes) -> Digest:
    """SHA-256 of the public key (SubjectPublicKeyInfo, DER) of a certificate request.

    Raises:
        SignatureRefused: not a request that its own P-256 key signed.
    """
    return _key_digest(requested_key(request_pem))


def verify_site_chain(
    chain_pem: bytes,
    *,
    root_pem: bytes,
    request_pem: bytes,
    federation: str,
    site: SiteId,
    now: datetime,
) -> PeerCertificate:
    """What the site's new certificate says, after proving that it will pass the edge.

    1. There are two certificates, the site's and the issuing authority's, and one root.
    2. The root signed the issuing authority, the issuing authority signed the site's; the issuing
       authority may sign certificates and no further authority, the site's may sign none.
    3. All three are valid now.
    4. The site's certificate is for clients and names this site of this federation, nothing else.
    5. Its key is the key of `request_pem`: nobody else can use it.

    Left to the caller: that `root_pem` is the pinned root.

    Raises:
        SignatureRefused: a step failed.
    """
    # 1.
    chain, roots = _certificates(chain_pem), _certificates(root_pem)
    if len(chain) != 2 or len(roots) != 1:
        raise SignatureRefused(
            f"certificate chain: expected the site's and the issuing one, found {len(chain)}"
        )
    (own, issuing), root = chain, roots[0]
    # 2.
    try:
        root.verify_directly_issued_by(root)
        issuing.verify_directly_issued_by(root)
        own.verify_directly_issued_by(issuing)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureRefused(
            "certificate chain: expected one that leads to the federation's root, found another"
        ) from error
    if _authority(root) is None or _authority(issuing) != 0 or _authority(own) is not None:
        raise SignatureRefused("certificate chain: expected root, issuing authority and site")
    # 3.
    if not all(
        c.not_valid_before_utc <= now <= c.not_valid_after_utc for c in (own, issuing, root)
    ):
        raise SignatureRefused(
            "certificate chain: expected one that is valid now, found one that is not. "
            "Check this machine's clock"
        )
    # 4.
    try:
        peer = parse_peer_certificate(chain_pem)
    except ChannelError as error:
        raise SignatureRefused(str(error)) from error
    if (peer.federation, peer.site_id) != (federation, site):
        raise SignatureRefused(
            f"site certificate: expected {site} of {federation}, found another name"
        )
    # 5.
    if _key_digest(_public_key(own)) != request_key_sha256(request_pem):
        raise SignatureRefused(f"site certificate of {site}: expected this site's own key")
    return peer


def _certificates(pem: bytes) -> list[x509.Certificate]:
    try:
        if len(pem) > MAX_CHAIN_BYTES:
            raise ValueError("too long")
        return x509.load_pem_x509_certificates(pem)
    except UNREADABLE as error:
        raise SignatureRefused("certificate: expected PEM, found something else") from error


def _public_key(certificate: x509.Certificate) -> object:
    try:
        return certificate.public_key()
    except UNREADABLE as error:
        raise SignatureRefused("certificate: expected an EC key, found another kind") from error


def _authority(certificate: x509.Certificate) -> int | None:
    """How many authorities may stand below this one; None when it is no authority."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, *UNREADABLE):
        return None
    return (found.path_length or 0) if found.ca else None


def _key_digest(key: object) -> Digest:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise SignatureRefused("certificate: expected an EC key, found another kind")
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Digest(hashlib.sha256(der).hexdigest())
