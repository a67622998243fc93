"""Ten silent privacy failures measured with Opacus 1.6.0, by number: this engine has none of them.

The list is the project's own (design paper "privacy", 1.2). Each test names what went wrong there.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedward_client.tasks.task import LossFunction
from fedward_client.training.patient_dp.back_end import BackEnd
from fedward_client.training.patient_dp.bookkeeping_backend import BookkeepingBackEnd, Geometry
from fedward_client.training.patient_dp.engine import PatientDpEngine
from fedward_client.training.patient_dp.loop_backend import LoopBackEnd
from fedward_client.training.patient_dp.model_check import check_model
from fedward_client.training.patient_dp.opacus_backend import OpacusBackEnd
from fedward_client.training.patient_dp.plan import PatientDpPlan, PatientTensors
from fedward_client.training.patient_dp.sampling import draw_patients
from fedward_common.errors import ModelRefused
from tests.support.naive_dp import FirstInLine, NoNoise, Repeatable, Scripted

CLIP = 1.0
every_back_end = pytest.mark.parametrize("kind", ["loop", "opacus", "bookkeeping"])


def losses(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(outputs, labels, reduction="none")


class Logit(nn.Module):
    """Layers whose output, summed over all but the records, is the logit."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        return self.layers(records).flatten(1).sum(dim=1)


def back_end(kind: str, model: nn.Module, loss: LossFunction = losses) -> BackEnd:
    if kind == "loop":
        return LoopBackEnd(model, loss=loss)
    if kind == "opacus":
        return OpacusBackEnd(model, loss=loss)
    return BookkeepingBackEnd(model, loss=loss, geometry=Geometry(slots=4, records=2))


def engine(made: BackEnd, model: nn.Module, *, chunk: int = 8, **plan: float) -> PatientDpEngine:
    values = {"noise_multiplier": 1.0, "sampling_probability": 1.0, "clip_norm": CLIP}
    values |= {"max_records_per_patient": 2, "public_patients": 1} | plan
    return PatientDpEngine(
        made,
        PatientDpPlan(**values),
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        sampling=FirstInLine(),
        noise=NoNoise(),
        max_records_per_chunk=chunk,
    )


def one_record_each(features: torch.Tensor) -> PatientTensors:
    count = len(features)
    labels = (torch.arange(count) % 2).float()
    return PatientTensors(
        features=features, labels=labels, starts=np.arange(count + 1, dtype=np.int64)
    )


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def refused(model: nn.Module, *shape: int) -> None:
    check_model(
        model.train(),
        loss=losses,
        examples=lambda count: (numbers(count, *shape), (torch.arange(count) % 2).float()),
    )


@every_back_end
def test_1_a_loss_of_one_column_is_refused_and_not_broadcast(kind: str) -> None:
    """Ghost clipping broadcast [B] with [B, 1] to [B, B]: one record moved the sum by 715 C."""
    model = nn.Linear(3, 1)

    def column(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return losses(outputs, labels.unsqueeze(1))

    made = engine(back_end(kind, model, column), model)

    with pytest.raises(ModelRefused, match="loss: expected one number for each record"):
        made.step(one_record_each(numbers(8, 3)))


@every_back_end
def test_2_clip_and_noise_have_one_bound_that_nothing_can_change_apart(kind: str) -> None:
    """A scheduler changed the noise's bound and not the clip's: 1000 times the calibration."""
    model = Logit(nn.Linear(3, 1))
    made = engine(back_end(kind, model), model, clip_norm=0.01)

    with pytest.raises(AttributeError):
        made.plan.clip_norm = 10.0  # type: ignore[misc]

    assert made.plan.noise_std == made.plan.noise_multiplier * 0.01
    assert float(made.step(one_record_each(100 * numbers(1, 3))).norm()) <= 0.01 * (1 + 1e-12)


@every_back_end
def test_3_an_interrupted_step_does_not_reach_the_next_one(kind: str) -> None:
    """A batch manager merged a half-done sum into the next: one record moved it by 2 C."""

    class Deadline(BaseException):
        pass

    calls = []

    def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise Deadline
        return losses(outputs, labels)

    model = Logit(nn.Linear(3, 1))
    made = engine(back_end(kind, model, loss), model, chunk=4)
    people = one_record_each(numbers(8, 3))
    with pytest.raises(Deadline):
        made.step(people)

    after = made.step(people)

    assert torch.equal(after, made.step(people))
    alone = one_record_each(numbers(1, 3))
    assert float(made.step(alone).norm()) <= CLIP * (1 + 1e-12)


@every_back_end
def test_4_opposite_steps_in_time_of_large_size_are_clipped(kind: str) -> None:
    """A float32 Gram matrix gave a norm of zero: the record moved the sum by 1000 C."""
    model = Logit(nn.Linear(3, 1))
    step = torch.tensor([1e4, 2e4, -1e4])
    record = torch.stack([step, -step + 0.01])[None]

    moved = engine(back_end(kind, model), model).step(one_record_each(record))

    assert 0 < float(moved.norm()) <= CLIP * (1 + 1e-12)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_5_batch_norm_is_refused_frozen_or_without_parameters_too(
    affine: bool, frozen: bool
) -> None:
    """It mixed patients and sent running statistics out without noise."""
    norm = nn.BatchNorm1d(3, affine=affine).requires_grad_(not frozen)

    with pytest.raises(ModelRefused, match="BatchNorm"):
        refused(Logit(nn.Linear(3, 3), norm), 3)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_6_padding_with_anything_but_zeros_is_refused(mode: str) -> None:
    """Per-record gradients were off by 26 %: one record moved the sum by 1.6 C."""
    with pytest.raises(ModelRefused, match="padding_mode"):
        refused(Logit(nn.Conv2d(1, 2, 3, padding=1, padding_mode=mode)), 1, 5, 5)


@every_back_end
def test_7_a_record_of_nan_leaves_the_sum_as_if_it_were_absent(kind: str) -> None:
    """It made the whole released sum NaN and so revealed itself with certainty."""
    model = Logit(nn.Linear(3, 1))
    made = engine(back_end(kind, model), model)
    features = numbers(4, 3)
    features[3] = float("nan")

    found = made.step(one_record_each(features))

    assert torch.allclose(found, made.step(one_record_each(features[:3])), atol=1e-7)
    assert bool(torch.isfinite(found).all())


@every_back_end
def test_8_linear_takes_any_number_of_dimensions(kind: str) -> None:
    """A 4-D input raised, and a stale norm was used when a layer was not called again."""
    model = Logit(nn.Linear(3, 2))
    features = numbers(4, 2, 5, 3)

    found = engine(back_end(kind, model), model).step(one_record_each(features))

    expected = engine(back_end("loop", model), model).step(one_record_each(features))
    assert torch.allclose(found, expected, atol=1e-6)


def test_9_the_denominator_is_public_and_not_made_of_the_number_of_patients() -> None:
    """The expected batch was N // batches: a neighbour had another one."""
    model = Logit(nn.Linear(3, 1))
    made = engine(back_end("loop", model), model, sampling_probability=1.0, public_patients=50)
    same = numbers(1, 3).expand(65, 3)

    sums = [made.step(one_record_each(same[:count])) for count in (63, 64, 65)]

    first = made.step(one_record_each(same[:1]))
    steps = [sums[1] - sums[0], sums[2] - sums[1]]
    assert float(first.norm()) <= CLIP / 50 * (1 + 1e-12)
    assert all(float(step.norm()) <= CLIP / 50 * (1 + 1e-9) for step in steps)


def test_10_as_many_steps_run_as_were_asked_for_empty_draws_included() -> None:
    """int(1 / (1 / n)) was n - 1 for 312 values of n: one step too few; empty batches skipped."""
    model = Logit(nn.Linear(3, 1))
    made = PatientDpEngine(
        LoopBackEnd(model, loss=losses),
        PatientDpPlan(
            noise_multiplier=1.0, clip_norm=CLIP, sampling_probability=1 / 49,
            max_records_per_patient=1, public_patients=49,
        ),
        parameters=4,
        sampling=Scripted(*([[0.5] * 49, []] * 49)),
        noise=Repeatable(0),
        max_records_per_chunk=8,
    )  # fmt: skip
    people = one_record_each(numbers(49, 3))

    released = [made.step(people) for _ in range(49)]

    assert made.steps == 49
    assert all(bool(one.any()) for one in released)
    drawn = [len(draw_patients(Repeatable(i), patients=49, probability=1 / 49)) for i in range(500)]
    assert abs(np.mean(drawn) - 1.0) < 0.5
