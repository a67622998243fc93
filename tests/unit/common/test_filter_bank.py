"""The model `filter-bank`: what it looks at is fixed, and what it learns is little."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedward_client.tasks.registry import task_of
from fedward_client.training.patient_dp.choice import Load, choose_back_end
from fedward_client.training.patient_dp.engine import PatientDpEngine
from fedward_client.training.patient_dp.model_check import check_model
from fedward_client.training.patient_dp.plan import PatientDpPlan, PatientTensors
from fedward_common.errors import ConfigError
from fedward_common.models import filter_bank
from fedward_common.models.filter_bank import FilterBank
from fedward_common.models.registry import build_model, initial_tensors
from fedward_common.study.spec import ModelSpec, StudySpec
from tests.support.image_studies import masks_study
from tests.support.naive_dp import FirstInLine, NoNoise

MODEL = {"name": "filter-bank", "shape": [1, 16, 16, 16], "hidden": [6, 5], "outputs": 2}
FLAT = ModelSpec(name="filter-bank", shape=(1, 16, 24), hidden=(6, 5), outputs=3)


def whole_volumes() -> StudySpec:
    study = masks_study(model=MODEL)
    document = study.model_dump(mode="json")
    document["data"] |= {"patch": [16, 16, 16], "stride": [16, 16, 16]}
    return StudySpec.model_validate(document)


def bank(spec: ModelSpec) -> FilterBank:
    model = build_model(spec, int(np.prod(spec.shape)))
    assert isinstance(model, FilterBank)
    return model


def test_only_the_mixes_are_learned_and_part_of_the_weights() -> None:
    names = {"mix.weight", "mix.bias", "join.weight", "join.bias", "output.weight", "output.bias"}

    assert initial_tensors(FLAT, 16 * 24).keys() == names
    hippocampus = ModelSpec(name="filter-bank", shape=(1, 48, 64, 48), hidden=(16, 16), outputs=3)
    assert sum(a.size for a in initial_tensors(hippocampus, 48 * 64 * 48).values()) == 1299


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_filter_along_a_side_is_the_correlation_with_a_gaussian_s_derivative(order: int) -> None:
    line = torch.linspace(0, 5, 24).cos()
    for number, scale in enumerate(filter_bank.SCALES):
        found = filter_bank._filters(24)[number, order] @ line

        reach = int(np.ceil(3 * scale))
        steps = torch.arange(-reach, reach + 1).double()
        bell = torch.exp(-(steps**2) / (2 * scale**2))
        taps = (bell / bell.sum()) * [torch.ones(()), steps / scale, (steps / scale) ** 2 - 1][
            order
        ]
        padded = functional.pad(line.double()[None, None], (reach, reach), mode="replicate")
        expected = functional.conv1d(padded, taps[None, None])[0, 0]
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_half_resolution_and_back_is_torch_s_linear_interpolation() -> None:
    maps = torch.linspace(0, 7, 2 * 8 * 12).sin().view(1, 2, 8, 12)

    found = maps
    for axis, side in enumerate((8, 12)):
        found = filter_bank._along(found, filter_bank._finer(side), axis)

    expected = functional.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, expected)


def test_a_record_has_the_same_output_whoever_else_is_there_and_at_any_contrast() -> None:
    model = bank(FLAT)
    records = torch.linspace(-3, 3, 3 * 16 * 24).sin().view(3, -1)

    whole = model(records)

    assert whole.shape == (3, 3, 16, 24)
    torch.testing.assert_close(whole[1:2], model(records[1:2]))
    torch.testing.assert_close(model(0.3 * records + 0.2), whole, atol=1e-4, rtol=1e-4)


def test_a_patient_of_a_mask_study_moves_the_sum_by_at_most_c() -> None:
    study = whole_volumes()
    task = task_of(study)
    model = build_model(study.model, task.inputs)
    examples = task.examples(device=torch.device("cpu"))
    check_model(model, loss=task.losses, examples=examples)
    back_end = choose_back_end(
        "auto",
        model,
        loss=task.losses,
        examples=examples,
        load=Load(most_records=1, max_records_per_chunk=4),
    )
    size = sum(p.numel() for p in model.parameters())
    plan = PatientDpPlan(
        noise_multiplier=1.0,
        clip_norm=0.25,
        sampling_probability=1.0,
        max_records_per_patient=1,
        public_patients=1,
        clipping="auto-s",
    )
    engine = PatientDpEngine(
        back_end,
        plan,
        parameters=size,
        sampling=FirstInLine(),
        noise=NoNoise(),
        max_records_per_chunk=4,
    )

    features, labels = examples(3)

    def total(count: int) -> torch.Tensor:
        some = features[:count], labels[:count]
        return engine.step(
            PatientTensors(features=some[0], labels=some[1], starts=np.arange(count + 1))
        )

    assert 0 < float((total(3) - total(2)).norm()) <= 0.25


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": (6,)}, "two widths"),
        ({"shape": (1, 16, 20)}, "that 8 divides"),
        ({"outputs": 1}, "background"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    spec = FLAT.model_copy(update=changes)

    with pytest.raises(ConfigError, match=message):
        build_model(spec, int(np.prod(spec.shape)))


def test_what_is_bright_in_a_few_volumes_is_learned() -> None:
    """Forty steps of Adam find a bright block that every volume has somewhere else."""
    generator = torch.Generator().manual_seed(3)
    images = 0.2 * torch.randn(4, 16, 16, generator=generator)
    masks = torch.zeros(4, 16, 16)
    for number in range(4):
        place = slice(2 + 2 * number, 8 + 2 * number)
        masks[number, place, place] = 1
    images = (images + masks).flatten(1)
    model = bank(ModelSpec(name="filter-bank", shape=(1, 16, 16), hidden=(6, 5), outputs=2))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)

    for _ in range(40):
        loss = functional.cross_entropy(model(images), masks.long())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    found = model(images).argmax(dim=1) == 1
    dice = 2 * float((found & (masks == 1)).sum()) / float(found.sum() + masks.sum())
    assert dice > 0.8
