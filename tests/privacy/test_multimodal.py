"""Several modalities, one privacy unit: clipping, missing modalities and faulty patients.

The expected sums come from plain autograd in float64, one record at a time (rules 24).
"""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedward_client.tasks.registry import task_of
from fedward_client.training.descent import freeze
from fedward_client.training.patient_dp.back_end import Chunk, trainable_parameters
from fedward_client.training.patient_dp.bookkeeping_backend import BookkeepingBackEnd, Geometry
from fedward_client.training.patient_dp.model_check import check_model
from fedward_client.training.patient_dp.slot_check import check_slots
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.ids import SiteId
from fedward_common.models.registry import build_model, initial_tensors
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.multimodal_encoding import join
from tests.support.clinical import clinical, measured
from tests.support.multimodal import (
    INPUTS,
    fusion,
    modalities,
    multimodal_data,
    multimodal_study,
    schema,
)
from tests.support.multimodal import model as network
from tests.support.naive_dp import FirstInLine, NoNoise
from tests.support.patient_sums import CLIP, Patient, clipped_sum, losses, naive_sum
from tests.support.studies import make_dp

ALL = 3 + sum(INPUTS.values())
every_fusion = pytest.mark.parametrize("how", ["concatenation", "gated", "attention"])
every_back_end = pytest.mark.parametrize("kind", ["loop", "opacus", "bookkeeping"])
Present = tuple[int, int, int]
PRESENT: list[Present] = [(1, 1, 1), (0, 1, 1), (1, 1, 0), (0, 1, 0), (1, 1, 1)]
SIZES = [3, 1, 4, 2, 3]


def moved(how: str) -> nn.Module:
    """The network some way into its training: what starts at zero hides what it does."""
    model = build_model(multimodal_study(how=how).model, ALL).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def patient(present: Present, *, size: int, seed: int) -> Patient:
    """Records with 0 for everything of a modality that is missing."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        here * torch.randn(size, width, generator=generator)
        for here, width in zip(present, INPUTS.values(), strict=True)
    ]
    flags = torch.tensor(present, dtype=torch.float32).expand(size, -1)
    return torch.cat([flags, *parts], dim=1), (torch.rand(size, generator=generator) > 0.5).float()


def people() -> list[Patient]:
    return [
        patient(present, size=size, seed=seed)
        for seed, (present, size) in enumerate(zip(PRESENT, SIZES, strict=True))
    ]


def part_of(model: nn.Module, gradient: torch.Tensor, beginning: str) -> torch.Tensor:
    """The numbers of a flat gradient that belong to parameters with names of this beginning."""
    parameters = trainable_parameters(model)
    parts = torch.split(gradient, [p.numel() for p in parameters.values()])
    own = [part for name, part in zip(parameters, parts, strict=True) if name.startswith(beginning)]
    return torch.cat(own)


@every_back_end
@every_fusion
def test_the_sum_is_the_naive_one_and_one_patient_moves_it_by_at_most_c(
    kind: str, how: str
) -> None:
    model, patients = moved(how), people()

    found = clipped_sum(copy.deepcopy(model), kind, patients)

    expected = naive_sum(model, patients)
    assert float((found - expected).norm()) <= 5e-6 * float(expected.norm())
    for left in range(len(patients)):
        some = patients[:left] + patients[left + 1 :]
        change = found - clipped_sum(copy.deepcopy(model), kind, some)
        assert 0.1 * CLIP < float(change.norm()) <= 1.0005 * CLIP


@every_fusion
def test_clipping_is_over_all_encoders_of_a_patient_together(how: str) -> None:
    """No encoder has a bound of its own: the norm over everything is C, not C for each."""
    model = moved(how)
    with torch.no_grad():
        model.get_parameter("head.linear.weight").mul_(20.0)  # so that the gradient is clipped

    alone = clipped_sum(model, "loop", people()[:1])

    assert float(alone.norm()) == pytest.approx(CLIP, rel=1e-6)
    for name in INPUTS:
        assert 0 < float(part_of(model, alone, f"encoders.{name}.").norm()) < CLIP


@every_back_end
@every_fusion
def test_a_missing_modality_adds_exactly_nothing_to_its_encoder(kind: str, how: str) -> None:
    model = moved(how)
    for place, name in enumerate(INPUTS):
        present = tuple(int(other != place) for other in range(3))
        gone = patient(present, size=2, seed=7)  # type: ignore[arg-type]

        alone = clipped_sum(copy.deepcopy(model), kind, [gone])

        assert not part_of(model, alone, f"encoders.{name}.").any()
        assert part_of(model, alone, "head.").any()


@every_back_end
@every_fusion
def test_a_nan_patient_equals_an_absent_one_and_chunks_change_nothing(kind: str, how: str) -> None:
    model, patients = moved(how), people()
    without = patients[:2] + patients[3:]
    patients[2][0][1, 5] = float("nan")

    broken = clipped_sum(copy.deepcopy(model), kind, patients)
    sums = [clipped_sum(copy.deepcopy(model), kind, without, chunk=n) for n in (1, 5, 100)]

    assert torch.allclose(broken, sums[0], atol=1e-6)
    assert max(float((one - sums[0]).norm()) for one in sums) <= 1e-5 * CLIP


@every_fusion
def test_the_checks_pass_and_every_patient_keeps_all_bits_in_any_company(how: str) -> None:
    model = moved(how)
    examples = task_of(multimodal_study(how=how)).examples(device=torch.device("cpu"))
    check_model(model, loss=losses, examples=examples)
    made = BookkeepingBackEnd(model, loss=losses, geometry=Geometry(slots=4, records=4))
    check_slots(made, model, loss=losses, examples=examples)
    patients = people()[:4]

    def rows(some: list[Patient]) -> torch.Tensor:
        chunk = Chunk(
            features=torch.cat([x for x, _ in some]),
            labels=torch.cat([y for _, y in some]),
            sizes=torch.tensor([len(y) for _, y in some]),
        )
        return torch.cat(list(made.patient_gradients(chunk)))

    assert torch.equal(rows(patients)[1:], rows(patients[1:]))


def test_a_frozen_encoder_keeps_its_numbers_and_has_no_part_in_the_norm() -> None:
    study = multimodal_study(
        training={"learning_rate": 0.5, "frozen": ["encoders.image."]},
        dp=make_dp(max_records_per_patient=4, sampling_probability=1.0),
    )
    start = initial_tensors(study.model, ALL)
    trainer = LocalTrainer(
        study,
        SiteId("north"),
        sampling=FirstInLine(),
        noise=NoNoise(),
        flags=PerformanceFlags(backend="loop"),
    )
    patients = people()
    records = PatientRecords(
        features=torch.cat([x for x, _ in patients]).numpy(),
        labels=np.repeat(np.arange(5) % 2, SIZES).astype(np.float32),
        patient=np.repeat(np.arange(5), SIZES),
    )

    after = trainer.train(start, records).tensors

    changed = {name for name in start if not np.array_equal(start[name], after[name])}
    assert not any(name.startswith("encoders.image.") for name in changed)
    assert {"encoders.table.output.weight", "encoders.genome.linear.weight"} <= changed
    model = build_model(study.model, ALL)
    freeze(model, study.training)
    assert not any(name.startswith("encoders.image.") for name in trainable_parameters(model))


def records(ids: list[str], width: int, *, seed: int, each: int = 1) -> PatientRecords:
    draws = np.random.default_rng(seed)
    return PatientRecords(
        features=draws.normal(size=(len(ids) * each, width)).astype(np.float32),
        labels=np.repeat(np.arange(len(ids)) % 2, each).astype(np.float32),
        patient=np.repeat(np.arange(len(ids)), each),
        ids=tuple(ids),
    )


def test_a_patient_who_leaves_every_modality_moves_no_bit_of_another() -> None:
    """Rules 6: whole patients are joined each by themselves."""
    everybody = ["a", "b", "c", "d"]
    parts = {
        "image": records(["d", "a", "b"], INPUTS["image"], seed=1, each=2),
        "table": records(everybody, INPUTS["table"], seed=2),
        "genome": records(["b", "c"], INPUTS["genome"], seed=3),
    }
    whole = join(schema(), parts)

    for gone in everybody:
        left = {name: without(one, gone) for name, one in parts.items()}
        some = join(schema(), left)
        kept = [whole.ids[n] != gone for n in whole.patient]
        assert some.features.tobytes() == whole.features[kept].tobytes()
        assert some.labels.tobytes() == whole.labels[kept].tobytes()


def without(one: PatientRecords, gone: str) -> PatientRecords:
    kept = np.array([one.ids[n] != gone for n in one.patient])
    ids = tuple(name for name in one.ids if name != gone)
    _, patient_of = np.unique(one.patient[kept], return_inverse=True)
    return PatientRecords(
        features=one.features[kept],
        labels=one.labels[kept],
        patient=patient_of.astype(np.int64),
        ids=ids,
    )


def kinds() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Data of every kind that is not among the three, with an encoder."""
    answer = {"column": "ill", "low": 0, "high": 1, "positive_from": 1}
    pulse = measured("pulse", "LOINC:8867-4", unit="/min", low=20.0, high=220.0, fill=80.0,
                     aggregation="sequence", missing="fill", window=None)  # fmt: skip
    series = clinical(
        features=[pulse], grid={"step_hours": 24.0, "steps": 3}, outcome={"kind": "none"}
    )
    del series["split"]
    notes = {"kind": "notes", "label": answer,
             "tokeniser": {"kind": "hashed-words", "max_tokens": 4, "buckets": 64}}  # fmt: skip
    words = {"kind": "k-mers", "k": 2}
    sequence = {"kind": "sequence", "alphabet": "dna", "length": 8, "label": answer,
                "ambiguous": "unknown"}  # fmt: skip
    genes = {"name": "rna", "scale": "log2-tpm", "genes": ["A", "B", "C"]}
    return {
        "series": (series, {"name": "gru", "hidden": [4], "steps": 3}),
        "notes": (notes, {"name": "bilstm", "hidden": [4, 4], "shape": [4, 65]}),
        "letters": (
            {**sequence, "encoding": {"kind": "one-hot"}},
            {"name": "cnn1d", "hidden": [4], "shape": [4, 8]},
        ),
        "words": (
            {**sequence, "encoding": words},
            {"name": "sequence-transformer", "hidden": [4, 4], "shape": [1, 18]},
        ),
        "profile": (
            {"kind": "profiles", "label": answer, "layers": [genes]},
            {"name": "linear"},
        ),
    }


@pytest.mark.parametrize("name", list(kinds()))
def test_an_encoder_of_every_kind_passes_the_checks_and_trains(name: str) -> None:
    data, encoder = kinds()[name]
    both = [modalities()[1], {"name": name, "data": data}]
    schema_of = MultimodalData.model_validate(multimodal_data(modalities=both))
    sizes = {one: part.input_size for one, part in schema_of.parts.items()}
    encoders = [
        {"modality": "table", "name": "mlp", "hidden": [4], "inputs": sizes["table"]},
        {"modality": name, "inputs": sizes[name], **encoder},
    ]
    study = multimodal_study(
        data=multimodal_data(modalities=both), model=network(fusion=fusion(encoders=encoders))
    )
    features, labels = task_of(study).examples(device=torch.device("cpu"))(6)
    records_of = PatientRecords(
        features=features.numpy(), labels=labels.numpy(), patient=np.arange(6)
    )
    start = initial_tensors(study.model, schema_of.input_size)
    trainer = LocalTrainer(
        study,
        SiteId("north"),
        sampling=FirstInLine(),
        noise=NoNoise(),
        flags=PerformanceFlags(backend="loop"),
    )

    after = trainer.train(start, records_of).tensors

    changed = {one for one in start if not np.array_equal(start[one], after[one])}
    assert any(one.startswith(f"encoders.{name}.") for one in changed)
