"""Patients without a label: who gets one of the model, who has no part, and nobody is moved."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedward_client.tasks.registry import task_of
from fedward_client.training.pseudo_labels import with_pseudo_labels
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.arrays import Array
from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId
from fedward_common.study.encoding import PatientRecords, encode_present, encode_table
from fedward_common.study.spec import StudySpec
from fedward_common.study.tabular import TabularData
from tests.support.naive_dp import FirstInLine, NoNoise
from tests.support.studies import make_data, make_dp, make_rows, make_spec

TRAINING = {"learning_rate": 0.5, "pseudo_labels": {"confidence": 0.8}}
KEPT = {"unlabelled": "keep"}


def study(**changes: Any) -> StudySpec:
    own = {"data": make_data(**KEPT), "training": TRAINING, "rounds": 1, "local_steps": 1}
    return make_spec(**(own | {"dp": make_dp(steps=1)} | changes))


def weights(*, slope: float) -> dict[str, Array]:
    """A model that looks at the first input alone."""
    return {
        "linear.weight": np.array([[slope, 0.0, 0.0]], np.float32),
        "linear.bias": np.zeros(1, np.float32),
    }


def records(labels: list[float], firsts: list[float], patient: list[int]) -> PatientRecords:
    features = np.zeros((len(labels), 3), np.float32)
    features[:, 0] = firsts
    return PatientRecords(
        features=features, labels=np.array(labels, np.float32), patient=np.array(patient)
    )


NAN = float("nan")
SOME = records([1.0, NAN, NAN, NAN, NAN, 0.0], [-1.0, 1.0, -1.0, 0.1, 0.9, 1.0], [0, 1, 2, 3, 3, 4])


def test_a_sure_model_labels_a_patient_by_the_mean_and_an_unsure_one_leaves_it_out() -> None:
    found = with_pseudo_labels(study(), weights(slope=2.0), SOME)

    assert found.labels.tolist() == [1.0, 1.0, 0.0, 0.0]  # of patients 0, 1, 2 and 4
    assert found.patient.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(found.features[:, 0], [-1.0, 1.0, -1.0, 1.0])


def test_a_model_that_has_learned_nothing_labels_nobody() -> None:
    assert with_pseudo_labels(study(), weights(slope=0.0), SOME).labels.tolist() == [1.0, 0.0]


def test_leaving_a_patient_out_changes_no_other_s_label() -> None:
    """The privacy unit stays the patient: whose label it is, only that patient decides."""
    draws = np.random.default_rng(0)
    labels = np.where(draws.random(40) < 0.3, 1.0, NAN).tolist()
    everyone = records(labels, draws.uniform(-2, 2, 40).tolist(), [n // 2 for n in range(40)])

    def after(part: PatientRecords) -> dict[bytes, float]:
        found = with_pseudo_labels(study(), weights(slope=2.0), part)
        rows = (row.tobytes() for row in found.features)
        return dict(zip(rows, found.labels.tolist(), strict=True))

    whole = after(everyone)
    for left_out in range(20):
        keep = everyone.patient != left_out
        part = replace(
            everyone,
            features=everyone.features[keep],
            labels=everyone.labels[keep],
            patient=np.unique(everyone.patient[keep], return_inverse=True)[1],
        )
        gone = {row.tobytes() for row in everyone.features[~keep]}
        assert after(part) == {row: label for row, label in whole.items() if row not in gone}


def test_a_patient_without_a_label_learns_as_one_with_the_model_s_label() -> None:
    spec, start = study(), weights(slope=2.0)

    def trained(part: PatientRecords) -> dict[str, Array]:
        trainer = LocalTrainer(
            spec, SiteId("north"), sampling=FirstInLine(), noise=NoNoise(), flags=PerformanceFlags()
        )
        return trainer.train(start, part).tensors

    found = trained(SOME)

    expected = trained(records([1.0, 1.0, 0.0, 0.0], [-1.0, 1.0, -1.0, 1.0], [0, 1, 2, 3]))
    assert all((found[name] == expected[name]).all() for name in found)
    assert any((found[name] != start[name]).any() for name in found)


def test_rows_without_a_label_are_kept_where_they_are_all_that_a_training_patient_has() -> None:
    rows = make_rows(6, records=2)
    for number in (0, 1, 2, 4, 5):  # all of p0, one of p1, all of p2, which is held out
        rows[number]["stage"] = "?"
    data, dropping = study().data, make_spec().data
    assert isinstance(data, TabularData)
    assert isinstance(dropping, TabularData)

    found, absent = encode_present(data, rows, part="train")

    assert absent == 0
    assert found.ids == ("p0", "p1", "p3", "p4")
    np.testing.assert_array_equal(np.isnan(found.labels), [True, True, *[False] * 5])
    checked = encode_table(data, rows, part="train")
    np.testing.assert_array_equal(checked.labels, found.labels)
    assert encode_present(data, rows, part="test")[0].ids == ("p5",)
    assert encode_present(dropping, rows, part="train")[0].ids == ("p1", "p3", "p4")


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"learning_rate": 0.5}},
        {"data": make_data()},
    ],
)
def test_table_and_recipe_have_to_agree(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="pseudo_labels"):
        task_of(study(**changes))


def test_only_a_label_of_two_classes_can_be_given() -> None:
    number = {"column": "stage", "unit": "stages", "low": 0.0, "high": 4.0}
    with pytest.raises(ValueError, match="two classes"):
        study(data=make_data(label=number, **KEPT))


def test_studies_without_it_have_the_digests_they_had() -> None:
    canonical = make_spec().canonical.decode()

    assert "unlabelled" not in canonical
    assert "pseudo_labels" not in canonical
