"""Epsilon by two accountants, and the noise that a wanted epsilon needs."""

import logging
import math

import numpy as np
import pytest
from dp_accounting import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    LaplaceDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.dp_event import DiscreteLaplaceDpEvent
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq
from scipy.special import logsumexp
from scipy.stats import norm

from fedward_common.errors import ConfigError
from fedward_common.privacy import accounting
from fedward_common.privacy.accounting import (
    ORDERS,
    calibrate_noise_multiplier,
    curve_epsilon,
    divergence_at,
    epsilon_admission,
    epsilon_as,
    epsilon_pld,
    filter_budget,
    filter_epsilon,
    filter_order,
    renyi_curve,
)
from fedward_common.privacy.mechanism import dp_sgd_event, release_event
from fedward_common.study.evaluation import BinnedScores

DELTA = 1e-5
RELEASE = BinnedScores(bins=10, noise_multiplier=10.0)


def sgd(noise: float, *, q: float = 0.1, steps: int = 100) -> DpEvent:
    return dp_sgd_event(noise_multiplier=noise, sampling_probability=q, steps=steps)


def gaussian_epsilon(sigma: float, *, delta: float) -> float:
    """The exact epsilon of one Gaussian mechanism (Balle and Wang 2018, Theorem 8)."""

    def excess(epsilon: float) -> float:
        below = norm.cdf(1 / (2 * sigma) - epsilon * sigma)
        above = math.exp(epsilon) * norm.cdf(-1 / (2 * sigma) - epsilon * sigma)
        return float(below - above - delta)

    return float(brentq(excess, 0, 100))


@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0])
def test_pld_of_a_gaussian_is_the_closed_form_and_never_below_it(sigma: float) -> None:
    exact = gaussian_epsilon(sigma, delta=DELTA)

    found = epsilon_pld(GaussianDpEvent(sigma), delta=DELTA)

    assert exact <= found <= exact * 1.001 + 1e-3


def test_many_gaussians_cost_what_one_of_less_noise_costs() -> None:
    many = epsilon_pld(SelfComposedDpEvent(GaussianDpEvent(8.0), 16), delta=DELTA)

    assert many == pytest.approx(gaussian_epsilon(2.0, delta=DELTA), rel=1e-3)


@pytest.mark.parametrize(
    "event",
    [sgd(1.0), sgd(3.0, q=0.01, steps=1000), ComposedDpEvent([sgd(2.0), GaussianDpEvent(4.0)])],
    ids=["sgd", "long", "with release"],
)
def test_admission_lies_above_pld_by_less_than_a_quarter(event: DpEvent) -> None:
    pld = epsilon_pld(event, delta=DELTA)

    admission = epsilon_admission([event], delta=DELTA)

    assert pld < admission < 1.25 * pld


def test_admission_adds_curves_and_is_below_the_sum_of_epsilons() -> None:
    first, second = sgd(2.0), sgd(3.0, q=0.2)
    together = epsilon_admission([first, second], delta=DELTA)

    assert together == epsilon_admission([ComposedDpEvent([second, first])], delta=DELTA)
    assert epsilon_admission([first], delta=DELTA) < together
    assert together < epsilon_admission([first], delta=DELTA) + epsilon_admission(
        [second], delta=DELTA
    )


def test_no_event_costs_nothing() -> None:
    assert epsilon_admission([], delta=DELTA) == 0.0


def test_rounds_charged_one_by_one_come_to_the_reservation() -> None:
    whole = epsilon_admission([sgd(2.0, steps=60)], delta=DELTA)
    rounds = [sgd(2.0, steps=4) for _ in range(15)]

    assert epsilon_admission(rounds, delta=DELTA) == whole
    assert epsilon_pld(ComposedDpEvent(rounds), delta=DELTA) == epsilon_pld(
        sgd(2.0, steps=60), delta=DELTA
    )


def test_too_little_noise_is_infinite_and_not_an_error_or_zero() -> None:
    event = sgd(0.05, q=1.0, steps=1_000_000)

    assert epsilon_pld(event, delta=DELTA) == math.inf
    assert epsilon_admission([event], delta=DELTA) > 1e6


def test_a_negative_or_undefined_divergence_is_never_read_as_no_cost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The library takes a negative Renyi divergence for epsilon 0; that order must not be used."""
    accounting._curve.cache_clear()
    real = RdpAccountant.rdp.fget(RdpAccountant(accounting.ORDERS).compose(GaussianDpEvent(3.3)))
    broken = real.copy()
    broken[:50] = -1e-3
    broken[50:60] = np.nan
    monkeypatch.setattr(RdpAccountant, "rdp", property(lambda self: broken))

    found = epsilon_admission([GaussianDpEvent(3.3)], delta=DELTA)

    monkeypatch.undo()
    accounting._curve.cache_clear()
    assert found >= epsilon_admission([GaussianDpEvent(3.3)], delta=DELTA) > 0


def test_an_order_that_does_not_converge_is_dropped_without_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    accounting._curve.cache_clear()
    with caplog.at_level(logging.WARNING, logger="absl"):
        epsilon = epsilon_admission([sgd(8.0, q=0.5, steps=100)], delta=DELTA)

    assert 0 < epsilon < math.inf
    assert not [r for r in caplog.records if "converge" in r.getMessage()]


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, float("nan")])
def test_a_delta_outside_0_and_1_is_refused(delta: float) -> None:
    with pytest.raises(ConfigError, match="delta"):
        epsilon_pld(sgd(2.0), delta=delta)
    with pytest.raises(ConfigError, match="delta"):
        epsilon_admission([sgd(2.0)], delta=delta)


@pytest.mark.parametrize("kind", ["admission", "pld"])
@pytest.mark.parametrize("releases", [(), (RELEASE,)], ids=["training", "training and release"])
def test_calibration_gives_the_smallest_noise_that_keeps_the_whole_study_in_budget(
    kind: accounting.EpsilonKind, releases: tuple[BinnedScores, ...]
) -> None:
    noise = calibrate_noise_multiplier(
        epsilon=2.0,
        epsilon_is=kind,
        delta=2e-4,
        sampling_probability=0.1,
        steps=120,
        releases=releases,
    )

    def cost(sigma: float) -> float:
        event = ComposedDpEvent([sgd(sigma, steps=120), *map(release_event, releases)])
        return epsilon_as(kind, event, delta=2e-4)

    assert noise == round(noise, 4)
    assert cost(noise) <= 2.0 < cost(noise - 2e-4)


def test_calibration_is_deterministic() -> None:
    def once() -> float:
        accounting._curve.cache_clear()
        return calibrate_noise_multiplier(
            epsilon=1.0, epsilon_is="admission", delta=1e-4, sampling_probability=0.05, steps=50
        )

    assert once() == once()


def test_releases_that_alone_cost_too_much_are_named() -> None:
    with pytest.raises(ConfigError, match="releases alone cost"):
        calibrate_noise_multiplier(
            epsilon=0.1,
            epsilon_is="admission",
            delta=1e-5,
            sampling_probability=0.1,
            steps=10,
            releases=[BinnedScores(bins=5, noise_multiplier=2.0)],
        )


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("inf"), float("nan")])
def test_an_epsilon_of_zero_or_below_is_refused(epsilon: float) -> None:
    with pytest.raises(ConfigError, match=r"dp\.epsilon"):
        calibrate_noise_multiplier(
            epsilon=epsilon,
            epsilon_is="admission",
            delta=1e-5,
            sampling_probability=0.1,
            steps=10,
        )


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 10.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_the_filter_s_order_leaves_most_room_for_gaussian_mechanisms(
    epsilon: float, delta: float
) -> None:
    """As many charges of one small Gaussian fit as at any other order, to within one in 50."""
    curve = renyi_curve([GaussianDpEvent(200.0)])

    chosen = filter_order(curve, epsilon=epsilon, delta=delta)

    def fitting(order: float) -> float:
        budget = filter_budget(order=order, epsilon=epsilon, delta=delta)
        return budget / divergence_at(curve, order)

    assert fitting(chosen) >= 0.98 * max(fitting(order) for order in ORDERS)


@pytest.mark.parametrize("order", [1.5, 4.0, 32.0])
def test_budget_and_epsilon_of_the_filter_are_each_other_s_inverse(order: float) -> None:
    """Against Canonne, Kamath and Steinke 2020, Proposition 12, written out."""
    divergence, delta = 1.25, 1e-5
    written_out = (
        divergence
        + math.log((order - 1) / order)
        - (math.log(delta) + math.log(order)) / (order - 1)
    )
    curve = np.full(len(ORDERS), divergence)

    found = filter_epsilon(curve, order=order, delta=delta)

    assert found == pytest.approx(written_out)
    assert filter_budget(order=order, epsilon=found, delta=delta) == pytest.approx(divergence)


def test_a_fixed_order_never_costs_less_than_the_best_one_in_hindsight() -> None:
    curve = renyi_curve([GaussianDpEvent(3.0), LaplaceDpEvent(2.0)])

    best = curve_epsilon(curve, delta=1e-5)

    assert best == min(filter_epsilon(curve, order=o, delta=1e-5) for o in ORDERS)


def test_an_order_that_is_not_one_of_the_fixed_ones_is_refused() -> None:
    with pytest.raises(ConfigError, match="Renyi order"):
        filter_epsilon(renyi_curve([]), order=3.14159, delta=1e-5)


@pytest.mark.parametrize("parameter", [0.05, 1.0, 4.0])
def test_the_curve_of_discrete_laplace_is_its_divergence_summed_out(parameter: float) -> None:
    k = np.arange(-2000, 2001)
    normal = math.log((1 - math.exp(-parameter)) / (1 + math.exp(-parameter)))
    here, there = normal - parameter * np.abs(k), normal - parameter * np.abs(k - 1)
    curve = renyi_curve([DiscreteLaplaceDpEvent(parameter, 1)])

    for order in (1.5, 2.0, 8.0, 63.0):
        expected = logsumexp(order * here + (1 - order) * there) / (order - 1)
        assert divergence_at(curve, order) == pytest.approx(expected, rel=1e-6)
