"""Masks: keystreams of AES-256-CTR added to residues, in blocks that stay in the cache.

Sources: NIST SP 800-38A (CTR); RFC 5869 (HKDF); RFC 7748 (X25519).
"""

from typing import Final, Literal

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedward_common.secagg.fixedpoint import Ring
from fedward_common.secagg.refusals import Reason, SecAggRefused

BLOCK_BYTES: Final = 1 << 18
"""Measured: the keystream is added while it is still in the second-level cache."""
KEY_BYTES: Final = 32
_ZEROS: Final = bytes(BLOCK_BYTES)


def derive(secret: bytes, context: bytes) -> bytes:
    """A 32-byte key for one purpose: HKDF-SHA-256 of `secret` with `context` as info."""
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=context).derive(secret)


def agree(private: bytes, public: bytes) -> bytes:
    """The X25519 secret of a private and a public key, 32 bytes each.

    Raises:
        SecAggRefused: a public key of small order or of another length.
    """
    try:
        own = X25519PrivateKey.from_private_bytes(private)
        return own.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise SecAggRefused(Reason.WRONG_KEY, "expected an X25519 key, found none") from error


def public_of(private: bytes) -> bytes:
    """The X25519 public key of 32 private bytes."""
    key = X25519PrivateKey.from_private_bytes(private).public_key()
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def add_mask(residues: Ring, key: bytes, *, sign: Literal[1, -1]) -> None:
    """Adds (or subtracts) the keystream of `key` to `residues`, in place, modulo the ring.

    `key` is used for one vector only; the counter starts at zero. `residues` is contiguous.
    """
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    per_block = BLOCK_BYTES // residues.itemsize
    buffer = bytearray(BLOCK_BYTES + 15)
    view = memoryview(buffer)
    for start in range(0, residues.size, per_block):
        part = residues[start : start + per_block]
        size = part.nbytes
        stream.update_into(_ZEROS[:size], view)
        keystream = np.frombuffer(buffer, dtype=residues.dtype, count=part.size)
        if sign == 1:
            np.add(part, keystream, out=part)
        else:
            np.subtract(part, keystream, out=part)
