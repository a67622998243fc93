"""Masks: keystreams of AES-256-CTR added to residues, in blocks that stay in the cache.

Sources: NIST SP 800-38A (CTR) and 800-38D (GCM); RFC 5869 (HKDF); RFC 7748 (X25519).
"""

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import (
    AEADEncryptionContext,
    Cipher,
    algorithms,
    modes,
)
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedward_common.secagg.fixedpoint import Ring
from fedward_common.secagg.refusals import Reason, SecAggRefused

BLOCK_BYTES: Final = 1 << 19
"""Measured: keystream and residues are added while they are in the second-level cache; smaller
blocks spend more time on starting to read."""
KEY_BYTES: Final = 32
Mask = tuple[bytes, Literal[1, -1]]
"""The key of a mask, and whether it is added or taken away."""
_ZEROS: Final = memoryview(bytes(BLOCK_BYTES))


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


def add_masks(residues: Ring, masks: Sequence[Mask]) -> None:
    """Adds or takes away every mask of `masks`, in place, modulo the ring.

    A mask is the AES-256-CTR keystream from counter block 2 on; its key is used for one vector
    only. `residues` is contiguous.
    """
    add_all(residues, (), masks)


def add_all(
    residues: Ring, vectors: Sequence[Ring], masks: Sequence[Mask] = (), *, over: bool = False
) -> None:
    """Adds every vector of `vectors` and every mask of `masks`, in place, modulo the ring.

    `over`: what was in `residues` does not count. Works block by block and in each block one addend
    after the other: the residues go through the memory once, whatever the number of addends.
    """
    streams = [(_keystream(key), sign) for key, sign in masks]
    per_block = BLOCK_BYTES // residues.itemsize
    buffer = bytearray(min(BLOCK_BYTES, residues.nbytes) + 15)
    for start in range(0, residues.size, per_block):
        part = residues[start : start + per_block]
        for number, vector in enumerate(vectors):
            addend = vector[start : start + per_block]
            if over and number == 0:
                np.copyto(part, addend)
            else:
                np.add(part, addend, out=part)
        zeros = _ZEROS[: part.nbytes]
        keystream = np.frombuffer(buffer, dtype=residues.dtype, count=part.size)
        for stream, sign in streams:
            stream.update_into(zeros, buffer)
            if sign == 1:
                np.add(part, keystream, out=part)
            else:
                np.subtract(part, keystream, out=part)


def _keystream(key: bytes) -> AEADEncryptionContext:
    """AES-256-CTR by way of GCM, whose tag nobody asks for.

    GCM's cipher is CTR from block 2 on when its nonce is zero. OpenSSL uses the wide AES
    instructions for GCM but not for CTR: a third faster, the hash that nobody reads included.
    """
    return Cipher(algorithms.AES(key), modes.GCM(bytes(12))).encryptor()
