"""An optimiser on noisy gradients that lives from round to round: post-processing only.

With distributed noise a round is one step over all hospitals' patients, so momentum and Adam's
moments live from round to round, as they would in one data centre.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedward_common.arrays import Array, Tensors
from fedward_common.study.spec import TrainingSpec

Wide = npt.NDArray[np.float64]
ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8


class PooledDescent:
    """SGD with momentum, or AdamW, in float64; parameters without a gradient stay as they are.

    Source: the update rules of torch.optim.SGD and AdamW, which sites use between exchanges.
    """

    def __init__(self, training: TrainingSpec, *, betas: tuple[float, float] = ADAM_BETAS) -> None:
        self._training, self._betas = training, betas
        self._first: dict[str, Wide] = {}
        self._second: dict[str, Wide] = {}
        self._steps = 0

    def step(self, current: Tensors, gradient: dict[str, Wide], *, rate: float) -> dict[str, Array]:
        """The next model: `current` moved along `gradient`, which names the trained tensors.

        `rate`: the learning rate of this step, by the study's schedule.
        """
        self._steps += 1
        move = self._adam if self._training.optimizer == "adam" else self._sgd
        following = dict(current)
        for name, part in gradient.items():
            value = np.asarray(current[name], dtype=np.float64)
            following[name] = move(name, value, part, rate).astype(np.float32)
        return following

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        """The moments of every tensor and the number of steps."""
        first = {f"first/{name}": value for name, value in self._first.items()}
        second = {f"second/{name}": value for name, value in self._second.items()}
        return {**first, **second, "steps": np.array([self._steps], dtype=np.int64)}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Goes on where `state` was taken."""
        self._steps = int(state["steps"][0])
        for name, value in state.items():
            which, _, tensor = name.partition("/")
            if tensor:
                (self._first if which == "first" else self._second)[tensor] = value

    def _sgd(self, name: str, value: Wide, gradient: Wide, rate: float) -> Wide:
        training = self._training
        gradient = gradient + training.weight_decay * value
        if training.momentum:
            before = self._first.get(name)
            gradient = gradient if before is None else training.momentum * before + gradient
            self._first[name] = gradient
        return value - rate * gradient

    def _adam(self, name: str, value: Wide, gradient: Wide, rate: float) -> Wide:
        training, (beta1, beta2) = self._training, self._betas
        first = beta1 * self._first.get(name, np.zeros_like(value)) + (1 - beta1) * gradient
        second = beta2 * self._second.get(name, np.zeros_like(value)) + (1 - beta2) * gradient**2
        self._first[name], self._second[name] = first, second
        mean = first / (1 - beta1**self._steps)
        spread = np.sqrt(second / (1 - beta2**self._steps))
        decayed = value * (1 - rate * training.weight_decay)
        return decayed - rate * mean / (spread + ADAM_EPSILON)
