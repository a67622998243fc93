"""CsvSource: a site's CSV files as records, and a DataError for every file that does not fit."""

from pathlib import Path

import numpy as np
import pytest

from fedward_client.data.tabular import CsvSource
from fedward_client.data_entries import CsvFile
from fedward_common.errors import DataError
from fedward_common.study.encoding import PatientRecords, TablePart
from tests.support.studies import make_dp, make_rows, make_spec, write_table

SECRET = "Jane-Roe-1234"


def read(
    *paths: Path, part: TablePart = "train", delimiter: str = ",", records: int = 1
) -> PatientRecords:
    study = make_spec(dp=make_dp(max_records_per_patient=records))
    source = CsvSource([CsvFile(path=path, delimiter=delimiter) for path in paths])
    return source.checked_records(study, part=part)


def refusal(*paths: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(*paths)
    message = str(caught.value)
    assert SECRET not in message
    assert not any(str(path) in message for path in paths)
    return message


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "patients.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


HEADER = "patient_id,age,pain,stage,split\n"


def test_a_table_becomes_the_records_of_a_part(tmp_path: Path) -> None:
    path = write_table(tmp_path / "patients.csv", make_rows(12))

    assert read(path, part="train").patients == 8
    assert read(path, part="test").patients == 4


def test_a_table_of_genomes_is_for_studies_that_say_so(tmp_path: Path) -> None:
    path = write_table(tmp_path / "patients.csv", make_rows(12))
    source = CsvSource([CsvFile(path=path, genomic=True)])

    for read_it in (source.checked_records, source.records):
        with pytest.raises(DataError, match="says genomic = true for a table of genomes"):
            read_it(make_spec(), part="train")
        assert read_it(make_spec(genomic=True), part="train").patients == 8
    with pytest.raises(DataError, match="says genomic = true for a table of genomes"):
        source.rows(make_spec())


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_the_delimiter_of_the_settings_is_used(tmp_path: Path, delimiter: str) -> None:
    path = write_table(tmp_path / "patients.csv", make_rows(12), delimiter=delimiter)

    assert read(path, delimiter=delimiter).patients == 8


def test_byte_order_mark_quotes_blank_lines_and_line_ends_do_no_harm(tmp_path: Path) -> None:
    text = HEADER + '"p1"," 60 ",1,0,train\n\n"p2",70,"2",1,train\n'
    plain = read(written(tmp_path, text))

    odd = read(written(tmp_path, b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()))

    np.testing.assert_array_equal(plain.features, odd.features)
    assert plain.patients == 2


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "CSV file: expected the table that [[data]]" in refusal(tmp_path / SECRET)


def test_a_folder_is_not_a_table(tmp_path: Path) -> None:
    assert "CSV file: expected a readable table" in refusal(tmp_path)


def test_absent_columns_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, "patient_id,age,stage\np1,60,0\n")

    assert "expected the columns 'pain', 'split'" in refusal(path)


def test_text_where_a_number_belongs_names_the_column(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + f"p1,{SECRET},1,0,train\n")

    assert "column 'age': expected a number in years" in refusal(path)


def test_a_label_out_of_range_names_the_column_and_the_range(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + f"{SECRET},60,1,7,train\n")

    assert "column 'stage': expected a whole number from 0 to 4" in refusal(path)


@pytest.mark.parametrize("text", [HEADER, HEADER + "p1,?,1,0,train\n"])
def test_a_site_with_no_patient_is_refused(tmp_path: Path, text: str) -> None:
    assert "expected at least one patient" in refusal(written(tmp_path, text))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert "expected a header line" in refusal(written(tmp_path, ""))


def test_a_patient_twice_is_refused_where_the_study_takes_one_record(tmp_path: Path) -> None:
    row = f"{SECRET},60,1,0,train\n"
    path = written(tmp_path, HEADER + row + row)

    assert "expected every patient once" in refusal(path)
    assert read(path, records=2).patients == 1
    assert len(read(path, records=2).labels) == 2


def test_a_patient_on_both_sides_of_the_split_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + f"{SECRET},60,1,0,train\n{SECRET},60,1,0,test\n")

    with pytest.raises(DataError, match="on one side"):
        read(path, records=2)


def test_bytes_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER.encode() + b"p1,60,1,0,train\xff\n")

    assert "expected UTF-8 text" in refusal(path)


@pytest.mark.parametrize("row", [f"{SECRET},60,1,0\n", f"{SECRET},60,1,0,train,more\n"])
def test_ragged_rows_are_refused(tmp_path: Path, row: str) -> None:
    path = written(tmp_path, HEADER + "p1,60,1,0,train\n" + row)

    assert "expected 5 cells in every row as in the header" in refusal(path)


def test_broken_quotes_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + f'"{SECRET}"x,60,1,0,train\n')

    assert "expected well-formed rows" in refusal(path)


def test_a_column_name_twice_in_the_header_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "patient_id,age,age,pain,stage,split\np1,60,60,1,0,train\n")

    assert "every column name once in the header" in refusal(path)


def test_the_one_table_that_fits_the_study_is_read(tmp_path: Path) -> None:
    other = write_table(tmp_path / "other.csv", [{"patient_id": "p1", "weight": "80"}])
    path = write_table(tmp_path / "patients.csv", make_rows(12))

    assert read(other, path).patients == 8


def test_two_tables_that_fit_are_refused(tmp_path: Path) -> None:
    first = write_table(tmp_path / "first.csv", make_rows(12))
    second = write_table(tmp_path / "second.csv", make_rows(12, prefix="q"))

    assert "expected one table with the study's columns, found 2" in refusal(first, second)
