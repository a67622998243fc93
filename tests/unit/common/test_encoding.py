"""From rows to tensors: exact numbers, and a DataError without values for every bad table."""

import hashlib
from typing import Any

import numpy as np
import pytest

from fedward_common.errors import DataError
from fedward_common.study.encoding import (
    PatientRecords,
    check_columns,
    encode_table,
    hash_part,
)
from fedward_common.study.tabular import HashSplit, TabularData
from tests.support.studies import make_data, make_rows

SECRET = "Jane-Roe-1234"


def schema(**changes: Any) -> TabularData:
    return TabularData.model_validate(make_data(**changes))


def row(**changes: str) -> dict[str, str]:
    base = {"patient_id": "p1", "age": "60", "pain": "1", "stage": "0", "split": "train"}
    return base | changes


def encode(*rows: dict[str, str], part: Any = "train", **changes: Any) -> PatientRecords:
    return encode_table(schema(**changes), rows, part=part)


def refusal(*rows: dict[str, str], **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        encode_table(schema(), rows, part="train", **options)
    return str(caught.value)


def test_a_number_is_mapped_from_its_limits_to_minus_one_and_one() -> None:
    records = encode(
        row(age="20"), row(patient_id="p2", age="80.0"), row(patient_id="p3", age="1e2")
    )

    assert records.features[:, 0].tolist() == [-1.0, 0.5, 1.0]
    assert records.features.dtype == np.float32


def test_a_number_beyond_its_limits_counts_as_the_limit() -> None:
    records = encode(row(age="-5"), row(patient_id="p2", age="4000"))

    assert records.features[:, 0].tolist() == [-1.0, 1.0]


def test_a_category_has_one_input_per_value_except_the_first() -> None:
    records = encode(row(pain="1"), row(patient_id="p2", pain="2"), row(patient_id="p3", pain="3"))

    assert records.features[:, 1:].tolist() == [[0, 0], [1, 0], [0, 1]]


@pytest.mark.parametrize("text", ["2", "2.0", " 2.00 ", "2."])
def test_a_code_may_be_written_as_a_whole_decimal(text: str) -> None:
    assert encode(row(pain=text)).features[0, 1:].tolist() == [1, 0]


def test_the_label_is_positive_from_the_study_s_threshold_upwards() -> None:
    rows = [row(patient_id=f"p{stage}", stage=stage) for stage in ("0", "1", "4", "2.0")]

    assert encode(*rows).labels.tolist() == [0.0, 1.0, 1.0, 1.0]


def test_records_of_a_patient_are_neighbours_in_order_of_first_appearance() -> None:
    records = encode(
        row(patient_id="b", age="20"), row(patient_id="a", age="60"), row(patient_id="b", age="100")
    )

    assert records.patient.tolist() == [0, 0, 1]
    assert records.features[:, 0].tolist() == [-1.0, 1.0, 0.0]
    assert records.patients == 2


def test_the_split_column_decides_the_part() -> None:
    rows = [row(), row(patient_id="p2", split="test")]

    assert encode(*rows, part="train").patients == 1
    assert encode(*rows, part="test").patients == 1


def test_the_hash_split_is_the_documented_fraction() -> None:
    split = HashSplit(salt="salt", held_out=0.3)
    for patient in ("p1", "p2", "p3", "p4", "p5"):
        digest = hashlib.sha256(f"salt|{patient}".encode()).hexdigest()
        fraction = int(digest[:16], 16) / 16**16

        assert hash_part(split, patient) == ("test" if fraction < 0.3 else "train")


def test_the_hash_split_holds_out_its_share() -> None:
    split = HashSplit(salt="salt", held_out=0.3)

    held_out = sum(hash_part(split, f"p{number}") == "test" for number in range(10_000))

    assert 2850 < held_out < 3150


@pytest.mark.parametrize("code", ["", "?", "NA", " ? "])
def test_a_row_with_a_missing_value_is_dropped(code: str) -> None:
    records = encode(row(), row(patient_id="p2", age=code), row(patient_id="p3", pain=code))

    assert records.patients == 1


def test_a_missing_code_of_a_column_is_missing_in_that_column_only() -> None:
    columns = make_data()["columns"]
    columns[0] = {**columns[0], "missing_codes": ["0"]}

    records = encode(row(), row(patient_id="p2", age="0.0"), row(patient_id="p3"), columns=columns)

    assert records.patients == 2


def test_a_missing_value_is_filled_with_the_public_value() -> None:
    columns = make_data()["columns"]
    columns = [{**columns[0], "fill": 80.0}, {**columns[1], "fill": "3"}]

    records = encode(row(age="?", pain=""), missing="fill", columns=columns)

    assert records.features.tolist() == [[0.5, 0.0, 1.0]]


def test_a_row_without_a_label_is_dropped_even_where_values_are_filled() -> None:
    columns = make_data()["columns"]
    columns = [{**columns[0], "fill": 80.0}, {**columns[1], "fill": "3"}]

    records = encode(row(), row(patient_id="p2", stage="?"), missing="fill", columns=columns)

    assert records.patients == 1


@pytest.mark.parametrize("text", [SECRET, "1,5", "0x10", "nan", "inf", "1_000", "1e999", "--1"])
def test_text_where_a_number_belongs_names_the_column_and_not_the_text(text: str) -> None:
    message = refusal(row(), row(patient_id="p2", age=text))

    assert "column 'age': expected a number in years" in message
    assert text not in message


def test_a_code_the_study_does_not_know_names_the_column_and_not_the_code() -> None:
    message = refusal(row(pain=SECRET))

    assert "column 'pain': expected one of the study's 3 codes" in message
    assert SECRET not in message


@pytest.mark.parametrize("label", ["5", "-1", "0.5", SECRET, "99999999999"])
def test_a_label_out_of_range_names_column_and_range_and_not_the_label(label: str) -> None:
    message = refusal(row(patient_id=SECRET, stage=label))

    assert "column 'stage': expected a whole number from 0 to 4" in message
    assert SECRET not in message


def test_a_wrong_cell_is_found_in_the_other_part_and_after_a_missing_value_too() -> None:
    assert "column 'pain'" in refusal(row(), row(patient_id="p2", split="test", pain="9"))
    assert "column 'pain'" in refusal(row(), row(patient_id="p2", age="?", pain="9"))


def test_a_patient_id_must_be_there() -> None:
    assert "column 'patient_id': expected a patient id" in refusal(row(patient_id=" "))


def test_the_split_column_says_train_or_test() -> None:
    message = refusal(row(split=SECRET))

    assert "column 'split': expected 'train' or 'test'" in message
    assert SECRET not in message


def test_a_patient_twice_is_refused_where_the_study_takes_one_record() -> None:
    rows = [row(patient_id=SECRET), row(patient_id=SECRET)]

    message = refusal(*rows, one_record_per_patient=True)

    assert "expected every patient once" in message
    assert SECRET not in message
    assert encode(*rows).patients == 1


def test_a_patient_on_both_sides_of_the_split_is_refused() -> None:
    message = refusal(row(patient_id=SECRET), row(patient_id=SECRET, split="test"))

    assert "expected all rows of a patient on one side" in message
    assert SECRET not in message


def test_a_patient_with_both_classes_is_refused() -> None:
    message = refusal(row(patient_id=SECRET), row(patient_id=SECRET, stage="2"))

    assert "expected one label per patient" in message
    assert SECRET not in message


def test_two_stages_of_the_same_class_are_one_label() -> None:
    assert encode(row(stage="1"), row(stage="4")).labels.tolist() == [1.0, 1.0]


def test_a_table_without_a_patient_is_refused() -> None:
    assert "expected at least one patient" in refusal()
    assert "expected at least one patient" in refusal(row(age="?"))
    assert "expected at least one patient to train on" in refusal(row(split="test"))


def test_no_held_out_patient_is_an_empty_part_of_the_right_shape() -> None:
    records = encode(row(), part="test")

    assert records.patients == 0
    assert records.features.shape == (0, 3)
    assert records.labels.shape == records.patient.shape == (0,)


def test_absent_columns_are_all_named() -> None:
    with pytest.raises(DataError, match="expected the columns 'age', 'split'"):
        check_columns(schema(), ["patient_id", "pain", "stage"])


def test_other_columns_do_no_harm() -> None:
    rows = make_rows()
    more = [{**row, "name": SECRET, "ward": "7"} for row in rows]

    plain, extended = (encode_table(schema(), table, part="train") for table in (rows, more))

    np.testing.assert_array_equal(plain.features, extended.features)
