"""The planner's figures against accountants that share no code with ours.

Opacus' PRV accountant gives a proven lower and upper end of the true epsilon, its RDP accountant a
second Renyi figure; the Renyi bound by hand follows Mironov, Talwar and Zhang 2019, section 3.3.
"""

import math
from itertools import pairwise
from typing import Any

import pytest
from opacus.accountants import PRVAccountant, RDPAccountant

from fedward_common.privacy.accounting import calibrate_noise_multiplier
from fedward_common.privacy.plan import (
    PlanOption,
    PlanRequest,
    Schedule,
    alternatives,
    plan_option,
)
from fedward_common.study.evaluation import BinnedScores

RELEASE = BinnedScores(bins=4, noise_multiplier=2.5)
ERROR = 2e-3
REQUESTS = {
    "heart with evaluation": PlanRequest(
        patients=(200, 170, 30, 85),
        epsilon=4.0,
        delta=1e-4,
        schedules=(Schedule(rounds=8, local_steps=5),),
        sampling_probabilities=(0.1, 0.5),
        releases=(RELEASE,),
    ),
    "training only": PlanRequest(
        patients=(3000, 2500),
        epsilon=1.0,
        delta=1e-5,
        schedules=(Schedule(rounds=20, local_steps=10),),
        sampling_probabilities=(0.05,),
    ),
    "by PLD": PlanRequest(
        patients=(400, 400),
        epsilon=2.0,
        epsilon_is="pld",
        delta=1e-4,
        schedules=(Schedule(rounds=10, local_steps=1),),
        sampling_probabilities=(0.2,),
        releases=(RELEASE,),
    ),
}


@pytest.fixture(scope="module")
def plans() -> dict[str, tuple[PlanOption, ...]]:
    return {name: alternatives(request) for name, request in REQUESTS.items()}


def prv_ends(option: PlanOption, request: PlanRequest) -> tuple[float, float]:
    """Between which the true epsilon lies, by Opacus' PRV accountant."""
    accountant = PRVAccountant()
    accountant.history = [(option.noise_multiplier, option.sampling_probability, option.steps)]
    # As good as unsampled: the accountant divides by 1 - q.
    accountant.history += [(noise, 1 - 1e-9, 1) for noise in release_noise(request)]
    error = {"delta_error": option.delta / 1000, "eps_error": ERROR}
    lower, _, upper = accountant._get_dprv(**error).compute_epsilon(option.delta, **error)
    return float(lower), float(upper)


def opacus_rdp(option: PlanOption, request: PlanRequest) -> float:
    accountant = RDPAccountant()
    accountant.history = [(option.noise_multiplier, option.sampling_probability, option.steps)]
    accountant.history += [(noise, 1.0, 1) for noise in release_noise(request)]
    return float(accountant.get_epsilon(option.delta))


def renyi_bound(option: PlanOption, request: PlanRequest) -> float:
    """Whole orders only, and the conversion of Mironov 2017, Proposition 3."""
    q, sigma = option.sampling_probability, option.noise_multiplier
    bounds = []
    for order in range(2, 200):
        terms = [
            math.log(math.comb(order, k))
            + k * math.log(q)
            + (order - k) * math.log1p(-q)
            + k * (k - 1) / (2 * sigma**2)
            for k in range(order + 1)
        ]
        largest = max(terms)
        step = largest + math.log(sum(math.exp(term - largest) for term in terms))
        divergence = option.steps * step / (order - 1)
        divergence += sum(order / (2 * noise**2) for noise in release_noise(request))
        bounds.append(divergence + math.log(1 / option.delta) / (order - 1))
    return min(bounds)


def release_noise(request: PlanRequest) -> list[float]:
    return [r.noise_multiplier for r in request.releases if isinstance(r, BinnedScores)]


@pytest.mark.parametrize("name", REQUESTS)
def test_the_pld_figure_is_never_below_the_tightest_and_within_one_percent_of_it(
    plans: dict[str, tuple[PlanOption, ...]], name: str
) -> None:
    for option in plans[name]:
        lower, upper = prv_ends(option, REQUESTS[name])

        assert option.epsilon_pld >= lower
        assert option.epsilon_pld <= upper * 1.01


@pytest.mark.parametrize("name", REQUESTS)
def test_the_admission_figure_lies_between_pld_and_the_renyi_bound_by_hand(
    plans: dict[str, tuple[PlanOption, ...]], name: str
) -> None:
    for option in plans[name]:
        bound = renyi_bound(option, REQUESTS[name])

        assert option.epsilon_pld <= option.epsilon_admission <= bound
        assert option.epsilon_admission == pytest.approx(
            opacus_rdp(option, REQUESTS[name]), rel=0.01
        )


@pytest.mark.parametrize("name", REQUESTS)
def test_no_accountant_that_is_tight_finds_a_plan_above_its_target(
    plans: dict[str, tuple[PlanOption, ...]], name: str
) -> None:
    request = REQUESTS[name]

    for option in plans[name]:
        meant = option.epsilon_pld if request.epsilon_is == "pld" else option.epsilon_admission

        assert meant <= request.epsilon
        assert prv_ends(option, request)[0] <= request.epsilon


@pytest.mark.parametrize("name", REQUESTS)
def test_the_noise_is_the_smallest_that_meets_the_target_and_that_of_signing(
    plans: dict[str, tuple[PlanOption, ...]], name: str
) -> None:
    request = REQUESTS[name]
    option = plans[name][0]

    less = plan_option(
        request,
        schedule=option.schedule,
        sampling_probability=option.sampling_probability,
        noise_multiplier=option.noise_multiplier - 1e-4,
    )
    signed = calibrate_noise_multiplier(
        epsilon=request.epsilon,
        epsilon_is=request.epsilon_is,
        delta=request.delta,
        sampling_probability=option.sampling_probability,
        steps=option.steps,
        releases=request.releases,
    )

    meant = less.epsilon_pld if request.epsilon_is == "pld" else less.epsilon_admission
    assert meant > request.epsilon * (1 - 1e-6)
    assert option.noise_multiplier == signed


def test_more_noise_costs_less_by_both_accountants() -> None:
    request = REQUESTS["heart with evaluation"]

    priced = [
        plan_option(
            request,
            schedule=request.schedules[0],
            sampling_probability=0.1,
            noise_multiplier=noise,
        )
        for noise in (0.8, 1.0, 2.0, 16.0)
    ]

    for less, more in pairwise(priced):
        assert more.epsilon_admission < less.epsilon_admission
        assert more.epsilon_pld < less.epsilon_pld


@pytest.mark.parametrize(
    "changes", [{"epsilon": 2.0}, {"delta": 1e-5}, {"releases": (RELEASE, RELEASE)}]
)
def test_a_harder_request_needs_more_noise(changes: dict[str, Any]) -> None:
    values: dict[str, Any] = {
        "patients": (200, 200),
        "epsilon": 4.0,
        "delta": 1e-4,
        "releases": (RELEASE,),
    }
    schedule = Schedule(rounds=4, local_steps=5)

    easy, hard = (
        plan_option(PlanRequest(**asked), schedule=schedule, sampling_probability=1.0)
        for asked in (values, values | changes)
    )

    assert hard.noise_multiplier > easy.noise_multiplier
