"""`fedward-server plan`: from a study file or from numbers, for people and for machines."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedward_common.errors import ConfigError
from fedward_common.privacy.accounting import calibrate_noise_multiplier
from fedward_common.privacy.plan import Schedule
from fedward_server.plan_command import (
    Plan,
    PlanProgress,
    parse_schedule,
    plan_from_arguments,
    plan_from_numbers,
    plan_from_study,
    plan_json,
    print_plan,
)
from tests.support.studies import STUDY_FILES, load_example

HEART = STUDY_FILES / "heart.toml"


def by_hand(**changes: Any) -> Plan:
    """Two schedules with everybody in every step."""
    values: dict[str, Any] = {
        "epsilon": 4.0,
        "delta": 1e-4,
        "steps": ["20", "4x8"],
        "sampling": [1.0],
        "evaluation_noise": 2.0,
    }
    return plan_from_numbers("200,170,30,85", **(values | changes))


def quick_text(budget: str = "epsilon = 4.0") -> str:
    """The heart study with everybody in every step: the cheapest to account for."""
    text = HEART.read_text(encoding="utf-8")
    changed = text.replace("sampling_probability = 0.5", "sampling_probability = 1.0")
    assert changed != text
    return changed.replace("epsilon = 4.0", budget)


def printed(plan: Plan) -> str:
    console = Console(file=io.StringIO(), width=80)
    print_plan(plan, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def heart() -> Plan:
    return plan_from_study(HEART, steps=["2x8"], sampling=[1.0])


def test_a_study_file_says_patients_budget_and_releases(heart: Plan) -> None:
    study = load_example("heart", noise_multiplier=4.0)

    assert heart.study_id == "heart"
    assert heart.sites == tuple(site.id for site in study.sites)
    assert heart.request.patients == tuple(site.patients for site in study.sites)
    assert (heart.request.epsilon, heart.request.delta) == (4.0, 1e-4)
    assert heart.request.epsilon_is == "admission"
    assert heart.request.releases == study.releases


def test_the_studys_own_plan_has_exactly_the_noise_that_its_signer_gets(heart: Plan) -> None:
    study = load_example("heart", noise_multiplier=4.0)

    signed = calibrate_noise_multiplier(
        epsilon=4.0,
        epsilon_is="admission",
        delta=1e-4,
        sampling_probability=0.5,
        steps=40,
        releases=study.releases,
    )

    assert heart.own is not None
    assert heart.own in heart.options
    assert heart.own.noise_multiplier == signed
    assert heart.own.schedule == Schedule(rounds=5, local_steps=8)
    assert heart.own.epsilon_pld < heart.own.epsilon_admission <= 4.0


def test_its_alternatives_are_the_asked_schedules_and_sampling_besides_its_own(heart: Plan) -> None:
    places = {(o.schedule.rounds, o.sampling_probability) for o in heart.options}

    assert places == {(5, 0.5), (5, 1.0), (2, 0.5), (2, 1.0)}


def test_left_to_itself_half_and_twice_the_rounds_are_tried() -> None:
    plan = plan_from_study(quick_text(), sampling=[1.0])

    assert {o.schedule for o in plan.options} == {
        Schedule(rounds=rounds, local_steps=8) for rounds in (2, 5, 10)
    }


def test_a_study_that_names_its_noise_is_priced_with_that_noise() -> None:
    text = quick_text("noise_multiplier = 9.5")

    plan = plan_from_study(text, steps=["5x8"], sampling=[1.0])

    assert plan.own is not None
    assert plan.own.noise_multiplier == 9.5
    assert plan.own.epsilon_admission <= plan.request.epsilon < 4.0
    assert plan.options == (plan.own,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rounds = ", "expected TOML"),
        ('sites = "north"', "study: "),
        ('[[sites]]\nid = "No Label"\npatients = 5', "study: "),
        ("[[sites]]\nid = 5", "study: "),
    ],
)
def test_a_wrong_study_file_is_explained(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_from_study(text)


def test_a_study_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: expected a readable file"):
        plan_from_study(tmp_path / "absent.toml")


def test_numbers_by_hand_give_the_same_options_as_a_study_with_them() -> None:
    from_study = plan_from_study(quick_text(), steps=["5x8"], sampling=[1.0])
    from_numbers = by_hand(steps=["5x8"])

    assert from_numbers.options == from_study.options


def test_json_carries_every_figure_and_both_epsilons(heart: Plan) -> None:
    value = json.loads(json.dumps(plan_json(heart), allow_nan=False))
    own = [option for option in value["options"] if option["own"]]

    assert value["format"] == "fedward-plan/1"
    assert value["epsilon_is"] == "admission"
    assert value["sites"][0] == {"id": "cleveland", "patients": 200}
    assert value["patients"] == 485
    assert value["releases"] == [{"kind": "binned-scores", "bins": 4, "noise_multiplier": 2.0}]
    assert len(own) == 1
    assert heart.own is not None
    assert own[0] == {
        "own": True,
        "noise_multiplier": heart.own.noise_multiplier,
        "sampling_probability": 0.5,
        "steps": 40,
        "rounds": 5,
        "local_steps": 8,
        "patients_per_step": 242.5,
        "patients_per_step_per_site": [100.0, 85.0, 15.0, 42.5],
        "epsilon_admission": heart.own.epsilon_admission,
        "epsilon_pld": heart.own.epsilon_pld,
        "delta": 1e-4,
        "relative_noise": heart.own.relative_noise,
        "relative_noise_per_site": list(heart.own.site_noise),
        "federation_noise": heart.own.federation_noise,
        "signal_to_noise": heart.own.signal_to_noise,
    }


def test_the_table_shows_both_epsilons_side_by_side_at_their_delta(heart: Plan) -> None:
    text = printed(heart)
    (own,) = (line for line in text.splitlines() if line.split()[:1] == ["study"] and " x " in line)

    # Epsilons rounded up.
    assert " ".join(own.split()) == "study 5 x 8 0.5 242.5 3.9793 4.000 3.627 0.0164 192.7"
    assert "admission" in text
    assert "PLD" in text
    assert "delta 1e-4" in text
    assert "zurich-basel" in text


def test_the_tables_fit_eighty_columns(heart: Plan) -> None:
    assert max(len(line) for line in printed(heart).splitlines()) <= 80
    assert "…" not in printed(heart)


def test_a_plan_without_evaluation_says_that_one_costs_extra() -> None:
    without, with_one = by_hand(evaluation_noise=None), by_hand()

    assert "No evaluation is in this budget" in printed(without)
    assert "training only" in printed(without)
    assert "No evaluation is in this budget" not in printed(with_one)
    assert without.options[0].noise_multiplier < with_one.options[0].noise_multiplier


def test_left_out_combinations_are_counted() -> None:
    plan = by_hand(epsilon=0.2, evaluation_noise=None, steps=["20", "1000x1000"])

    assert len(plan.options) == 1
    assert "1 combination(s) left out" in printed(plan)


@pytest.mark.parametrize("patients", ["", "200,", "200;170", "many", "1.5"])
def test_patients_that_are_no_numbers_are_refused(patients: str) -> None:
    with pytest.raises(ConfigError, match="--patients: expected whole numbers"):
        plan_from_numbers(patients, epsilon=4.0, delta=1e-4)


@pytest.mark.parametrize("noise", [0.0, -1.0, float("nan"), float("inf")])
def test_evaluation_noise_out_of_range_is_refused(noise: float) -> None:
    with pytest.raises(ConfigError, match="--evaluation-noise: expected"):
        by_hand(evaluation_noise=noise)


@pytest.mark.parametrize(
    ("text", "rounds", "local_steps"), [("40", 8, 5), (" 8x5 ", 8, 5), ("5x8", 5, 8), ("7", 7, 1)]
)
def test_schedules_are_steps_or_rounds_of_steps(text: str, rounds: int, local_steps: int) -> None:
    assert parse_schedule(text) == Schedule(rounds=rounds, local_steps=local_steps)


@pytest.mark.parametrize("text", ["", "x", "8x", "x5", "-8", "8x5x2", "1e3", "0", "8x0"])
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="steps: expected"):
        parse_schedule(text)


def test_a_study_file_and_numbers_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"found both; leave out --epsilon"):
        plan_from_arguments(HEART, patients=None, epsilon=4.0, delta=None)


@pytest.mark.parametrize("missing", ["patients", "epsilon", "delta"])
def test_without_a_study_file_all_three_numbers_are_needed(missing: str) -> None:
    given: dict[str, Any] = {"patients": "100", "epsilon": 1.0, "delta": 1e-4, missing: None}

    with pytest.raises(ConfigError, match="expected a study file, or --patients"):
        plan_from_arguments(None, **given)


def test_arguments_by_hand_reach_the_planner() -> None:
    plan = plan_from_arguments(
        None,
        patients="200,170,30,85",
        epsilon=4.0,
        delta=1e-4,
        steps=["20", "4x8"],
        sampling=[1.0],
        evaluation_noise=2.0,
    )

    assert plan == by_hand()


class Clock:
    """Seconds that tests set."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize(
    ("terminal", "seconds", "shown"), [(True, 2.1, True), (True, 1.9, False), (False, 9.0, False)]
)
def test_a_bar_appears_on_a_terminal_after_two_seconds(
    terminal: bool, seconds: float, shown: bool
) -> None:
    stream, clock = io.StringIO(), Clock()
    console = Console(file=stream, force_terminal=terminal, width=80)

    with PlanProgress(console, now=clock) as bar:
        bar.update(0, 12)
        clock.seconds = seconds
        bar.update(3, 12)

    assert ("calibrating plans" in stream.getvalue()) == shown


def test_a_study_of_statistics_has_no_plan_to_choose() -> None:
    with pytest.raises(ConfigError, match=r"expected a study that trains .*'releases-only'"):
        plan_from_study(STUDY_FILES / "heart-statistics.toml")
