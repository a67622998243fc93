"""From the sites' models to the next global model: sums first, then a server optimiser.

The sum stands behind the `SecureSum` port: a plain weighted sum here, masked sums later. Weights
are public constants of the study (rules 6, 13), renormalised over the sites that answered.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedward_common.arrays import Array, Tensors
from fedward_common.errors import ProtocolError
from fedward_common.ids import SiteId
from fedward_common.study.spec import FedAdam, StudySpec

Wide = npt.NDArray[np.float64]


class SecureSum(Protocol):
    """Adds the sites' tensors and gives away the weighted mean only."""

    def add(self, site: SiteId, tensors: Tensors) -> None:
        """Adds one site's tensors once. Raises ProtocolError on a second or unknown site."""
        ...

    def mean(self) -> dict[str, Array]:
        """The weighted mean over the sites added. Raises RuntimeError when there is none."""
        ...


class PlainSum:
    """The `SecureSum` in the clear: each reply is added in float64 and dropped."""

    def __init__(self, weights: Mapping[SiteId, float]) -> None:
        self._weights = dict(weights)
        self._total: dict[str, Wide] = {}
        self._added: set[SiteId] = set()

    def add(self, site: SiteId, tensors: Tensors) -> None:
        """Adds one site's tensors once. Raises ProtocolError on a second or unknown site."""
        if site not in self._weights or site in self._added:
            raise ProtocolError(
                f"sum: expected one update of each study site, found another of {site}"
            )
        if self._added and tensors.keys() != self._total.keys():
            raise ProtocolError(
                f"sum: expected tensors {sorted(self._total)}, found {sorted(tensors)}"
            )
        self._added.add(site)
        for name, tensor in tensors.items():
            term = np.multiply(tensor, self._weights[site], dtype=np.float64)
            self._total[name] = self._total[name] + term if name in self._total else term

    def mean(self) -> dict[str, Array]:
        """The weighted mean over the sites added. Raises RuntimeError when there is none."""
        weight = sum(self._weights[site] for site in self._added)
        if weight <= 0:
            raise RuntimeError("a sum over no site has no mean")
        return {name: (total / weight).astype(np.float32) for name, total in self._total.items()}


class ServerOptimiser(Protocol):
    """Turns the mean of the sites' models into the next global model."""

    def step(self, current: Tensors, mean: Tensors) -> dict[str, Array]:
        """The next global model."""
        ...

    def state(self) -> Mapping[str, Wide]:
        """What it remembers of the steps before."""
        ...

    def restore(self, state: Mapping[str, Wide]) -> None:
        """Goes on where `state` was taken."""
        ...


class Replace:
    """FedAvg and FedProx: the mean is the next model. Source: McMahan et al. 2017, algorithm 1."""

    def step(self, current: Tensors, mean: Tensors) -> dict[str, Array]:
        """The mean, unchanged; `current` plays no part."""
        del current
        return dict(mean)

    def state(self) -> Mapping[str, Wide]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Wide]) -> None:
        """Nothing to go on with."""


class AdamStep:
    """FedAdam: Adam on mean - current as gradient. Source: Reddi et al. 2021, algorithm 2."""

    def __init__(self, spec: FedAdam) -> None:
        self._spec = spec
        self._first: dict[str, Wide] = {}
        self._second: dict[str, Wide] = {}

    def step(self, current: Tensors, mean: Tensors) -> dict[str, Array]:
        """current + lr * m / (sqrt(v) + tau), without bias correction as in the paper."""
        spec, following = self._spec, {}
        for name, value in current.items():
            delta = np.subtract(mean[name], value, dtype=np.float64)
            # The paper starts v at tau^2, so that a first tiny delta makes no giant step.
            first = self._first.get(name, np.zeros_like(delta))
            second = self._second.get(name, np.full_like(delta, spec.tau**2))
            self._first[name] = spec.beta1 * first + (1 - spec.beta1) * delta
            self._second[name] = spec.beta2 * second + (1 - spec.beta2) * delta**2
            move = spec.learning_rate * self._first[name] / (np.sqrt(self._second[name]) + spec.tau)
            following[name] = (value + move).astype(np.float32)
        return following

    def state(self) -> Mapping[str, Wide]:
        """Both moments of every tensor."""
        first = {f"first/{name}": value for name, value in self._first.items()}
        return first | {f"second/{name}": value for name, value in self._second.items()}

    def restore(self, state: Mapping[str, Wide]) -> None:
        """Goes on with the moments in `state`."""
        for name, value in state.items():
            which, _, tensor = name.partition("/")
            (self._first if which == "first" else self._second)[tensor] = value


def server_optimiser(study: StudySpec) -> ServerOptimiser:
    """The server optimiser that the study names."""
    return AdamStep(study.aggregation) if isinstance(study.aggregation, FedAdam) else Replace()


def plain_sum(study: StudySpec) -> PlainSum:
    """A fresh sum over the study's sites with its public weights."""
    return PlainSum({SiteId(site.id): study.weight(SiteId(site.id)) for site in study.sites})
