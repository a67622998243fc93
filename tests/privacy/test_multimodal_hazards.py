"""Proportional hazards on several modalities: a patient's loss is that patient's own (rules 24).

The expected sums are by plain autograd in float64, one record at a time, of a likelihood that is
written out here interval by interval and shares no code with the product's.
"""

import copy

import pytest
import torch
from torch import nn

from fedward_client.tasks.registry import task_of
from fedward_client.training.patient_dp.back_end import trainable_parameters
from fedward_client.training.patient_dp.model_check import check_model
from fedward_common.models.registry import build_model
from tests.support.multimodal import CUTS, INPUTS, survival_study
from tests.support.patient_sums import CLIP, Patient, clipped_sum, naive_sum

ALL = 3 + sum(INPUTS.values())
every_fusion = pytest.mark.parametrize("how", ["concatenation", "gated", "attention"])
every_back_end = pytest.mark.parametrize("kind", ["loop", "opacus", "bookkeeping"])
WHO = [(1, 1, 1), (0, 1, 1), (1, 1, 0), (0, 1, 0), (1, 1, 1), (1, 1, 1)]
SIZES = [3, 1, 4, 2, 3, 1]
DAYS = [50.0, -50.0, 250.0, -899.0, 900.0, -5000.0]
"""Events in the first, the second and at the end of the last interval; others were lost."""


def moved(how: str) -> nn.Module:
    """The network some way into its training: what starts at zero hides what it does."""
    model = build_model(survival_study(how=how).model, ALL).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        # About one event a year, so that a short follow-up says something, too.
        model.get_parameter("baseline.weight").add_(3.0)
    return model


def people() -> list[Patient]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for present, size, days in zip(WHO, SIZES, DAYS, strict=True):
        parts = [
            here * torch.randn(size, width, generator=generator)
            for here, width in zip(present, INPUTS.values(), strict=True)
        ]
        flags = torch.tensor(present, dtype=torch.float32).expand(size, -1)
        found.append((torch.cat([flags, *parts], dim=1), torch.full((size,), days)))
    return found


def by_hand(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Hazard times time at risk, less the log hazard where the event was; one record, in a loop."""
    (logs,), days = outputs, float(labels[0].abs())
    total, start = torch.zeros((), dtype=outputs.dtype), 0.0
    for place, end in enumerate(CUTS):
        if days > start:
            total = total + torch.exp(logs[place]) * (min(days, end) - start) / 365.25
        if start < days <= end and labels[0] > 0:
            total = total - logs[place]
        start = end
    return total[None]


@every_back_end
@every_fusion
def test_the_sum_is_the_naive_one_and_one_patient_moves_it_by_at_most_c(
    kind: str, how: str
) -> None:
    model, patients, loss = moved(how), people(), task_of(survival_study(how=how)).losses

    found = clipped_sum(copy.deepcopy(model), kind, patients, loss=loss)

    expected = naive_sum(model, patients, loss=by_hand)
    assert float((found - expected).norm()) <= 5e-6 * float(expected.norm())
    for left in range(len(patients)):
        some = patients[:left] + patients[left + 1 :]
        change = found - clipped_sum(copy.deepcopy(model), kind, some, loss=loss)
        assert 0.1 * CLIP < float(change.norm()) <= 1.0005 * CLIP


@every_fusion
def test_a_patient_s_loss_is_the_same_in_any_company(how: str) -> None:
    """Nobody else's time, event or presence is in it, as it would be in a partial likelihood."""
    model, loss = moved(how), task_of(survival_study(how=how)).losses
    features, labels = (torch.cat(parts) for parts in zip(*people(), strict=True))
    together = loss(model(features), labels)

    for number in range(len(labels)):
        others = labels.clone()
        others[torch.arange(len(labels)) != number] *= -0.5
        changed = torch.where(torch.arange(len(labels)) == number, labels, others)
        in_other_company = loss(model(features), changed)[number]
        alone = loss(model(features[[number]]), labels[[number]])[0]

        assert torch.equal(in_other_company, together[number])
        torch.testing.assert_close(alone, together[number], rtol=1e-5, atol=1e-6)


def test_the_baselines_are_a_patient_s_gradient_too_and_under_the_same_clip() -> None:
    model, loss = moved("gated"), task_of(survival_study()).losses
    names = list(trainable_parameters(model))
    with torch.no_grad():
        model.get_parameter("baseline.weight").add_(5.0)  # hazards so high that all are clipped

    for patient in people():
        alone = clipped_sum(copy.deepcopy(model), "loop", [patient], loss=loss)

        assert float(alone.norm()) == pytest.approx(CLIP, rel=1e-6)
    assert "baseline.weight" in names
    assert {name.partition(".")[0] for name in names} == {"risk", "baseline"}


@every_fusion
def test_a_missing_modality_adds_exactly_nothing_to_its_encoder(how: str) -> None:
    model, loss = moved(how), task_of(survival_study(how=how)).losses
    parameters = trainable_parameters(model)

    alone = clipped_sum(copy.deepcopy(model), "loop", people()[3:4], loss=loss)

    parts = torch.split(alone, [one.numel() for one in parameters.values()])
    for name, part in zip(parameters, parts, strict=True):
        if name.startswith(("risk.encoders.image.", "risk.encoders.genome.")):
            assert not part.any()
        if name.startswith(("risk.encoders.table.", "risk.head.", "baseline.")):
            assert part.any()


@every_fusion
def test_the_site_s_own_checks_pass(how: str) -> None:
    task = task_of(survival_study(how=how))

    check_model(moved(how), loss=task.losses, examples=task.examples(device=torch.device("cpu")))
