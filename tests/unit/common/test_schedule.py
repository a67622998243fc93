"""Learning rates: functions of the step's number, at sites and coordinator alike."""

import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fedward_common.models.pooled_descent import PooledDescent
from fedward_common.study.schedule import Schedule
from tests.support.studies import make_dp, make_spec

TRAINING: dict[str, Any] = {"learning_rate": 2.0, "momentum": 0.0, "weight_decay": 0.0}


def parts(steps: int, **fields: Any) -> list[float]:
    schedule = Schedule.model_validate(fields)
    return [schedule.part(step, steps=steps) for step in range(steps)]


def test_a_warm_up_rises_in_equal_parts_to_the_whole() -> None:
    assert parts(6, warm_up=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_cosine_falls_from_the_whole_to_its_last_part() -> None:
    assert parts(5, kind="cosine") == pytest.approx(
        [(1 + math.cos(math.pi * n / 4)) / 2 for n in range(5)]
    )
    assert parts(5, kind="cosine", last=0.2)[-1] == pytest.approx(0.2)
    assert parts(4, kind="cosine", warm_up=3) == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])
    # Beyond the last step, as of nothing that a study has, the last one's part.
    assert Schedule(kind="cosine").part(99, steps=5) == 0.0


def test_steps_fall_by_their_factor() -> None:
    found = parts(7, kind="step", warm_up=1, every=2, factor=0.1)

    assert found == pytest.approx([1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"kind": "step"},
        {"kind": "step", "every": 2},
        {"kind": "cosine", "every": 2, "factor": 0.5},
        {"kind": "step", "every": 2, "factor": 1.0},
        {"warm_up": 2, "last": 0.1},
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Schedule.model_validate(fields)


def test_a_round_of_several_steps_goes_on_where_the_one_before_was() -> None:
    study = make_spec(
        training={**TRAINING, "schedule": {"kind": "cosine", "warm_up": 2}},
        rounds=3,
        local_steps=4,
        dp=make_dp(steps=12),
    )

    found = [study.learning_rate(r, step) for r in (1, 2, 3) for step in range(4)]

    assert found == pytest.approx([2.0 * part for part in parts(12, kind="cosine", warm_up=2)])
    with pytest.raises(ValidationError, match="fewer than the study's 12 steps"):
        make_spec(
            training={**TRAINING, "schedule": {"warm_up": 12}},
            rounds=3,
            local_steps=4,
            dp=make_dp(steps=12),
        )


def test_a_study_without_a_schedule_keeps_its_digest_and_its_rate() -> None:
    study = make_spec(training=TRAINING)

    assert "schedule" not in study.model_dump(mode="json")["training"]
    assert study.learning_rate(1) == study.learning_rate(study.rounds) == 2.0
    with pytest.raises(ValidationError, match="no schedule"):
        make_spec(
            training={**TRAINING, "schedule": {"warm_up": 1}}, aggregation={"name": "scaffold"}
        )


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_coordinator_s_step_has_the_rate_of_its_round(optimizer: Any) -> None:
    training = make_spec(training={**TRAINING, "optimizer": optimizer}).training
    model = {"w": np.zeros(3, np.float32)}
    gradient = {"w": np.array([1.0, -2.0, 0.5])}

    whole, half = (
        PooledDescent(training).step(model, dict(gradient), rate=rate)["w"] for rate in (2.0, 1.0)
    )

    np.testing.assert_allclose(whole, 2.0 * half, rtol=1e-6)
    assert np.abs(half).min() > 0
