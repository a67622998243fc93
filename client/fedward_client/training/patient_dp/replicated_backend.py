"""Data parallel inside a site: one model on several devices, each with some of the patients."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from fedward_client.tasks.task import ExampleRecords
from fedward_client.training.patient_dp.back_end import Chunk, Factors, SummingBackEnd
from fedward_common.errors import ModelRefused

_PROBES = 3


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Replica:
    model: nn.Module
    back_end: SummingBackEnd
    device: torch.device


class ReplicatedBackEnd:
    """The patients of a chunk dealt to replicas of `model`, one thread each, and their sums added.

    A replica clips and sums its patients and adds no noise: the engine adds it once, to the sum of
    all, however many replicas there are. A patient is never split between replicas.

    Raises:
        ModelRefused: a replica rounds otherwise than the first one. Which replica a patient gets
            depends on who else is drawn, and so would the patient's gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        make: Callable[[nn.Module], SummingBackEnd],
        devices: Sequence[torch.device],
        examples: ExampleRecords,
    ) -> None:
        if not devices:
            raise ValueError("replicas: expected at least one device")
        self._source = model
        # The first replica is the model itself; the others are copies, made equal before each use.
        models = [model, *(deepcopy(model).to(device) for device in devices[1:])]
        self._replicas = [
            _Replica(model=each, back_end=make(each), device=device)
            for each, device in zip(models, devices, strict=True)
        ]
        self._check(examples)

    def patient_gradients(self, chunk: Chunk) -> Iterator[torch.Tensor]:
        """Blocks [patients, parameters] by the first replica alone."""
        return self._replicas[0].back_end.patient_gradients(chunk)

    def add_clipped(self, total: torch.Tensor, chunk: Chunk, factors: Factors) -> int:
        """Adds factor times mean gradient of each patient to `total`; how many patients it were."""
        self._copy_weights()
        shares = list(_shares(chunk, len(self._replicas)))

        def part(replica: _Replica, share: Chunk) -> tuple[torch.Tensor, int]:
            own = torch.zeros_like(total, device=replica.device)
            return own, replica.back_end.add_clipped(own, _moved(share, replica.device), factors)

        # The pool ends with the call: a replica that was interrupted leaves nothing behind.
        with ThreadPoolExecutor(max_workers=len(shares)) as pool:
            parts = list(pool.map(part, self._replicas[: len(shares)], shares))
        for own, _ in parts:  # always in the order of the replicas
            total += own.to(total.device)
        return sum(patients for _, patients in parts)

    def _copy_weights(self) -> None:
        state = self._source.state_dict()
        for replica in self._replicas[1:]:
            replica.model.load_state_dict(state)

    def _check(self, examples: ExampleRecords) -> None:
        features, labels = examples(2 * _PROBES)
        chunk = Chunk(features=features, labels=labels, sizes=torch.tensor([2] * _PROBES))
        found = [
            torch.cat(list(r.back_end.patient_gradients(_moved(chunk, r.device)))).cpu()
            for r in self._replicas
        ]
        if not all(torch.equal(rows, found[0]) for rows in found):
            raise ModelRefused(
                "replicas: expected the same bits of a patient's gradient on every device, found "
                "others; use equal devices, or set replicas = 1 in site.toml"
            )


def _shares(chunk: Chunk, count: int) -> Iterator[Chunk]:
    """The chunk in at most `count` runs of whole patients, none empty, about equally many each."""
    patients = len(chunk.sizes)
    ends = torch.cumsum(chunk.sizes, 0).tolist()
    cuts = sorted({patients * number // count for number in range(count + 1)})
    for first, last in pairwise(cuts):
        rows = slice(ends[first - 1] if first else 0, ends[last - 1])
        yield Chunk(
            features=chunk.features[rows],
            labels=chunk.labels[rows],
            sizes=chunk.sizes[first:last],
        )


def _moved(chunk: Chunk, device: torch.device) -> Chunk:
    return Chunk(
        features=chunk.features.to(device), labels=chunk.labels.to(device), sizes=chunk.sizes
    )
