"""What one training run proves about epsilon: bounds from guesses about who took part.

Each of m canaries takes part with probability 1/2. An attacker who sees what was released guesses
for some of them; under (epsilon, delta)-DP too many right guesses are unlikely, so that a run with
that many right ones refutes small values of epsilon. A bound below the claim proves nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from fedward_common.privacy.randomness import Float64Array

CONFIDENCE = 0.95
DOUBT = 1e-5
"""The chance with which a sound mechanism is called broken."""
GUESSES = (0.125, 0.25, 0.5, 0.9)
"""Shares of the canaries that are guessed, fixed beforehand; the error is divided among them."""
_MOST = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class OneRun:
    """What one run showed: the bound that holds with 95 % confidence, and two best guesses.

    `lower_bound` is not above the true epsilon in 95 of 100 runs, `proven` in all but one of
    100,000; `right` of `guessed` is the guess that the former comes from. `gaussian_mu` and
    `estimate` are the fit of a Gaussian mechanism to the scores, which proves nothing.
    """

    canaries: int
    guessed: int
    right: int
    lower_bound: float
    proven: float
    gaussian_mu: float
    estimate: float


def judge(scores: Float64Array, took_part: npt.NDArray[np.bool_], *, delta: float) -> OneRun:
    """What `scores` (higher: more likely took part) say about epsilon at `delta`.

    Raises:
        ValueError: fewer than 16 canaries, or all of them on one side.
    """
    count = len(scores)
    inside = int(took_part.sum())
    if count < 16 or not 0 < inside < count:
        raise ValueError("one-run audit: expected 16 canaries or more, some in and some out")
    order = np.argsort(-scores, kind="stable")
    found = [_guess(order, took_part, round(count * share / 2)) for share in GUESSES]

    def bounds_at(error: float) -> list[float]:
        share = error / len(GUESSES)
        return [
            lower_bound(canaries=count, guessed=guessed, right=right, delta=delta, error=share)
            for guessed, right in found
        ]

    bounds = bounds_at(1 - CONFIDENCE)
    best = int(np.argmax(bounds))
    mu = _gaussian_mu(scores, took_part)
    return OneRun(
        canaries=count,
        guessed=found[best][0],
        right=found[best][1],
        lower_bound=bounds[best],
        proven=max(bounds_at(DOUBT)),
        gaussian_mu=mu,
        estimate=gaussian_epsilon(mu, delta=delta),
    )


def lower_bound(*, canaries: int, guessed: int, right: int, delta: float, error: float) -> float:
    """The largest epsilon that `right` of `guessed` guesses refute, wrong with chance `error`.

    Source: Steinke, Nasr, Jagielski 2023 (arXiv:2305.08846), Theorem 5.2 with its bound on the
    part that delta adds.
    """
    low, high = 0.0, _MOST
    if _chance(right, guessed, canaries=canaries, epsilon=0.0, delta=delta) > error:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        if _chance(right, guessed, canaries=canaries, epsilon=middle, delta=delta) > error:
            high = middle
        else:
            low = middle
    return low


def gaussian_epsilon(mu: float, *, delta: float) -> float:
    """Epsilon at `delta` of a Gaussian mechanism with mean shift `mu` (Balle & Wang 2018)."""
    if not math.isfinite(mu):
        return math.inf
    normal = NormalDist()

    def spent(epsilon: float) -> float:
        tail = normal.cdf(-epsilon / mu - mu / 2)
        return normal.cdf(-epsilon / mu + mu / 2) - (math.exp(epsilon) * tail if tail else 0.0)

    if mu <= 0 or spent(0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while spent(high) > delta and high < 700:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > delta else (low, middle)
    return high


def _guess(
    order: npt.NDArray[np.int64], took_part: npt.NDArray[np.bool_], half: int
) -> tuple[int, int]:
    """How many guesses, and how many right: the first `half` took part, the last did not."""
    right = int(took_part[order[:half]].sum()) + int((~took_part[order[len(order) - half :]]).sum())
    return 2 * half, right


def _chance(right: int, guessed: int, *, canaries: int, epsilon: float, delta: float) -> float:
    """At most this is the chance of `right` or more right guesses under (epsilon, delta)-DP."""
    one = 1.0 / (1.0 + math.exp(-epsilon))
    masses = _binomial(guessed, one)
    chance, gathered, factor = float(sum(masses[right:])), 0.0, 0.0
    for lacking in range(1, right + 1):
        gathered += masses[right - lacking]
        factor = max(factor, gathered / lacking)
    return min(1.0, chance + 2 * canaries * delta * factor)


def _binomial(count: int, one: float) -> Sequence[float]:
    """The chances of 0..count successes."""
    if one == 1.0:
        return [0.0] * count + [1.0]
    logs = (
        math.lgamma(count + 1)
        - math.lgamma(k + 1)
        - math.lgamma(count - k + 1)
        + k * math.log(one)
        + (count - k) * math.log1p(-one)
        for k in range(count + 1)
    )
    return [math.exp(log) for log in logs]


def _gaussian_mu(scores: Float64Array, took_part: npt.NDArray[np.bool_]) -> float:
    """The distance of the two groups' means in standard deviations of those who took no part."""
    spread = float(scores[~took_part].std(ddof=1)) if int((~took_part).sum()) > 1 else 0.0
    apart = float(scores[took_part].mean() - scores[~took_part].mean())
    if spread == 0.0:
        return math.inf if apart > 0 else 0.0
    return apart / spread
