"""From the sites' models to the next global model: sums first, then a server optimiser.

The sum stands behind the `SecureSum` port: a plain weighted sum here, masked sums later. Weights
are public constants of the study (rules 6, 13), renormalised over the sites that answered.
"""

from collections.abc import Mapping
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from fedward_common.arrays import BLOCK, Array, Tensors, give_back, is_mapped
from fedward_common.errors import ProtocolError
from fedward_common.ids import SiteId
from fedward_common.models.generator_descent import generator_of
from fedward_common.models.registry import model_shapes
from fedward_common.study.inputs import input_size
from fedward_common.study.spec import FedAdam, Scaffold, StudySpec
from fedward_server.generator_step import GeneratorStep
from fedward_server.optimiser_port import ServerOptimiser

Wide = npt.NDArray[np.float64]

BLOCKS: Final = 16
"""After so many slices the memory of mapped files is given back."""


class SecureSum(Protocol):
    """Adds the sites' tensors and gives away the weighted mean only."""

    def add(self, site: SiteId, tensors: Tensors) -> None:
        """Adds one site's tensors once. Raises ProtocolError on a second or unknown site."""
        ...

    def mean(self) -> dict[str, Array]:
        """The weighted mean over the sites added. Raises RuntimeError when there is none."""
        ...


class PlainSum:
    """The `SecureSum` in the clear, in float64: each reply is added and dropped.

    One that is mapped from a file costs no memory as long as nobody reads it: it is added when the
    mean is taken, slice by slice with the others, so that no sum of the model's size is ever made.
    """

    def __init__(self, weights: Mapping[SiteId, float]) -> None:
        self._weights = dict(weights)
        self._total: dict[str, Wide] = {}
        self._mapped: list[tuple[float, Tensors]] = []
        self._names: set[str] = set()
        self._added: set[SiteId] = set()
        self._mean: dict[str, Array] = {}

    def add(self, site: SiteId, tensors: Tensors) -> None:
        """Adds one site's tensors once. Raises ProtocolError on a second or unknown site."""
        if self._mean:
            raise RuntimeError("a sum whose mean was taken takes nothing more")
        if site not in self._weights or site in self._added:
            raise ProtocolError(
                f"sum: expected one update of each study site, found another of {site}"
            )
        if self._added and tensors.keys() != self._names:
            raise ProtocolError(
                f"sum: expected tensors {sorted(self._names)}, found {sorted(tensors)}"
            )
        self._added.add(site)
        self._names = set(tensors)
        weight = self._weights[site]
        if tensors and all(is_mapped(tensor) for tensor in tensors.values()):
            self._mapped.append((weight, tensors))
            give_back(next(iter(tensors.values())))  # it was looked at before
            return
        for name, tensor in tensors.items():
            if name not in self._total:
                self._total[name] = np.zeros(tensor.shape, dtype=np.float64)
            total, term = self._total[name].reshape(-1), tensor.reshape(-1)
            for start in range(0, total.size, BLOCK):
                part = slice(start, start + BLOCK)
                total[part] += np.multiply(term[part], weight, dtype=np.float64)

    def mean(self) -> dict[str, Array]:
        """The weighted mean over the sites added. Raises RuntimeError when there is none.

        It takes the sum's place in memory: nothing can be added any more.
        """
        weight = sum(self._weights[site] for site in self._added)
        if weight <= 0:
            raise RuntimeError("a sum over no site has no mean")
        if not self._mean and self._mapped:
            self._mean = {name: self._sliced(name, weight) for name in self._mapped[0][1]}
        elif not self._mean:
            self._mean = {name: _narrowed(one, weight) for name, one in self._total.items()}
        self._total, self._mapped = {}, []
        return dict(self._mean)

    def _sliced(self, name: str, weight: float) -> Array:
        """The mean of one tensor, of which a slice at a time exists in float64."""
        terms = [(share, tensors[name].reshape(-1)) for share, tensors in self._mapped]
        shape = self._mapped[0][1][name].shape
        before = self._total[name].reshape(-1) if name in self._total else None
        mean = np.empty(terms[0][1].size, dtype=np.float32)
        wide, scaled = np.empty((2, min(BLOCK, mean.size)), dtype=np.float64)
        for number, start in enumerate(range(0, mean.size, BLOCK), start=1):
            part = slice(start, min(start + BLOCK, mean.size))
            total, one = wide[: part.stop - start], scaled[: part.stop - start]
            total[:] = 0.0 if before is None else before[part]
            for share, term in terms:
                total += np.multiply(term[part], share, out=one, dtype=np.float64)
            total /= weight
            mean[part] = total
            if number % BLOCKS == 0 or part.stop == mean.size:
                for _, term in terms:
                    give_back(term)
        return mean.reshape(shape)


def _narrowed(total: Wide, weight: float) -> Array:
    """total / weight as float32, in the first half of the memory of `total`, which is lost."""
    wide = total.reshape(-1)
    narrow = wide.view(np.float32)[: wide.size]
    for start in range(0, wide.size, BLOCK):
        part = slice(start, start + BLOCK)
        narrow[part] = (wide[part] / weight).astype(np.float32)  # ends where `part` was read
    return narrow.reshape(total.shape)


class Replace:
    """FedAvg, FedProx, FedBN: the mean is the next model. Source: McMahan et al. 2017, algorithm 1.

    What is not in the mean (FedBN: the sites' own layers) stays as it is.
    """

    def step(self, current: Tensors, mean: Tensors, *, share: float = 1.0) -> dict[str, Array]:
        """The mean, unchanged."""
        del share
        return {**current, **mean}

    def shared(self) -> dict[str, Array]:
        """Nothing."""
        return {}

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

    def step(self, current: Tensors, mean: Tensors, *, share: float = 1.0) -> dict[str, Array]:
        """current + lr * m / (sqrt(v) + tau), without bias correction as in the paper."""
        del share
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

    def shared(self) -> dict[str, Array]:
        """Nothing."""
        return {}

    def state(self) -> Mapping[str, Wide]:
        """Both moments of every tensor."""
        first = {f"first/{name}": value for name, value in self._first.items()}
        return first | {f"second/{name}": value for name, value in self._second.items()}

    def restore(self, state: Mapping[str, Wide]) -> None:
        """Goes on with the moments in `state`, and no others."""
        self._first, self._second = {}, {}
        for name, value in state.items():
            which, _, tensor = name.partition("/")
            (self._first if which == "first" else self._second)[tensor] = value


class ScaffoldStep:
    """SCAFFOLD: the mean is the next model, and the shared control variate follows from it.

    Shared = the sites' own control variates, weighted by their public patients, where absent sites
    keep theirs. The mean of the released models is enough to follow it: the coordinator needs no
    site's variate, so a secure sum hides those as well. It is a function of released sums only.
    Source: Karimireddy et al. 2020, algorithm 1, option II, global rate 1.
    """

    def __init__(self, study: StudySpec) -> None:
        self._reach = study.local_steps * study.training.learning_rate
        shapes = model_shapes(study.model, inputs=input_size(study.data))
        self._shared: dict[str, Wide] = {name: np.zeros(shape) for name, shape in shapes.items()}

    def step(self, current: Tensors, mean: Tensors, *, share: float = 1.0) -> dict[str, Array]:
        """The mean; shared becomes (1 - share) shared + share (current - mean) / (steps x rate)."""
        for name, value in mean.items():
            moved = np.subtract(current[name], value, dtype=np.float64) / self._reach
            self._shared[name] = (1 - share) * self._shared[name] + share * moved
        return dict(mean)

    def shared(self) -> dict[str, Array]:
        """The shared control variate."""
        return {name: value.astype(np.float32) for name, value in self._shared.items()}

    def state(self) -> Mapping[str, Wide]:
        """The shared control variate."""
        return dict(self._shared)

    def restore(self, state: Mapping[str, Wide]) -> None:
        """Goes on with it."""
        self._shared.update(state)


def server_optimiser(study: StudySpec) -> ServerOptimiser:
    """The server optimiser that the study names, and after it the steps of a generator."""
    generator, own = generator_of(study), _named_optimiser(study)
    return own if generator is None else GeneratorStep(generator, own)


def _named_optimiser(study: StudySpec) -> ServerOptimiser:
    if isinstance(study.aggregation, Scaffold):
        return ScaffoldStep(study)
    return AdamStep(study.aggregation) if isinstance(study.aggregation, FedAdam) else Replace()


def plain_sum(study: StudySpec) -> PlainSum:
    """A fresh sum over the study's sites with its public weights."""
    return PlainSum({SiteId(site.id): study.weight(SiteId(site.id)) for site in study.sites})
