"""The guarantees on seven kinds of network, on every back end that takes them (rules 24).

The expected sums come from plain autograd in float64, one record at a time.
"""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.networks import FULL, TINY, Network
from fedward_client.training.patient_dp.back_end import BackEnd
from fedward_client.training.patient_dp.bookkeeping_backend import BookkeepingBackEnd, Geometry
from fedward_client.training.patient_dp.engine import PatientDpEngine
from fedward_client.training.patient_dp.loop_backend import LoopBackEnd
from fedward_client.training.patient_dp.model_check import check_model
from fedward_client.training.patient_dp.opacus_backend import OpacusBackEnd
from fedward_client.training.patient_dp.plan import PatientDpPlan, PatientTensors
from fedward_client.training.patient_dp.slot_check import check_slots
from tests.support.naive_dp import FirstInLine, NoNoise

CLIP = 0.5
GEOMETRY = Geometry(slots=4, records=4)
Patient = tuple[torch.Tensor, torch.Tensor]

every_network = pytest.mark.parametrize("name", list(TINY))
every_back_end = pytest.mark.parametrize("kind", ["loop", "opacus", "bookkeeping"])


def losses(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(outputs, labels, reduction="none")


def network(name: str, *, full: bool = False) -> tuple[Network, nn.Module]:
    """The network with the same weights on every call, whatever other tests drew."""
    chosen = (FULL if full else TINY)[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return chosen, chosen.build().train()


def people(chosen: Network, *, sizes: list[int], seed: int = 0) -> list[Patient]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            chosen.records(size, generator=generator),
            (torch.rand(size, generator=generator) > 0.5).float(),
        )
        for size in sizes
    ]


def clipped_sum(
    model: nn.Module, kind: str, patients: list[Patient], *, chunk: int = 16
) -> torch.Tensor:
    made: BackEnd
    if kind == "bookkeeping":
        made = BookkeepingBackEnd(model, loss=losses, geometry=GEOMETRY)
    elif kind == "opacus":
        made = OpacusBackEnd(model, loss=losses)
    else:
        made = LoopBackEnd(model, loss=losses)
    engine = PatientDpEngine(
        made,
        PatientDpPlan(
            noise_multiplier=1.0,
            clip_norm=CLIP,
            sampling_probability=1.0,
            max_records_per_patient=4,
            public_patients=1,
        ),
        parameters=sum(p.numel() for p in model.parameters()),
        sampling=FirstInLine(),
        noise=NoNoise(),
        max_records_per_chunk=chunk,
    )
    try:
        return engine.step(
            PatientTensors(
                features=torch.cat([features for features, _ in patients]),
                labels=torch.cat([labels for _, labels in patients]),
                starts=np.cumsum([0, *(len(labels) for _, labels in patients)]).astype(np.int64),
            )
        )
    finally:
        if isinstance(made, OpacusBackEnd):
            made.close()


def naive_sum(model: nn.Module, patients: list[Patient]) -> torch.Tensor:
    wide = copy.deepcopy(model).double()
    parameters = list(wide.parameters())
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for features, labels in patients:
        mean = torch.zeros_like(total)
        for record, label in zip(features, labels, strict=True):
            row = record[None].double() if record.is_floating_point() else record[None]
            parts = torch.autograd.grad(losses(wide(row), label[None].double())[0], parameters)
            mean += torch.cat([part.flatten() for part in parts]) / len(labels)
        total += mean * min(1.0, CLIP / float(mean.norm()))
    return total


@every_back_end
@every_network
def test_the_sum_equals_plain_autograd_record_by_record(kind: str, name: str) -> None:
    chosen, model = network(name)
    patients = people(chosen, sizes=[3, 4, 3, 1, 3])

    found = clipped_sum(model, kind, patients)

    expected = naive_sum(model, patients)
    assert float((found - expected).norm()) <= 5e-6 * float(expected.norm())


@every_back_end
@every_network
def test_one_patient_less_moves_the_sum_by_at_most_c_and_another_by_2c(
    kind: str, name: str
) -> None:
    chosen, model = network(name)
    patients = people(chosen, sizes=[3, 1, 4])
    other = (people(chosen, sizes=[3], seed=9)[0][0], 1 - patients[0][1])

    everybody = clipped_sum(model, kind, patients)
    without = clipped_sum(model, kind, patients[1:])
    replaced = clipped_sum(model, kind, [other, *patients[1:]])

    assert float((everybody - without).norm()) <= 1.0005 * CLIP
    assert float((everybody - replaced).norm()) <= 2.0005 * CLIP


@every_network
@pytest.mark.parametrize("kind", ["loop", "bookkeeping"])
def test_one_patient_less_moves_the_sum_by_c_up_to_float64_rounding(kind: str, name: str) -> None:
    """Every other patient keeps all bits; the float64 sum rounds by at most m^2 2^-53 C."""
    chosen, model = network(name)
    patients = people(chosen, sizes=[3, 1, 4, 2, 3, 3])
    alone = [clipped_sum(model, kind, [patient]) for patient in patients]

    everybody = clipped_sum(model, kind, patients)

    m = len(patients)
    assert float((everybody - torch.stack(alone).sum(dim=0)).norm()) <= 2 * m * m * 2**-53 * CLIP


@every_back_end
@every_network
def test_a_nan_patient_equals_an_absent_one_and_chunks_change_nothing(kind: str, name: str) -> None:
    chosen, model = network(name)
    patients = people(chosen, sizes=[3, 2, 4, 1, 3])
    without = patients[:1] + patients[2:]
    if not chosen.words:
        patients[1][0][1] = float("nan")
        assert torch.allclose(
            clipped_sum(model, kind, patients), clipped_sum(model, kind, without), atol=1e-6
        )

    sums = [clipped_sum(model, kind, without, chunk=chunk) for chunk in (1, 5, 100)]

    assert max(float((one - sums[0]).norm()) for one in sums) <= 1e-5 * CLIP


@every_network
def test_the_slot_check_passes_and_leaves_the_weights(name: str) -> None:
    chosen, model = network(name)
    before = copy.deepcopy(model.state_dict())
    generator = torch.Generator().manual_seed(0)

    def examples(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return chosen.records(count, generator=generator), (torch.arange(count) % 2).float()

    made = BookkeepingBackEnd(model, loss=losses, geometry=GEOMETRY)
    check_slots(made, model, loss=losses, examples=examples)

    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.slow
@every_back_end
@pytest.mark.parametrize("name", list(FULL))
def test_full_networks_keep_the_bounds(kind: str, name: str) -> None:
    chosen, model = network(name, full=True)
    patients = people(chosen, sizes=[3, 1, 3])
    generator = torch.Generator().manual_seed(0)
    check_model(
        model,
        loss=losses,
        examples=lambda n: (chosen.records(n, generator=generator), (torch.arange(n) % 2).float()),
    )

    found = clipped_sum(model, kind, patients)

    expected = naive_sum(model, patients)
    moved = found - clipped_sum(model, kind, patients[1:])
    assert float((found - expected).norm()) <= 1e-4 * float(expected.norm())
    assert float(moved.norm()) <= 1.0005 * CLIP
