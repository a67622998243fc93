"""Studies of several modalities: what is refused, how patients are joined, what a model is."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedward_common.errors import ConfigError, DataError
from fedward_common.models.registry import build_model, initial_tensors
from fedward_common.study.encoding import PatientRecords, encode_present
from fedward_common.study.multimodal import MultimodalData, parts_of
from fedward_common.study.multimodal_encoding import join, without_label
from fedward_common.study.spec import ModelSpec, StudySpec
from fedward_common.study.tabular import LabelRule, TabularData
from fedward_common.study.tasks import check_task, outputs_of
from tests.support.clinical import clinical
from tests.support.multimodal import (
    CUTS,
    INPUTS,
    SPLIT,
    fusion,
    modalities,
    model,
    multimodal_data,
    multimodal_study,
    schema,
    survival_study,
)
from tests.support.studies import make_data, make_document, make_spec

ALL = 3 + sum(INPUTS.values())


def test_the_split_of_all_is_the_split_of_each_and_survives_a_round_trip() -> None:
    study = multimodal_study()

    again = StudySpec.model_validate_json(study.canonical)

    assert again.digest == study.digest
    assert {part.split for part in again.data.parts.values()} == {again.data.split}  # type: ignore[attr-defined]
    assert again.data.input_size == ALL == again.model.fusion.inputs  # type: ignore[union-attr, attr-defined]
    assert parts_of(again.data) == tuple(again.data.parts.values())  # type: ignore[attr-defined]


def test_studies_of_one_modality_keep_their_canonical_form() -> None:
    assert b"fusion" not in make_spec().canonical


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"label_from": "image"}, "label_from: expected a modality with an event"),
        ({"label_from": "lungs"}, "label_from: expected one of image, table, genome"),
        ({"modalities": [*modalities(), modalities()[1]]}, "modalities: expected every name once"),
        (
            {"modalities": modalities(image={"split": {**SPLIT, "salt": "y"}})},
            "image: expected the split of all modalities",
        ),
        (
            {"modalities": modalities(image={"no_patient_key": True, "split": SPLIT})},
            "split: expected another than hash where no patient has an id",
        ),
        (
            {"modalities": [*modalities(), {"name": "more", "data": multimodal_data()}]},
            "expected data that can be joined per patient, found 'multimodal'",
        ),
        (
            {"modalities": modalities(table={"label": {"column": "x", "unit": "kg", "low": 0.0,
                                                       "high": 9.0}})},
            "label_from: expected a modality with an event, a class or a time",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_joined_per_patient_is_refused_by_name(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        schema(**changes)


def test_a_study_with_one_genomic_modality_is_genomic() -> None:
    with pytest.raises(ValidationError, match="genomic: expected genomic = true"):
        multimodal_study(genomic=False)

    assert not schema(modalities=modalities()[:2]).is_genomic


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": {"name": "mlp", "hidden": [4]}}, "expected the name multimodal"),
        (
            {"model": model(fusion=fusion(encoders=fusion()["encoders"][:2]))},
            "expected one for each modality in their order",
        ),
        (
            {"model": model(fusion=fusion(encoders=fusion()["encoders"][::-1]))},
            "expected one for each modality in their order",
        ),
        ({"model": model(outputs=3)}, "model.outputs: expected 1, found 3"),
        ({"data": make_data(), "genomic": False}, "task.kind: expected one that fits the label"),
        (
            {"data": make_data(), "genomic": False, "task": {"kind": "tabular-classification"}},
            "found one of several modalities",
        ),
        (
            {"training": {"learning_rate": 0.5, "jitter": {"copies": 2, "scale": 0.1}}},
            "training.jitter: expected none",
        ),
        ({"task": {"kind": "multimodal", "class_weights": [1.0, 2.0, 3.0]}}, "class_weights"),
    ],
)
def test_task_model_and_data_have_to_fit(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_task(multimodal_study(**changes))


def test_several_classes_and_times_have_their_outputs() -> None:
    classes = {"column": "stage", "classes": ["a", "b", "c"]}
    times = {"column": "days", "event_column": "dead", "longest_days": 900.0}
    survival = {
        "kind": "survival",
        "likelihood": "discrete-hazard",
        "cuts": [100.0, 900.0],
        "horizon_days": 900.0,
    }
    genome_last = {"label_from": "genome"}
    three = multimodal_study(
        data=multimodal_data(modalities=modalities(genome={"label": classes}), **genome_last),
        model=model(outputs=3),
        releases=[
            {"kind": "class-scores", "classes": 3, "exclusive": True, "bins": 4,
             "noise_multiplier": 3.0}
        ],
    )  # fmt: skip
    timed = multimodal_study(
        data=multimodal_data(modalities=modalities(table={"label": times})),
        task=survival,
        model=model(outputs=2),
    )

    for study, outputs in ((three, 3), (timed, 2)):
        check_task(study)
        assert outputs_of(study) == outputs


def test_a_time_is_learned_by_either_likelihood_each_with_its_model() -> None:
    for likelihood in ("discrete-hazard", "proportional-hazards"):
        study = survival_study(likelihood=likelihood)

        check_task(study)

        assert outputs_of(study) == study.model.outputs == len(CUTS)
        assert StudySpec.model_validate_json(study.canonical).digest == study.digest


HAZARDS: dict[str, Any] = {"likelihood": "proportional-hazards"}


@pytest.mark.parametrize(
    ("settings", "changes", "reason"),
    [
        (
            HAZARDS,
            {"model": model(outputs=3)},
            "expected the name proportional-hazards and a table model.fusion",
        ),
        (
            HAZARDS,
            {"model": {"name": "proportional-hazards", "outputs": 3}},
            "expected the name proportional-hazards and a table model.fusion",
        ),
        (
            {"likelihood": "discrete-hazard"},
            {"model": model(name="proportional-hazards", outputs=3)},
            "expected the name multimodal and a table model.fusion",
        ),
        (
            HAZARDS,
            {"model": model(name="proportional-hazards", outputs=1)},
            "model.outputs: expected 3, found 1",
        ),
        (HAZARDS, {"data": multimodal_data()}, "task.kind: expected one that fits the label"),
        (
            HAZARDS,
            {"task": {"kind": "multimodal"}},
            "task.kind: expected one that fits the label, found 'multimodal'",
        ),
        (
            HAZARDS,
            {
                "model": model(
                    name="proportional-hazards",
                    outputs=3,
                    fusion=fusion(encoders=fusion()["encoders"][:2]),
                )
            },
            "expected one for each modality in their order",
        ),
        (
            HAZARDS,
            {
                "data": make_data(
                    label={"column": "days", "event_column": "dead", "longest_days": 900.0}
                ),
                "genomic": False,
            },
            "expected one of tabular, found one of several modalities",
        ),
    ],
)
def test_likelihood_label_and_model_of_a_survival_study_have_to_fit(
    settings: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_task(survival_study(**settings, **changes))


def test_proportional_hazards_are_a_model_of_survival_and_of_nothing_else() -> None:
    data = multimodal_data()
    with pytest.raises(ConfigError, match="expected the name multimodal"):
        check_task(multimodal_study(model=model(name="proportional-hazards"), data=data))
    with pytest.raises(ConfigError, match="found it of tabular-classification"):
        check_task(make_spec(model={"name": "proportional-hazards"}))


def test_a_label_may_be_in_any_modality_and_the_others_need_none() -> None:
    table = {key: value for key, value in modalities()[1]["data"].items() if key != "label"}
    image = {"kind": "image", "label": {"column": "ill", "low": 0, "high": 1, "positive_from": 1}}
    records = clinical(outcome={"kind": "none"})
    del records["split"]
    data = multimodal_data(
        label_from="image",
        modalities=[
            {"name": "image", "data": {**modalities()[0]["data"], **image}},
            {"name": "table", "data": table},
            {"name": "records", "data": records},
        ],
    )

    found = MultimodalData.model_validate(data)

    assert isinstance(found.label, LabelRule)
    assert (
        b'"label"' not in StudySpec.model_validate(make_document(data=table_alone(table))).canonical
    )


def table_alone(table: dict[str, Any]) -> dict[str, Any]:
    return {**table, "split": SPLIT}


def test_data_without_a_label_are_learned_from_in_no_study_of_their_own() -> None:
    table = make_data()
    del table["label"]
    for data in (table, clinical(outcome={"kind": "none"})):
        study = StudySpec.model_validate(make_document(data=data))
        with pytest.raises(ConfigError, match=r"task.kind: expected one that fits the label"):
            check_task(study)


def test_a_table_without_a_label_has_its_rows_and_another_s_label_decides() -> None:
    table = TabularData.model_validate(
        {key: value for key, value in make_data().items() if key != "label"}
    )
    rows = [
        {"patient_id": "a", "age": "40", "pain": "1", "split": "train"},
        {"patient_id": "a", "age": "41", "pain": "2", "split": "train"},
    ]

    found, absent = encode_present(table, rows, part="train")

    assert (found.ids, found.labels.tolist(), absent) == (("a",), [0.0, 0.0], 0)


def records(
    ids: list[str], width: int, *, value: float, each: int = 1, labels: list[float] | None = None
) -> PatientRecords:
    rows = [[value + number] * width for number in range(len(ids) * each)]
    return PatientRecords(
        features=np.array(rows, dtype=np.float32).reshape(-1, width),
        labels=np.repeat(labels or [0.0] * len(ids), each).astype(np.float32),
        patient=np.repeat(np.arange(len(ids)), each),
        ids=tuple(ids),
    )


def test_patients_are_joined_by_id_and_what_is_missing_is_zero() -> None:
    parts = {
        "image": records(["c", "x"], INPUTS["image"], value=100.0, each=2),
        "table": records(["a", "b", "c"], INPUTS["table"], value=10.0, labels=[1.0, 0.0, 1.0]),
        "genome": None,
    }

    whole = join(schema(), parts)

    assert whole.ids == ("a", "b", "c")
    assert whole.patient.tolist() == [0, 1, 2, 2]  # two images of c: the row comes round again
    assert whole.labels.tolist() == [1.0, 0.0, 1.0, 1.0]
    assert whole.features[:, :3].tolist() == [[0, 1, 0], [0, 1, 0], [1, 1, 0], [1, 1, 0]]
    assert whole.features[:, 3].tolist() == [0.0, 0.0, 100.0, 101.0]
    assert whole.features[:, -5].tolist() == [10.0, 11.0, 12.0, 12.0]
    assert not whole.features[:, -4:].any()
    assert without_label(schema(), parts) == 1


def test_without_the_modality_of_the_label_nothing_is_joined() -> None:
    with pytest.raises(DataError, match="expected modality 'table', which has the label"):
        join(schema(), {"image": None, "table": None, "genome": None})


def test_nobody_is_joined_to_no_records() -> None:
    parts = dict.fromkeys(INPUTS) | {"table": records([], 3, value=0.0)}

    whole = join(schema(), parts)

    assert whole.features.shape == (0, ALL)
    assert whole.patients == 0


@pytest.mark.parametrize("how", ["concatenation", "gated", "attention"])
def test_a_model_is_bit_identical_wherever_it_is_built_and_leaves_the_generator(how: str) -> None:
    spec = multimodal_study(how=how).model
    before = torch.random.get_rng_state()

    one, other = initial_tensors(spec, ALL), initial_tensors(spec, ALL)

    assert torch.equal(before, torch.random.get_rng_state())
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert one["encoders.genome.linear.weight"].any()  # a linear model alone starts at zero


@pytest.mark.parametrize("how", ["concatenation", "gated", "attention"])
def test_the_output_does_not_depend_on_what_stands_in_the_place_of_a_missing_modality(
    how: str,
) -> None:
    network = build_model(multimodal_study(how=how).model, ALL)
    features = torch.randn(5, ALL, generator=torch.Generator().manual_seed(0))
    features[:, :3] = torch.tensor([0.0, 1.0, 1.0])
    other = features.clone()
    other[:, 3 : 3 + INPUTS["image"]] = 7.0

    assert torch.equal(network(features), network(other))
    other[:, 0] = 1.0
    assert not torch.equal(network(features), network(other))


@pytest.mark.parametrize("how", ["concatenation", "gated", "attention"])
def test_log_hazards_are_one_score_of_all_modalities_and_the_intervals_baselines(how: str) -> None:
    """Parity with the two parts, each by itself: the score that `multimodal` has, and the layer."""
    spec = survival_study(how=how).model
    network = build_model(spec, ALL)
    score = build_model(spec.model_copy(update={"name": "multimodal", "outputs": 1}), ALL)
    features = torch.randn(5, ALL, generator=torch.Generator().manual_seed(0))
    features[:, :3] = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 0], [0, 1, 0], [1, 1, 1]])
    baselines = torch.tensor([-4.0, -3.0, -1.0])
    with torch.no_grad():
        network.get_parameter("baseline.weight").copy_(baselines[:, None])

    found = network(features)

    torch.testing.assert_close(found, score(features)[:, None] + baselines, rtol=0, atol=1e-6)
    assert found.shape == (5, len(CUTS))
    assert initial_tensors(spec, ALL).keys() == (
        {"baseline.weight"} | {f"risk.{name}" for name in initial_tensors(
            spec.model_copy(update={"name": "multimodal", "outputs": 1}), ALL)}
    )  # fmt: skip


def test_a_missing_modality_has_no_weight_in_attention() -> None:
    network = build_model(multimodal_study(how="attention").model, ALL)
    features = torch.zeros(1, ALL)
    features[0, 1] = 1.0

    alone = network(features)

    code = torch.tanh(network.get_submodule("encoders.table")(features[:, 67:70]))
    torch.testing.assert_close(alone, network.get_submodule("head")(code))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"name": "multimodal"}, "model.fusion: expected encoders"),
        (model(fusion=fusion(width=3)) | {"initial_seed": 1}, None),
        (
            model(
                fusion=fusion(
                    encoders=[
                        {"modality": "items", "name": "linear", "inputs": 64},
                        {"modality": "b", "name": "linear", "inputs": 8},
                    ]
                )
            ),
            "modality items: expected another name",
        ),
        (
            model(
                fusion=fusion(
                    encoders=[
                        {"modality": "a", "name": "cnn", "inputs": 64},
                        {"modality": "b", "name": "linear", "inputs": 8},
                    ]
                )
            ),
            "modality a: model.shape: expected",
        ),
    ],
)
def test_a_model_that_cannot_be_built_says_which_modality(
    spec: dict[str, Any], reason: str | None
) -> None:
    parsed = ModelSpec.model_validate(spec)
    if reason is None:
        build_model(parsed, ALL)
        return
    with pytest.raises(ConfigError, match=reason):
        build_model(parsed, ALL)


def test_data_of_several_modalities_are_never_modalities_themselves() -> None:
    assert isinstance(schema(), MultimodalData)
    with pytest.raises(ValidationError, match="modalities"):
        schema(modalities=modalities()[:1])
