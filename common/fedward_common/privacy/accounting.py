"""Epsilon of mechanisms, by two accountants, and the noise that a wanted epsilon needs.

`admission` and `pld` are figures of one composition whose mechanisms were all fixed beforehand, one
study's for example: by Renyi curves at the best of ORDERS, and tighter by privacy losses. Studies
chosen after earlier results were seen are another matter. For them holds a Renyi filter: at one
order, fixed before the first result, divergences add up to at most what the total budget is worth
at that order, whatever was chosen and why (Feldman and Zrnic 2021; Lecuyer 2021). The best order
in hindsight depends on the results. Admitting while any order is within its budget is not covered
by that theorem: which order is left at the end is itself an outcome, and the proof then needs delta
divided by the number of orders. So the ledger fixes one order with its first study (`filter_order`)
and asks `filter_epsilon` from then on.

Neighbouring data differ by adding or removing one patient. Unknown means infinite.

Sources: Mironov 2017; Mironov, Talwar, Zhang 2019 (sampled Gaussian); Feldman and Zrnic 2021 and
Lecuyer 2021 (filters); Canonne, Kamath, Steinke 2020, Prop. 12 (conversion); dp-accounting.
"""

import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from dp_accounting import ComposedDpEvent, DpEvent, SelfComposedDpEvent
from dp_accounting.dp_event import DiscreteLaplaceDpEvent
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
_WHOLE: Final = tuple(order for order in ORDERS if order.is_integer())
"""These cost a tenth of the others; an epsilon at the best of them is never below that at all."""

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
    """The Renyi epsilon of all `events` at `delta`, at the best order; infinity if unknown.

    Holds for mechanisms that were fixed beforehand.

    Raises:
        ConfigError: an unknown mechanism, or delta outside (0, 1).
    """
    return curve_epsilon(renyi_curve(events), delta=delta)


def curve_epsilon(curve: Curve, *, delta: float) -> float:
    """The epsilon of a Renyi curve at `delta`, at the best of ORDERS; infinity if unknown.

    Raises:
        ConfigError: delta outside (0, 1).
    """
    return _best(ORDERS, curve, delta=delta)


def _best(orders: Sequence[float], curve: Curve, *, delta: float) -> float:
    _check_delta(delta)
    epsilon = float(compute_epsilon(orders, curve, delta)[0])
    return epsilon if math.isfinite(epsilon) else math.inf


def renyi_curve(events: Sequence[DpEvent]) -> Curve:
    """The Renyi divergence of all `events` together at each of ORDERS.

    Raises:
        ConfigError: an unknown mechanism.
    """
    return _total(leaf_counts(events))


def _total(counts: Mapping[str, int], *, orders: tuple[float, ...] = ORDERS) -> Curve:
    curve: Curve = np.zeros(len(orders))
    for leaf, times in counts.items():
        curve = curve + times * _curve(leaf, orders)
    return curve


def filter_epsilon(curve: Curve, *, order: float, delta: float) -> float:
    """What a total divergence costs by the filter of a fixed `order`: the smallest total limit that
    would have admitted it. Infinity if unknown.

    Raises:
        ConfigError: an order that is not one of ORDERS, or delta outside (0, 1).
    """
    return _best([order], np.asarray([divergence_at(curve, order)]), delta=delta)


def filter_budget(*, order: float, epsilon: float, delta: float) -> float:
    """The divergence at `order` that is worth `epsilon` at `delta`; negative where none is."""
    return epsilon - math.log1p(-1 / order) + math.log(delta * order) / (order - 1)


def filter_order(curve: Curve, *, epsilon: float, delta: float) -> float:
    """The order that, after a mechanism with this curve, leaves most of the budget for others.

    It depends on public numbers only, so it may be fixed before the first result. A mechanism that
    is within the budget by `epsilon_admission` is within it at this order, too. Gaussian, because
    the noise of training and of sums is, whatever the first study happens to be: their divergence
    grows as the order does.

    Raises:
        ConfigError: epsilon or delta out of range.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ConfigError(f"epsilon: expected a number above 0, found {epsilon}")
    _check_delta(delta)

    def left(order: float) -> float:
        budget = filter_budget(order=order, epsilon=epsilon, delta=delta)
        return (budget - divergence_at(curve, order)) / order

    return max(ORDERS, key=left)


def divergence_at(curve: Curve, order: float) -> float:
    """The divergence of a curve at one order. Raises ConfigError when it is not one of ORDERS."""
    return float(curve[_place(order)])


def _place(order: float) -> int:
    try:
        return ORDERS.index(order)
    except ValueError as error:
        raise ConfigError(
            f"Renyi order: expected one of the fixed orders, found {order}"
        ) from error


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
    released = [release_event(release) for release in releases]

    def event(noise_multiplier: float) -> DpEvent:
        training = dp_sgd_event(
            noise_multiplier=noise_multiplier,
            sampling_probability=sampling_probability,
            steps=steps,
        )
        return ComposedDpEvent([training, *released])

    found = smallest_noise(event, epsilon=epsilon, epsilon_is=epsilon_is, delta=delta)
    if found is None:
        alone = epsilon_as(epsilon_is, ComposedDpEvent(released), delta=delta)
        raise ConfigError(
            f"dp.epsilon: expected more than the releases alone cost ({alone:.3f} at delta "
            f"{delta:g}, {epsilon_is}) and enough for a noise multiplier of at most {MAX_NOISE:g}, "
            f"found {epsilon}. Raise epsilon or the releases' noise_multiplier, or take fewer steps"
        )
    return found


def smallest_noise(
    event: Callable[[float], DpEvent],
    *,
    epsilon: float,
    epsilon_is: EpsilonKind,
    delta: float,
    low: float = MIN_NOISE,
    high: float = MAX_NOISE,
) -> float | None:
    """The smallest noise multiplier in [low, high], a multiple of 1/10,000, whose `event` costs at
    most `epsilon` at `delta` (less MARGIN); None when no such noise is enough.

    Raises:
        ConfigError: epsilon or delta out of range.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ConfigError(f"dp.epsilon: expected a number above 0, found {epsilon}")
    _check_delta(delta)

    def cost(kind: EpsilonKind) -> Callable[[int], float]:
        return lambda grid: epsilon_as(kind, event(grid / STEPS_PER_UNIT), delta=delta)

    target = epsilon * (1 - MARGIN)
    least, most = math.ceil(low * STEPS_PER_UNIT), math.floor(high * STEPS_PER_UNIT)

    def bound(grid: int) -> float:
        counts = leaf_counts([event(grid / STEPS_PER_UNIT)])
        return _best(_WHOLE, _total(counts, orders=_WHOLE), delta=delta)

    # Each answer is where the next search starts: few orders never say less than all of them, and
    # PLD is never far above the filter's figure.
    guess = _smallest(bound, target=target, low=least, high=most)
    kinds: tuple[EpsilonKind, ...] = ("admission",)
    for kind in kinds if epsilon_is == "admission" else (*kinds, "pld"):
        start = most if guess is None else guess
        guess = _smallest_below(cost(kind), target=target, start=start, low=least, high=most)
    return None if guess is None else guess / STEPS_PER_UNIT


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
def _curve(leaf: str, orders: tuple[float, ...] = ORDERS) -> Curve:
    """The Renyi curve of one use of an elementary mechanism."""
    event = decode_event(leaf)
    if isinstance(event, DiscreteLaplaceDpEvent):
        return _discrete_laplace_curve(event.noise_parameter, orders)
    with _without_order_warnings():
        curve = RdpAccountant(list(orders)).compose(event).rdp
    # A negative or undefined divergence is a rounding accident. The library reads it as "no cost
    # at all"; here that order is not used.
    known: Curve = np.where(np.isfinite(curve) & (curve >= 0), curve, np.inf)
    return known


def _discrete_laplace_curve(parameter: float, orders: tuple[float, ...]) -> Curve:
    """The Renyi curve of discrete Laplace noise on a whole number that moves by at most 1.

    The privacy loss is +parameter where the noise is at most 0 and -parameter above, so that the
    curve is that of randomised response (Mironov 2017), and the same both ways.
    """
    above = -math.log1p(math.exp(parameter))
    below = -math.log1p(math.exp(-parameter))
    steps = np.asarray(orders) - 1.0
    return np.logaddexp(below + parameter * steps, above - parameter * steps) / steps


@lru_cache(maxsize=256)
def _pld(counts: tuple[tuple[str, int], ...], delta: float) -> float:
    parts = [SelfComposedDpEvent(decode_event(leaf), times) for leaf, times in counts]
    accountant = PLDAccountant(value_discretization_interval=PLD_INTERVAL)
    epsilon = float(accountant.compose(ComposedDpEvent(parts)).get_epsilon(delta))
    return epsilon if math.isfinite(epsilon) else math.inf
