"""Ed25519 keys: what a study lead, a site or an operator signs with, and how that is checked.

A public key is written as 64 lower-case hexadecimal digits (its 32 raw bytes); the study names it
by the SHA-256 of those bytes (rules 12). Callers put a domain prefix such as `fedward/study/v1|`
before what they sign, so that a signature of one kind is never one of another.
"""

import hashlib
import re
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from fedward_common.errors import ConfigError, SignatureRefused
from fedward_common.ids import Digest

PUBLIC_KEY = re.compile(r"[0-9a-f]{64}")


class SigningKey:
    """An Ed25519 private key. Never printed: `repr` shows the public half only."""

    __slots__ = ("_key",)

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    def __repr__(self) -> str:
        return f"SigningKey(public_hex={self.public_hex!r})"

    @classmethod
    def generate(cls) -> Self:
        """A new key from the operating system's random source."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """The key in `pem` (PKCS 8, unencrypted).

        Raises:
            ConfigError: `pem` is something else; the text never contains any part of it.
        """
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(
                "signing key: expected an unencrypted Ed25519 key in PEM, found something else"
            ) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError("signing key: expected an Ed25519 key, found a key of another kind")
        return cls(key)

    def to_pem(self) -> bytes:
        """The key as unencrypted PKCS 8 PEM; the caller writes it 0600 (`write_private`)."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def public_hex(self) -> str:
        """The public key: 32 raw bytes as 64 lower-case hexadecimal digits."""
        return self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    def sign(self, data: bytes) -> bytes:
        """The 64-byte Ed25519 signature of `data` (RFC 8032; deterministic)."""
        return self._key.sign(data)


def verify(public_hex: str, signature: bytes, data: bytes) -> None:
    """Returns only when `signature` is the signature of `data` by the key `public_hex`.

    Raises:
        SignatureRefused: it is not, or `public_hex` is no Ed25519 public key.
    """
    try:
        Ed25519PublicKey.from_public_bytes(_raw(public_hex)).verify(signature, data)
    except (InvalidSignature, ValueError, UnsupportedAlgorithm) as error:
        raise SignatureRefused(
            f"signature: expected one by the Ed25519 key {public_hex[:16]}..., found another. "
            "The data or the signature was changed, or another key signed it."
        ) from error


def key_sha256(public_hex: str) -> Digest:
    """SHA-256 of the 32 raw bytes of a public key: how a study names a key (rules 12).

    Raises:
        SignatureRefused: `public_hex` is not 64 lower-case hexadecimal digits.
    """
    return Digest(hashlib.sha256(_raw(public_hex)).hexdigest())


def _raw(public_hex: str) -> bytes:
    if not PUBLIC_KEY.fullmatch(public_hex):
        raise SignatureRefused(
            "public key: expected 64 lower-case hexadecimal digits, found something else"
        )
    return bytes.fromhex(public_hex)
