"""Groups of patients by the model's own inputs, and where their scores are counted."""

from typing import Any

import numpy as np
import pytest

from fedward_common.errors import ConfigError
from fedward_common.privacy.histogram import NOWHERE, tallied
from fedward_common.study.encoding import encode_table
from fedward_common.study.grouped_scores import (
    GroupedScores,
    Grouping,
    ValueScores,
    check_groupings,
    group_places,
    grouped_places,
    value_places,
)
from fedward_common.study.tabular import TabularData
from tests.support.clinical import schema
from tests.support.multimodal import schema as multimodal_schema
from tests.support.studies import make_data

DATA = TabularData.model_validate(make_data())
AGE = Grouping(by="age", cuts=(50.0, 65.0))
PAIN = Grouping(by="pain", values=("1", "2", "3"))


def release(*groupings: Grouping, bins: int = 4, **changes: Any) -> GroupedScores:
    return GroupedScores(bins=bins, noise_multiplier=3.0, groupings=groupings, **changes)


def inputs(*rows: tuple[str, str]) -> np.ndarray:
    table = [
        {"patient_id": f"p{n}", "age": age, "pain": pain, "stage": "0", "split": "train"}
        for n, (age, pain) in enumerate(rows)
    ]
    return encode_table(DATA, table, part="train").features


def test_a_band_begins_at_its_cut_and_a_code_is_its_own_group() -> None:
    features = inputs(("49.9", "1"), ("50", "2"), ("64.9", "3"), ("65", "1"), ("65.1", "2"))

    assert group_places(DATA, AGE, features).tolist() == [0, 1, 1, 2, 2]
    assert group_places(DATA, PAIN, features).tolist() == [0, 1, 2, 0, 1]
    assert AGE.names == ("below 50", "50 to 65", "65 and above")


def test_an_unknown_sex_is_in_no_group_and_a_missing_number_neither() -> None:
    data = schema()
    columns = {f.name: sum(g.width for g in data.static[:n]) for n, f in enumerate(data.static)}
    features = np.zeros((3, data.input_size), dtype=np.float32)
    features[0, columns["sex"]] = 1.0
    features[1, columns["sex"] + 1] = 1.0
    features[:, columns["glucose"] + 1] = [0.0, 0.0, 1.0]  # the indicator: filled

    sexes = group_places(data, Grouping(by="sex", values=("female", "male")), features)
    glucose = group_places(data, Grouping(by="glucose", cuts=(7.0,)), features)

    assert sexes.tolist() == [0, 1, -1]
    assert glucose.tolist() == [1, 1, -1]


@pytest.mark.parametrize(
    "grouping",
    [
        Grouping(by="weight", cuts=(50.0,)),
        Grouping(by="age", values=("old", "young")),
        Grouping(by="age", cuts=(5.0,)),
        Grouping(by="pain", values=("1", "2")),
    ],
)
def test_groups_that_the_inputs_do_not_tell_are_refused_before_anything_is_signed(
    grouping: Grouping,
) -> None:
    with pytest.raises(ConfigError, match="groupings"):
        check_groupings(DATA, release(grouping))


def test_a_patient_marks_everybody_and_each_grouping_once_in_rows_of_their_own() -> None:
    features = inputs(("49", "1"), ("70", "3"))
    asked = release(AGE, PAIN)

    places = grouped_places(
        DATA,
        asked,
        scores=np.array([0.1, 1.0]),
        classes=np.array([0.0, 1.0]),
        features=features,
        nowhere=NOWHERE,
    )
    counts = tallied(places, np.array([0, 1]), rows=asked.rows, bins=4)

    assert (asked.rows, asked.marks) == (14, 3)
    rows, bins = np.nonzero(counts)
    assert list(zip(rows.tolist(), bins.tolist(), strict=True)) == [
        (0, 0), (1, 3), (2, 0), (7, 3), (8, 0), (13, 3),
    ]  # fmt: skip
    # One patient less: sqrt(marks) in L2, which is what the noise is relative to.
    fewer = tallied(places[:1], np.array([0]), rows=asked.rows, bins=4)
    assert np.linalg.norm(counts - fewer) == pytest.approx(asked.sensitivity)


def test_who_has_no_class_or_no_finite_score_is_counted_nowhere() -> None:
    places = grouped_places(
        DATA,
        release(AGE),
        scores=np.array([0.5, np.nan]),
        classes=np.array([np.nan, 1.0]),
        features=inputs(("49", "1"), ("70", "3")),
        nowhere=NOWHERE,
    )

    assert (places == NOWHERE).all()


def test_values_are_counted_by_what_was_measured_and_what_was_predicted() -> None:
    asked = ValueScores(bins=4, noise_multiplier=3.0)

    places = value_places(
        asked,
        scores=np.array([0.0, 0.6, 1.0, np.nan]),
        labels=np.array([-1.0, 0.5, 1.0, 0.0]),
        nowhere=NOWHERE,
    )

    assert places[:, 0].tolist() == [0, 3 * 4 + 2, 15, NOWHERE]
    assert (asked.rows, asked.marks) == (4, 1)


def test_a_group_of_whole_patients_is_told_by_its_modality_and_who_lacks_it_is_in_none() -> None:
    data = multimodal_schema()
    alone = inputs(("40", "1"), ("55", "2"), ("70", "3"))
    whole = np.zeros((4, data.input_size), dtype=np.float32)
    whole[:3, 1] = 1.0  # the second modality is the table
    whole[:3, 67:70] = alone

    check_groupings(data, release(AGE, PAIN))

    for grouping in (AGE, PAIN):
        expected = [*group_places(DATA, grouping, alone).tolist(), -1]
        assert group_places(data, grouping, whole).tolist() == expected
    with pytest.raises(ConfigError, match="a column or a feature of a modality"):
        check_groupings(data, release(Grouping(by="weight", cuts=(50.0,))))
