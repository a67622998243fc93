"""The benchmark of rounds stands in for the trainer: it must take what the trainer takes."""

import inspect

from benchmarks.rounds.sites import Echo
from fedward_client.training.trainer import LocalTrainer


def test_the_benchmark_s_trainer_takes_what_the_real_one_takes() -> None:
    real, echo = (inspect.signature(one.train).parameters for one in (LocalTrainer, Echo))

    assert list(echo) == list(real)
    assert [one.kind for one in echo.values()] == [one.kind for one in real.values()]
