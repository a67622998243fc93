"""The levers that change a network, low-rank adapters and standardised filters: per patient, exact.

The expected sums come from plain autograd in float64, one record at a time (rules 24).
"""

import copy

import pytest
import torch
from torch import nn

from fedward_client.training.patient_dp.back_end import Chunk
from fedward_client.training.patient_dp.bookkeeping_backend import BookkeepingBackEnd, Geometry
from fedward_client.training.patient_dp.model_check import check_model
from fedward_client.training.patient_dp.slot_check import check_slots
from fedward_common.errors import ConfigError
from fedward_common.models.registry import build_model, initial_tensors
from fedward_common.models.standardised import standardised, through_standardisation
from fedward_common.study.low_rank import LoRa
from fedward_common.study.spec import ModelSpec
from tests.support.patient_sums import CLIP, Patient, clipped_sum, losses, naive_sum

INPUTS = 64
CNN = ModelSpec(name="cnn", hidden=(8, 8), shape=(1, 8, 8), initial_seed=5)
MLP = ModelSpec(name="mlp", hidden=(16, 12), initial_seed=5)


def adapted(spec: ModelSpec, *layers: str, rank: int = 2, scale: float = 2.0) -> ModelSpec:
    return spec.model_copy(update={"lora": LoRa(rank=rank, layers=layers, scale=scale)})


SPECS = {
    "mlp, adapted": adapted(MLP, "hidden."),
    "cnn, adapted": adapted(CNN, "blocks.4"),
    "cnn, standardised": CNN.model_copy(update={"weight_standardisation": True}),
    "cnn, standardised and adapted": adapted(
        CNN.model_copy(update={"weight_standardisation": True}), "blocks.4"
    ),
}
every_network = pytest.mark.parametrize("name", list(SPECS))
every_back_end = pytest.mark.parametrize("kind", ["loop", "opacus", "bookkeeping"])


def moved(name: str) -> nn.Module:
    """The network some way into its training: adapters that are zero hide what they do."""
    model = build_model(SPECS[name], INPUTS).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def people(sizes: list[int], *, seed: int = 0) -> list[Patient]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, INPUTS, generator=generator),
            (torch.rand(size, generator=generator) > 0.5).float(),
        )
        for size in sizes
    ]


def examples(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, INPUTS, generator=generator), (torch.arange(count) % 2).float()


@every_back_end
@every_network
def test_the_sum_is_the_naive_one_and_one_patient_moves_it_by_at_most_c(
    kind: str, name: str
) -> None:
    model, patients = moved(name), people([3, 4, 1, 2, 4])

    found = clipped_sum(copy.deepcopy(model), kind, patients)

    expected = naive_sum(model, patients)
    assert float((found - expected).norm()) <= 5e-6 * float(expected.norm())
    without = clipped_sum(copy.deepcopy(model), kind, patients[1:])
    assert 0.1 * CLIP < float((found - without).norm()) <= 1.0005 * CLIP


@every_network
def test_the_checks_pass_and_every_patient_keeps_all_bits_in_any_company(name: str) -> None:
    model = moved(name)
    check_model(model, loss=losses, examples=examples)
    made = BookkeepingBackEnd(model, loss=losses, geometry=Geometry(slots=4, records=4))
    check_slots(made, model, loss=losses, examples=examples)
    patients = people([3, 1, 4])

    def rows(some: list[Patient]) -> torch.Tensor:
        chunk = Chunk(
            features=torch.cat([x for x, _ in some]),
            labels=torch.cat([y for _, y in some]),
            sizes=torch.tensor([len(y) for _, y in some]),
        )
        return torch.cat(list(made.patient_gradients(chunk)))

    assert torch.equal(rows(patients)[1:], rows(patients[1:]))


def test_an_adapted_network_starts_as_the_plain_one_and_trains_its_adapters_only() -> None:
    features, _ = people([7])[0]
    for plain, spec in ((MLP, SPECS["mlp, adapted"]), (CNN, SPECS["cnn, adapted"])):
        model = build_model(spec, INPUTS)

        torch.testing.assert_close(model(features), build_model(plain, INPUTS)(features))
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        assert frozen == {name for name in initial_tensors(spec, INPUTS) if ".base." in name}
        assert frozen == {n for n in initial_tensors(spec, INPUTS) if spec.lora.is_base(n)}


def test_a_filter_is_centred_of_length_one_and_its_gradient_is_autograds() -> None:
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    back = torch.randn(5, 3, 3, 3, dtype=torch.float64)

    found = standardised(weight)

    assert torch.allclose(found.flatten(1).mean(dim=1), torch.zeros(5, dtype=torch.float64))
    assert torch.allclose(found.flatten(1).norm(dim=1), torch.ones(5).double(), atol=1e-4)
    (expected,) = torch.autograd.grad((found * back).sum(), weight)
    torch.testing.assert_close(through_standardisation(weight.detach(), back), expected)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (adapted(MLP, "encoder."), "found 'encoder.'; mlp has hidden.0, hidden.3, output"),
        (adapted(MLP, "output"), "expected one with fewer numbers than layer output has"),
        (adapted(MLP, "hidden.", rank=16), "lower it or leave the layer out"),
        (MLP.model_copy(update={"weight_standardisation": True}), "with convolutions, found none"),
    ],
)
def test_a_lever_that_does_not_fit_the_model_is_an_error_that_says_what_would(
    spec: ModelSpec, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        build_model(spec, INPUTS)
