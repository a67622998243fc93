"""Epsilon of mechanisms, by two accountants, and the noise that a wanted epsilon needs.

`admission` is a Renyi filter: curves add up over everything a hospital ever reserved, also when a
study is chosen after earlier results were seen. `pld` is the tighter figure of one pre-declared
composition. Neighbouring data differ by adding or removing one patient. Unknown means infinite.

Sources: Mironov 2017; Mironov, Talwar, Zhang 2019 (sampled Gaussian); Feldman and Zrnic 2021
(filters); Canonne, Kamath, Steinke 2020, Prop. 12 (conversion); dp-accounting for both.
"""

import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from dp_accounting import ComposedDpEvent, DpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant, compute_epsilon

from fedward_common.errors import ConfigError
from fedward_common.privacy.mechanism import (
    MAX_NOISE,
    MIN_NOISE,
    decode_event,
    dp_sgd_event,
    leaf_counts,
    release_event,
)
from fedward_common.study.registry import ReleaseSpec

Curve = npt.NDArray[np.float64]
"""Renyi divergence at each of ORDERS; infinite where it is not known."""
EpsilonKind = Literal["admission", "pld"]

ORDERS: Final[tuple[float, ...]] = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *(float(order) for order in range(11, 64)),
    128.0,
    256.0,
    512.0,
    1024.0,
)
"""Fixed here, not taken from the library, so that every party computes the same filter."""

PLD_INTERVAL: Final = 1e-4
MAX_PLD_EPSILON: Final = 500.0
"""Above this admission figure the PLD is not computed: it would only cost memory."""

STEPS_PER_UNIT: Final = 10_000
"""Noise multipliers are multiples of 1/10,000."""
MARGIN: Final = 1e-6
"""Calibration stays this fraction below the target, so that another machine's last digits, when
it checks the declared noise, still land below it."""


def epsilon_pld(event: DpEvent, *, delta: float) -> float:
    """The PLD epsilon of `event` at `delta`: pessimistic, intervals of 1e-4; infinity if unknown.

    Holds for one composition whose mechanisms were all fixed beforehand; across studies chosen
    after seeing results only `epsilon_admission` holds.

    Raises:
        ConfigError: an unknown mechanism, or delta outside (0, 1).
    """
    _check_delta(delta)
    counts = leaf_counts([event])
    if not epsilon_admission([event], delta=delta) <= MAX_PLD_EPSILON:
        return math.inf
    return _pld(tuple(sorted(counts.items())), delta)


def epsilon_admission(events: Sequence[DpEvent], *, delta: float) -> float:
    """The Renyi-filter epsilon of all `events` together at `delta`; infinity if unknown.

    Raises:
        ConfigError: an unknown mechanism, or delta outside (0, 1).
    """
    _check_delta(delta)
    curve = np.zeros(len(ORDERS))
    for leaf, times in leaf_counts(events).items():
        curve = curve + times * _curve(leaf)
    epsilon = float(compute_epsilon(ORDERS, curve, delta)[0])
    return epsilon if math.isfinite(epsilon) else math.inf


def epsilon_as(kind: EpsilonKind, event: DpEvent, *, delta: float) -> float:
    """The figure that a study or a limit names: `epsilon_admission` or `epsilon_pld`."""
    if kind == "admission":
        return epsilon_admission([event], delta=delta)
    return epsilon_pld(event, delta=delta)


def calibrate_noise_multiplier(
    *,
    epsilon: float,
    epsilon_is: EpsilonKind,
    delta: float,
    sampling_probability: float,
    steps: int,
    releases: Sequence[ReleaseSpec] = (),
) -> float:
    """The smallest noise multiplier, a multiple of 1/10,000, that keeps the whole study in budget.

    Training and every release together cost at most `epsilon` at `delta`, counted by `epsilon_is`,
    less one part in a million (see MARGIN). Deterministic: equal arguments, equal noise.

    Raises:
        ConfigError: epsilon or delta out of range, or no noise is enough.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ConfigError(f"dp.epsilon: expected a number above 0, found {epsilon}")
    _check_delta(delta)
    released = [release_event(release) for release in releases]

    def cost(kind: EpsilonKind) -> Callable[[int], float]:
        def at(grid: int) -> float:
            training = dp_sgd_event(
                noise_multiplier=grid / STEPS_PER_UNIT,
                sampling_probability=sampling_probability,
                steps=steps,
            )
            return epsilon_as(kind, ComposedDpEvent([training, *released]), delta=delta)

        return at

    target = epsilon * (1 - MARGIN)
    # PLD is never far above the filter's figure, so the cheap answer is where its search starts.
    low, high = round(MIN_NOISE * STEPS_PER_UNIT), round(MAX_NOISE * STEPS_PER_UNIT)
    guess = _smallest(cost("admission"), target=target, low=low, high=high)
    if epsilon_is == "pld":
        start = high if guess is None else guess
        guess = _smallest_below(cost("pld"), target=target, start=start, low=low, high=high)
    if guess is None:
        alone = epsilon_as(epsilon_is, ComposedDpEvent(released), delta=delta)
        raise ConfigError(
            f"dp.epsilon: expected more than the releases alone cost ({alone:.3f} at delta "
            f"{delta:g}, {epsilon_is}) and enough for a noise multiplier of at most {MAX_NOISE:g}, "
            f"found {epsilon}. Raise epsilon or the releases' noise_multiplier, or take fewer steps"
        )
    return guess / STEPS_PER_UNIT


def _smallest(cost: Callable[[int], float], *, target: float, low: int, high: int) -> int | None:
    """The smallest grid point in [low, high] with cost <= target, for a falling cost."""
    if cost(low) <= target:
        return low
    if not cost(high) <= target:
        return None
    return _between(cost, target=target, fails=low, meets=high)


def _smallest_below(
    cost: Callable[[int], float], *, target: float, start: int, low: int, high: int
) -> int | None:
    """As `_smallest`, looking first a little below `start`: every evaluation is expensive."""
    if not cost(start) <= target:
        return None if start == high else _smallest(cost, target=target, low=start, high=high)
    meets, step = start, max(1, start // 32)
    while meets > low:
        trial = max(low, meets - step)
        if not cost(trial) <= target:
            return _between(cost, target=target, fails=trial, meets=meets)
        meets, step = trial, step * 2
    return meets


def _between(cost: Callable[[int], float], *, target: float, fails: int, meets: int) -> int:
    """The smallest point above `fails` that meets the target: bisection, sped up by the secant.

    The cost is close to a power of the noise, so both run on a logarithmic scale. The secant soon
    lands within a point or two of the answer; a step that hardly moved is followed by a bisection,
    which bounds the number of steps.
    """
    upper, lower = cost(fails), cost(meets)
    secant = True
    while meets - fails > 1:
        part = 0.5
        if secant and math.isfinite(upper) and 0 < lower < upper:
            part = math.log(upper / target) / math.log(upper / lower)
        trial = round(fails * (meets / fails) ** part)
        trial = min(max(trial, fails + 1), meets - 1)
        quarter, value = (meets - fails) // 4, cost(trial)
        if value <= target:
            secant = meets - trial >= quarter
            meets, lower = trial, value
        else:
            secant = trial - fails >= quarter
            fails, upper = trial, value
    return meets


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ConfigError(f"delta: expected a number between 0 and 1, found {delta}")


_quiet_lock = threading.Lock()


@contextmanager
def _without_order_warnings() -> Iterator[None]:
    """Silences the library's warning per order that does not converge: such an order is dropped
    by design (its divergence counts as infinite), which is nothing for the person on duty.
    """

    def keep(record: logging.LogRecord) -> bool:
        return "failed to converge" not in record.getMessage()

    logger = logging.getLogger("absl")
    with _quiet_lock:
        logger.addFilter(keep)
        try:
            yield
        finally:
            logger.removeFilter(keep)


@lru_cache(maxsize=1024)
def _curve(leaf: str) -> Curve:
    """The Renyi curve of one use of an elementary mechanism."""
    with _without_order_warnings():
        curve = RdpAccountant(list(ORDERS)).compose(decode_event(leaf)).rdp
    # A negative or undefined divergence is a rounding accident. The library reads it as "no cost
    # at all"; here that order is not used.
    known: Curve = np.where(np.isfinite(curve) & (curve >= 0), curve, np.inf)
    return known


@lru_cache(maxsize=256)
def _pld(counts: tuple[tuple[str, int], ...], delta: float) -> float:
    parts = [SelfComposedDpEvent(decode_event(leaf), times) for leaf, times in counts]
    accountant = PLDAccountant(value_discretization_interval=PLD_INTERVAL)
    epsilon = float(accountant.compose(ComposedDpEvent(parts)).get_epsilon(delta))
    return epsilon if math.isfinite(epsilon) else math.inf
