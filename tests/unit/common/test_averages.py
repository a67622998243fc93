"""The final model of a study is made of released models only."""

import numpy as np
import pytest

from fedward_common.models.averages import ExponentialAverage, TailAverage, released_models
from tests.support.studies import make_spec


def tensors(*values: float) -> dict[str, np.ndarray]:
    return {"w": np.array(values, dtype=np.float32)}


def test_the_tail_average_keeps_the_last_models_only() -> None:
    tail = TailAverage(2)
    for value in (100.0, 1.0, 3.0):
        tail.add(tensors(value))

    np.testing.assert_allclose(tail.mean()["w"], [2.0])


def test_without_a_committed_round_there_is_no_model() -> None:
    with pytest.raises(RuntimeError, match="no round was committed"):
        TailAverage(3).mean()


def test_the_moving_average_follows_its_formula_and_one_model_is_its_own_average() -> None:
    average = ExponentialAverage(0.9)
    average.add(tensors(5.0))
    first = average.mean()["w"]
    average.add(tensors(1.0))

    np.testing.assert_allclose(first, [5.0], rtol=1e-6)
    np.testing.assert_allclose(average.mean()["w"], [(0.9 * 5 + 1.0) / 1.9], rtol=1e-6)


def test_a_study_names_its_average() -> None:
    moving = make_spec(aggregation={"name": "fedavg", "ema": 0.5})
    tail = make_spec(aggregation={"name": "fedavg", "average_last": 2})

    assert isinstance(released_models(moving), ExponentialAverage)
    assert isinstance(released_models(tail), TailAverage)
    with pytest.raises(ValueError, match="average_last = 1"):
        make_spec(aggregation={"name": "fedavg", "average_last": 2, "ema": 0.5})
