"""Shamir's secret sharing of 32-byte secrets over the prime field of 2^256 + 297 elements.

Shares are used once: each secret belongs to one round. Source: Shamir 1979.
"""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

from fedward_common.secagg.refusals import Reason, SecAggRefused

PRIME: Final = 2**256 + 297
SHARE_BYTES: Final = 33
SECRET_BYTES: Final = 32
RandomBytes = Callable[[int], bytes]


def split(
    secret: bytes, *, holders: int, threshold: int, random_bytes: RandomBytes
) -> dict[int, bytes]:
    """Shares for the holders 1..`holders`; any `threshold` of them rebuild `secret`.

    Fewer than `threshold` shares are independent of the secret.

    Raises:
        ValueError: a secret of another length, or thresholds that make no sense.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= holders:
        raise ValueError("shares: expected a 32-byte secret and 1 <= threshold <= holders")
    coefficients = [int.from_bytes(secret)]
    coefficients += [_uniform(random_bytes) for _ in range(threshold - 1)]
    return {
        holder: _evaluate(coefficients, holder).to_bytes(SHARE_BYTES)
        for holder in range(1, holders + 1)
    }


def combine(shares: Mapping[int, bytes], *, threshold: int) -> bytes:
    """The secret of `threshold` or more shares of one split.

    Raises:
        SecAggRefused: too few shares, a share that is none, or shares that give no secret; shares
            of another secret are not noticed here.
    """
    chosen = dict(sorted(shares.items())[:threshold])
    if len(chosen) < threshold:
        raise SecAggRefused(
            Reason.SHARES, f"expected {threshold} shares of a secret, found {len(chosen)}"
        )
    weights = _weights_at_zero(tuple(chosen))
    secret = sum(w * _number(share) for w, share in zip(weights, chosen.values(), strict=True))
    secret %= PRIME
    if secret >= 2**256:
        raise SecAggRefused(Reason.SHARES, "expected shares of one secret, found others")
    return secret.to_bytes(SECRET_BYTES)


@lru_cache(maxsize=64)
def _weights_at_zero(holders: tuple[int, ...]) -> tuple[int, ...]:
    """What each holder's share counts for in the secret: the same for every secret of a round."""
    weights = []
    for holder in holders:
        others = [other for other in holders if other != holder]
        above = math.prod(others) % PRIME
        below = math.prod(other - holder for other in others) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)


def _uniform(random_bytes: RandomBytes) -> int:
    # 512 bits reduced: the distance from uniform is below 2^-255.
    return int.from_bytes(random_bytes(64)) % PRIME


def _evaluate(coefficients: list[int], point: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value


def _number(share: bytes) -> int:
    value = int.from_bytes(share)
    if len(share) != SHARE_BYTES or value >= PRIME:
        raise SecAggRefused(Reason.SHARES, "expected 33 bytes below the prime, found others")
    return value
