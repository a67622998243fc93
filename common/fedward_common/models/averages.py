"""What a study's final model is: the last one, a mean of the last few, or a moving average.

All of it works on released models: post-processing, free of privacy cost.
"""

from collections import deque
from typing import Protocol

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
        return {
            name: (np.add.reduce([np.float64(m[name]) for m in self._models]) / count).astype(
                np.float32
            )
            for name in self._models[0]
        }


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


class ReleasedModels(Protocol):
    """Turns the models of the rounds into the one that the study gives."""

    def add(self, model: Tensors) -> None:
        """Takes one more released model."""
        ...

    def mean(self) -> dict[str, Array]:
        """The study's model. Raises RuntimeError when no round was committed."""
        ...


def released_models(study: StudySpec) -> ReleasedModels:
    """What the study says its final model is."""
    aggregation = study.aggregation
    return (
        ExponentialAverage(aggregation.ema)
        if aggregation.ema
        else TailAverage(aggregation.average_last)
    )
