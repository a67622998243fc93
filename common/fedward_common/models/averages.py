"""What a study's final model is: the last one, a mean of the last few, or a moving average.

All of it works on released models: post-processing, free of privacy cost.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedward_common.arrays import Array, Tensors
from fedward_common.study.spec import StudySpec

Wide = npt.NDArray[np.float64]


class TailAverage:
    """The mean of the last `count` released models."""

    def __init__(self, count: int) -> None:
        self._models: deque[dict[str, Array]] = deque(maxlen=count)

    def add(self, model: Tensors) -> None:
        """Takes one more released model."""
        self._models.append(dict(model))

    def mean(self) -> dict[str, Array]:
        """The mean of the models kept. Raises RuntimeError when there is none."""
        if not self._models:
            raise RuntimeError("no round was committed, so there is no model to average")
        count = len(self._models)
        if count == 1:
            return dict(self._models[0])
        return {
            name: (np.add.reduce([np.float64(m[name]) for m in self._models]) / count).astype(
                np.float32
            )
            for name in self._models[0]
        }

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        """The models kept, without the newest: that is the study's present model."""
        older = list(self._models)[:-1]
        return {f"{n}/{name}": value for n, one in enumerate(older) for name, value in one.items()}

    def restore(self, state: Mapping[str, npt.NDArray[Any]], newest: Tensors) -> None:
        """Goes on where `state` was taken, when `newest` was the last model added."""
        older: dict[int, dict[str, Array]] = {}
        for name, value in state.items():
            number, _, tensor = name.partition("/")
            older.setdefault(int(number), {})[tensor] = value
        self._models.extend([older[number] for number in sorted(older)])
        self._models.append(dict(newest))


class ExponentialAverage:
    """A moving average of the released models.

    Each model enters with weight 1 - `keep`; the start is corrected for, so that one model is its
    own average.
    """

    def __init__(self, keep: float) -> None:
        self._keep, self._seen = keep, 0
        self._sum: dict[str, Wide] = {}

    def add(self, model: Tensors) -> None:
        """Takes one more released model."""
        self._seen += 1
        for name, value in model.items():
            before = self._sum.get(name, np.zeros(value.shape))
            self._sum[name] = self._keep * before + (1 - self._keep) * np.float64(value)

    def mean(self) -> dict[str, Array]:
        """The average so far. Raises RuntimeError when there is none."""
        if not self._seen:
            raise RuntimeError("no round was committed, so there is no model to average")
        weight = 1 - self._keep**self._seen
        return {name: (total / weight).astype(np.float32) for name, total in self._sum.items()}

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        """The sum and how many models are in it."""
        total: dict[str, npt.NDArray[Any]] = {f"sum/{k}": value for k, value in self._sum.items()}
        return total | {"seen": np.array([self._seen], dtype=np.int64)}

    def restore(self, state: Mapping[str, npt.NDArray[Any]], newest: Tensors) -> None:
        """Goes on where `state` was taken; the newest model is in the sum already."""
        del newest
        self._seen = int(state["seen"][0])
        self._sum = {k.removeprefix("sum/"): v for k, v in state.items() if k != "seen"}


class ReleasedModels(Protocol):
    """Turns the models of the rounds into the one that the study gives."""

    def add(self, model: Tensors) -> None:
        """Takes one more released model."""
        ...

    def mean(self) -> dict[str, Array]:
        """The study's model. Raises RuntimeError when no round was committed."""
        ...

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        """What it remembers, besides the newest model."""
        ...

    def restore(self, state: Mapping[str, npt.NDArray[Any]], newest: Tensors) -> None:
        """Goes on where `state` was taken, when `newest` was the last model added."""
        ...


def released_models(study: StudySpec) -> ReleasedModels:
    """What the study says its final model is."""
    aggregation = study.aggregation
    return (
        ExponentialAverage(aggregation.ema)
        if aggregation.ema
        else TailAverage(aggregation.average_last)
    )
