"""Canonical bytes and digests: the one way anything in Fedward is hashed or signed."""

import hashlib
from collections.abc import Iterable
from typing import Any

import rfc8785

from fedward_common.errors import ProtocolError


def canonical_json(value: Any) -> bytes:  # JSON values have no narrower static type
    """The RFC 8785 bytes of a JSON value; equal values give equal bytes on every machine.

    Raises:
        ProtocolError: the value is not JSON (NaN, infinity, integers beyond 2**53, other types).

    Source: RFC 8785 (JSON Canonicalization Scheme).
    """
    try:
        return rfc8785.dumps(value)
    except (ValueError, TypeError) as error:  # CanonicalizationError, and a key that is no UTF-8
        raise ProtocolError(
            "expected a JSON value, found one that has no canonical form"
        ) from error


def sha256_hex(data: bytes | memoryview | Iterable[bytes | memoryview]) -> str:
    """The SHA-256 of `data`, whole or in pieces, as 64 lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    for part in (data,) if isinstance(data, bytes | bytearray | memoryview) else data:
        digest.update(part)
    return digest.hexdigest()
