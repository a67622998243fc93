"""Randomness that decides a privacy guarantee: the port, and the only implementation that ships.

There is no seed to set: not by an argument, an environment variable or a global generator (rules
11). Tests hand in another `RandomSource`.
"""

import os
from typing import Protocol

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

Float64Array = npt.NDArray[np.float64]

_KEY_BYTES = 32
_FIRST_COUNTER = bytes(16)
_PAIRS_PER_BLOCK = 1 << 15
"""Box-Muller works on 0.5 MiB at a time, so that its five passes stay in the cache."""


class RandomSource(Protocol):
    """Independent random numbers. Sampling and noise each get an instance of their own."""

    def uniform(self, count: int) -> Float64Array:
        """`count` independent float64 numbers, uniform on the multiples of 2**-53 in [0, 1)."""
        ...

    def normal(self, count: int) -> Float64Array:
        """`count` independent float64 numbers, normal with mean 0 and standard deviation 1."""
        ...


class Csprng:
    """A `RandomSource` nobody can predict or repeat: AES-256 in counter mode under a kernel key.

    Guarantees:
        Every call draws a fresh 256-bit key from `os.urandom`; nothing is kept between calls. So
        there is no state that a fork of the worker, a copy, a pickle or a memory snapshot could
        replay, and what one call returned says nothing about the next.
        `normal` is Box-Muller on 53-bit uniforms. Its largest magnitude is sqrt(106 ln 2) = 8.57;
        a true normal exceeds it with probability 1.0e-17 per coordinate.

    Not covered here: the floating-point grid of the numbers themselves (Mironov 2012). The engine
    adds noise in float64 and publishes float32, which hides the low bits but proves nothing.
    """

    __slots__ = ()

    def uniform(self, count: int) -> Float64Array:
        """`count` independent float64 numbers, uniform on the multiples of 2**-53 in [0, 1)."""
        _check_count(count)
        return _uniform(_keystream(8 * count))

    def normal(self, count: int) -> Float64Array:
        """`count` independent float64 numbers, normal with mean 0 and standard deviation 1."""
        _check_count(count)
        pairs = (count + 1) // 2
        result = np.empty(2 * pairs, dtype=np.float64)
        for start in range(0, pairs, _PAIRS_PER_BLOCK):
            stop = min(start + _PAIRS_PER_BLOCK, pairs)
            result[2 * start : 2 * stop] = _box_muller(_uniform(_keystream(16 * (stop - start))))
        return result[:count]


def _check_count(count: int) -> None:
    if count < 0:
        raise ValueError(f"random numbers: expected a count of 0 or more, found {count}")


def _keystream(size: int) -> bytes:
    # The counter may start at zero every time because no key is ever used twice.
    encryptor = Cipher(AES256(os.urandom(_KEY_BYTES)), CTR(_FIRST_COUNTER)).encryptor()
    return encryptor.update(bytes(size)) + encryptor.finalize()


def _uniform(keystream: bytes) -> Float64Array:
    integers = np.frombuffer(keystream, dtype="<u8") >> np.uint64(11)
    return integers.astype(np.float64) * 2.0**-53


def _box_muller(uniforms: Float64Array) -> Float64Array:
    """Two normals from each pair of uniforms (Box & Muller 1958)."""
    radius_part, angle_part = uniforms.reshape(2, -1)
    # 1 - u lies in (0, 1] and is exact, so the logarithm is finite.
    radius = np.sqrt(-2.0 * np.log(1.0 - radius_part))
    angle = (2.0 * np.pi) * angle_part
    return np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))
