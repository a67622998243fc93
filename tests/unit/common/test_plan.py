"""What a privacy budget buys: the planner's options, their order and what it refuses."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fedward_common.errors import ConfigError
from fedward_common.privacy.accounting import calibrate_noise_multiplier
from fedward_common.privacy.plan import (
    PlanOption,
    PlanRequest,
    Schedule,
    alternatives,
    delta_limit,
    plan_option,
)
from fedward_common.study.evaluation import BinnedScores
from fedward_common.study.registry import ReleaseSpec
from fedward_common.study.spec import DpSgd
from tests.support.studies import make_dp, make_spec

PATIENTS = (200, 170, 30, 85)
RELEASE = BinnedScores(bins=4, noise_multiplier=2.0)
FOUR = Schedule(rounds=4, local_steps=5)
EIGHT = Schedule(rounds=8, local_steps=5)


def make_request(**changes: Any) -> PlanRequest:
    values: dict[str, Any] = {
        "patients": PATIENTS,
        "epsilon": 4.0,
        "delta": 1e-4,
        "schedules": (FOUR, EIGHT),
        "sampling_probabilities": (0.25, 1.0),
        "releases": (RELEASE,),
    }
    return PlanRequest(**(values | changes))


def make_option(**changes: Any) -> PlanOption:
    values: dict[str, Any] = {
        "patients": PATIENTS,
        "sampling_probability": 0.5,
        "schedule": EIGHT,
        "noise_multiplier": 4.0,
        "delta": 1e-4,
        "epsilon_admission": 4.0,
        "epsilon_pld": 3.6,
    }
    return PlanOption(**(values | changes))


@pytest.fixture(scope="module")
def options() -> tuple[PlanOption, ...]:
    return alternatives(make_request())


def test_every_combination_is_listed_once_best_signal_to_noise_first(
    options: tuple[PlanOption, ...],
) -> None:
    places = {(option.schedule, option.sampling_probability) for option in options}
    ratios = [float(f"{option.signal_to_noise:.3g}") for option in options]

    assert places == {(s, q) for s in (FOUR, EIGHT) for q in (0.25, 1.0)}
    assert len(options) == 4
    assert ratios == sorted(ratios, reverse=True)


def test_of_equally_good_plans_the_one_with_fewer_steps_comes_first(
    options: tuple[PlanOption, ...],
) -> None:
    # With everybody in every step, epsilon depends on sqrt(T) / sigma alone.
    full = [option for option in options if option.sampling_probability == 1.0]

    assert full[0].signal_to_noise == pytest.approx(full[1].signal_to_noise, rel=1e-3)
    assert [option.steps for option in full] == [20, 40]


def test_every_option_spends_the_budget_and_not_more(options: tuple[PlanOption, ...]) -> None:
    for option in options:
        assert option.epsilon_pld <= option.epsilon_admission <= 4.0
        assert option.epsilon_admission > 4.0 - 0.01


def test_an_option_has_exactly_the_noise_that_signing_gives(
    options: tuple[PlanOption, ...],
) -> None:
    (option,) = (o for o in options if o.schedule == EIGHT and o.sampling_probability == 0.25)

    signed = calibrate_noise_multiplier(
        epsilon=4.0,
        epsilon_is="admission",
        delta=1e-4,
        sampling_probability=0.25,
        steps=40,
        releases=(RELEASE,),
    )

    assert option.noise_multiplier == signed


def test_equal_requests_give_equal_plans() -> None:
    request = make_request(sampling_probabilities=(1.0,))

    assert alternatives(request) == alternatives(request)


def test_rounds_cost_what_their_steps_cost() -> None:
    request = make_request(sampling_probabilities=(1.0,))

    few, many = (
        plan_option(request, schedule=schedule, sampling_probability=1.0)
        for schedule in (Schedule(rounds=2, local_steps=20), Schedule(rounds=40, local_steps=1))
    )

    assert few.noise_multiplier == many.noise_multiplier
    assert few.epsilon_pld == many.epsilon_pld


def test_a_release_is_paid_from_the_same_budget() -> None:
    with_release, without = (
        plan_option(make_request(releases=r), schedule=FOUR, sampling_probability=1.0)
        for r in ((RELEASE,), ())
    )

    assert with_release.noise_multiplier > without.noise_multiplier
    assert with_release.epsilon_admission <= 4.0


def test_epsilon_as_pld_needs_less_noise_and_meets_the_target_by_pld() -> None:
    admission, pld = (
        plan_option(make_request(epsilon_is=kind), schedule=FOUR, sampling_probability=1.0)
        for kind in ("admission", "pld")
    )

    assert pld.noise_multiplier < admission.noise_multiplier
    assert pld.epsilon_pld <= 4.0 < pld.epsilon_admission


def test_epsilon_means_admission_unless_said_otherwise() -> None:
    assert PlanRequest(patients=(100,), epsilon=1.0, delta=1e-4).epsilon_is == "admission"


def test_given_noise_is_priced_as_it_is_also_above_the_budget() -> None:
    option = plan_option(
        make_request(), schedule=FOUR, sampling_probability=1.0, noise_multiplier=1.0
    )

    assert option.noise_multiplier == 1.0
    assert option.epsilon_admission > 4.0


def test_batches_are_q_times_the_patients() -> None:
    option = make_option(sampling_probability=0.1)

    assert option.site_batches == pytest.approx((20.0, 17.0, 3.0, 8.5))
    assert option.batch == pytest.approx(48.5)


def test_the_noise_figures_are_what_sites_that_add_their_own_noise_produce() -> None:
    option = make_option()
    noise = np.random.default_rng(1).normal(size=(100_000, len(PATIENTS)))

    site_means = option.noise_multiplier * noise / np.array(option.site_batches)
    federation = site_means @ (np.array(PATIENTS) / sum(PATIENTS))

    assert site_means.std(axis=0) == pytest.approx(option.site_noise, rel=0.02)
    assert federation.std() == pytest.approx(option.federation_noise, rel=0.02)
    assert option.relative_noise == pytest.approx(4.0 / (0.5 * 485))
    assert option.federation_noise == pytest.approx(2 * option.relative_noise)


def test_signal_to_noise_is_that_of_steps_that_all_pull_one_way() -> None:
    option = make_option()
    noise = np.random.default_rng(2).normal(size=(20_000, option.steps))

    total = (1 + option.federation_noise * noise).sum(axis=1)

    assert total.mean() / total.std() == pytest.approx(option.signal_to_noise, rel=0.02)


@pytest.mark.parametrize(
    ("patients", "limit"), [(485, 1 / 4850), (9_999, 1 / 99_990), (10_000, 1e-5), (10**6, 1e-5)]
)
def test_delta_is_bounded_by_the_patients_and_by_1e_5_for_large_studies(
    patients: int, limit: float
) -> None:
    assert delta_limit(patients) == limit
    assert make_request(patients=(patients,), delta=limit).delta == limit
    with pytest.raises(ConfigError, match="delta: expected above 0 and at most"):
        make_request(patients=(patients,), delta=limit * 1.01)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.01, 3.0])
def test_the_planner_and_a_study_allow_the_same_delta(factor: float) -> None:
    delta = factor / 2000  # make_spec has four sites of 50 patients
    dp = DpSgd.model_validate(make_dp(delta=delta))

    def refused(build: Any) -> bool:
        try:
            build()
        except ValueError as error:
            return "dp.delta" in str(error)
        except ConfigError as error:
            return str(error).startswith("delta")
        return False

    assert refused(lambda: make_spec(dp=dp.model_dump())) == refused(
        lambda: make_request(patients=(50,) * 4, delta=delta)
    )
    assert refused(lambda: make_request(patients=(50,) * 4, delta=delta)) == (factor > 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patients": ()}, "patients: expected"),
        ({"patients": (10, 0)}, "patients: expected"),
        ({"patients": (10**400,)}, "patients: expected"),
        ({"epsilon": 0.0}, "epsilon: expected"),
        ({"epsilon": math.nan}, "epsilon: expected"),
        ({"epsilon": math.inf}, "epsilon: expected"),
        ({"delta": 0.0}, "delta: expected"),
        ({"delta": math.nan}, "delta: expected"),
        ({"sampling_probabilities": (1.1,)}, "sampling probability: expected"),
        ({"sampling_probabilities": (0.0,)}, "sampling probability: expected"),
        ({"sampling_probabilities": (math.nan,)}, "sampling probability: expected"),
        ({"sampling_probabilities": ()}, "alternatives: expected"),
        ({"schedules": ()}, "alternatives: expected"),
        ({"schedules": (FOUR,) * 201, "sampling_probabilities": (1.0,)}, "alternatives: expected"),
    ],
)
def test_a_request_out_of_range_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_request(**changes)


def test_releases_that_leave_nothing_for_training_are_refused_with_their_price() -> None:
    request = make_request(releases=(BinnedScores(bins=4, noise_multiplier=0.5),))

    with pytest.raises(ConfigError, match=r"the releases alone cost \(9\.650 at delta"):
        alternatives(request)


def test_a_release_without_known_accounting_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"releases\.kind: expected a release with known"):
        alternatives(make_request(releases=(ReleaseSpec(kind="exact-mean"),)))


def test_combinations_that_no_noise_brings_into_the_budget_are_left_out() -> None:
    # Noise of at most 10,000: a million full steps cost more than 0.2, twenty do not.
    endless = Schedule(rounds=1000, local_steps=1000)
    request = make_request(
        epsilon=0.2, releases=(), sampling_probabilities=(1.0,), schedules=(FOUR, endless)
    )

    assert [option.schedule for option in alternatives(request)] == [FOUR]
    with pytest.raises(ConfigError, match="expected enough for some plan"):
        alternatives(
            make_request(
                epsilon=0.2, releases=(), sampling_probabilities=(1.0,), schedules=(endless,)
            )
        )


def test_a_known_plan_stands_in_for_its_combination() -> None:
    known = make_option(schedule=FOUR, sampling_probability=1.0, noise_multiplier=9.0)
    request = make_request(schedules=(FOUR,), sampling_probabilities=(1.0,))

    assert alternatives(request, known=(known,)) == (known,)


def test_progress_counts_every_plan() -> None:
    told: list[tuple[int, int]] = []

    alternatives(
        make_request(sampling_probabilities=(1.0,)),
        progress=lambda done, total: told.append((done, total)),
    )

    assert told == [(0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("steps", "rounds", "local_steps"), [(40, 8, 5), (37, 37, 1), (3, 1, 3), (8, 2, 4), (1, 1, 1)]
)
def test_steps_are_split_into_even_rounds_of_at_most_five(
    steps: int, rounds: int, local_steps: int
) -> None:
    schedule = Schedule.of_steps(steps)

    assert (schedule.rounds, schedule.local_steps) == (rounds, local_steps)
    assert schedule.steps == steps


@pytest.mark.parametrize(("rounds", "local_steps"), [(0, 1), (1, 0), (1001, 1000), (-1, -1)])
def test_a_schedule_out_of_range_is_refused(rounds: int, local_steps: int) -> None:
    with pytest.raises(ConfigError, match="steps: expected"):
        Schedule(rounds=rounds, local_steps=local_steps)


@pytest.mark.parametrize("steps", [0, -5, 1_000_001])
def test_a_number_of_steps_out_of_range_is_refused(steps: int) -> None:
    with pytest.raises(ConfigError, match="steps: expected"):
        Schedule.of_steps(steps)


def test_less_frequent_sampling_never_gives_more_signal_for_the_same_budget(
    options: tuple[PlanOption, ...],
) -> None:
    for schedule in (FOUR, EIGHT):
        by_q = sorted(
            (o for o in options if o.schedule == schedule), key=lambda o: o.sampling_probability
        )

        assert all(a.signal_to_noise < b.signal_to_noise for a, b in pairwise(by_q))
