"""What turns the sum of a round into the next model (port)."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedward_common.arrays import Array, Tensors

Wide = npt.NDArray[np.float64]


class ServerOptimiser(Protocol):
    """Turns the mean of the sites' models into the next global model."""

    def step(self, current: Tensors, mean: Tensors, *, share: float = 1.0) -> dict[str, Array]:
        """The next global model. `share`: how much of the public patients is in the mean."""
        ...

    def shared(self) -> dict[str, Array]:
        """What goes to the sites beside the model."""
        ...

    def state(self) -> Mapping[str, Wide]:
        """What it remembers of the steps before."""
        ...

    def restore(self, state: Mapping[str, Wide]) -> None:
        """Goes on where `state` was taken."""
        ...
