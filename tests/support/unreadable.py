"""Certificates and requests that are well-formed and that `cryptography` does not take."""

import base64

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedward_common.trust.certificates import new_request


def spoiled_certificate(pem: bytes, fault: str) -> bytes:
    """The first certificate in `pem` with another version, curve or kind of key in its bytes."""
    before, after = {
        "version": ("a003020102", "a003020105"),
        "curve": ("06082a8648ce3d030107", "06082a8648ce3d030106"),
        "key": ("06072a8648ce3d0201", "06072a8648ce3d0209"),
    }[fault]
    return _spoiled(
        x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER),
        bytes.fromhex(before),
        bytes.fromhex(after),
        kind="CERTIFICATE",
    )


def spoiled_request() -> bytes:
    """A certificate request of a version that there is not."""
    der = x509.load_pem_x509_csr(new_request("x").request_pem).public_bytes(Encoding.DER)
    return _spoiled(
        der, bytes.fromhex("020100"), bytes.fromhex("020101"), kind="CERTIFICATE REQUEST"
    )


def _spoiled(der: bytes, before: bytes, after: bytes, *, kind: str) -> bytes:
    if before not in der:
        raise ValueError("nothing to spoil")
    text = base64.encodebytes(der.replace(before, after, 1))
    return b"-----BEGIN %s-----\n%s-----END %s-----\n" % (kind.encode(), text, kind.encode())
