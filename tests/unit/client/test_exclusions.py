"""Patients who object are in nothing that is computed; a broken list stops everything."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedward_client import flower_app
from fedward_client.data.site import SiteSource
from fedward_client.data.tabular import CsvSource
from fedward_client.data_entries import CsvFile
from fedward_client.exclusions import excluded_patients, exclusions_digest, parse_exclusions
from fedward_common.canonical import sha256_hex
from fedward_common.errors import DataError
from fedward_common.study.statistics import Table
from tests.support.guard_site import KEYS, a_study, make_site

STUDY = a_study()
ROWS = """patient,age,pressure,disease
p1,60,120,0
p2,61,121,1
p1,62,122,0
 p3 ,63,123,1
"p4",64,124,0
"""


def listed(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"patient_id\np1\np3\n",
        b"patient_id\r\np1\r\np3\r\n",
        b"\xef\xbb\xbfpatient_id\np1\n\n  p3  \n",
        b"patient_id\np3\np1\np1",
    ],
    ids=["plain", "windows", "mark and spaces", "twice and no last newline"],
)
def test_each_line_after_the_header_is_one_patient(tmp_path: Path, content: bytes) -> None:
    assert parse_exclusions(listed(tmp_path / "x.csv", content)) == {"p1", "p3"}


def test_a_header_alone_lists_nobody(tmp_path: Path) -> None:
    assert parse_exclusions(listed(tmp_path / "x.csv", b"patient_id\n")) == frozenset()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"p1\np2\n",
        b"patient\np1\n",
        b"patient_id,since\np1,2020\n",
        b"patient_id\np1,p2\n",
        b'patient_id\n"p1"\n',
        b"patient_id\np\x001\n",
        b"patient_id\n\xff\xfe\n",
        b"patient_id\n" + b"p" * 300,
    ],
    ids=[
        "empty", "blank", "no header", "another header", "two columns", "two ids", "quotes",
        "control", "bytes", "long",
    ],
)  # fmt: skip
def test_a_broken_list_is_refused_without_anything_out_of_it(
    tmp_path: Path, content: bytes
) -> None:
    with pytest.raises(DataError) as caught:
        parse_exclusions(listed(tmp_path / "x.csv", content))

    assert "p1" not in str(caught.value)


def test_a_list_that_is_gone_is_an_error_and_no_list_at_all_is_none(tmp_path: Path) -> None:
    site = make_site(tmp_path / "with", top={"exclusions": "gone.csv"})
    without = make_site(tmp_path / "without")

    with pytest.raises(DataError, match="expected the file that"):
        excluded_patients(site.settings)
    assert excluded_patients(without.settings) == frozenset()


def test_the_digest_is_of_the_files_bytes_and_answers_no_guess(tmp_path: Path) -> None:
    """Who reads the journal and guesses the list cannot tell whether it is that one."""
    content, key = b"patient_id\np1\n", KEYS["north"]
    path = listed(tmp_path / "x.csv", content)
    digest = exclusions_digest(path, key)

    assert digest == exclusions_digest(path, key)
    assert digest != exclusions_digest(path, KEYS["south"])
    assert digest != sha256_hex(content)
    assert digest != exclusions_digest(listed(path, content + b"p2\n"), key)


def source(folder: Path, excluded: Callable[[], frozenset[str]]) -> CsvSource:
    (folder / "patients.csv").write_text(ROWS)
    return CsvSource([CsvFile(path=folder / "patients.csv")], excluded=excluded)


def test_no_row_of_an_excluded_patient_comes_out_of_a_source(tmp_path: Path) -> None:
    table = source(tmp_path, lambda: frozenset({"p1", "p3", "p4"}))

    assert [row["patient"] for row in table.rows(STUDY)] == ["p2"]
    for part in ("train", "test"):
        for read in (table.records, table.checked_records):
            with_all = source(tmp_path, frozenset).records(STUDY, part=part)
            assert len(read(STUDY, part=part).labels) <= len(with_all.labels)
    both = [table.records(STUDY, part=part) for part in ("train", "test")]
    assert sum(len(records.labels) for records in both) == 1


def test_an_exclusion_holds_from_the_next_reading_on(tmp_path: Path) -> None:
    path = listed(tmp_path / "x.csv", b"patient_id\n")
    table = source(tmp_path, lambda: parse_exclusions(path))
    before = len(table.rows(STUDY))

    path.write_bytes(b"patient_id\np1\n")

    assert before == 5
    assert len(table.rows(STUDY)) == 3


def test_removing_by_the_list_is_the_same_as_not_having_the_rows(tmp_path: Path) -> None:
    """Nothing of the others' tensors depends on who is on the list (rules 6)."""
    excluded = source(tmp_path, lambda: frozenset({"p1"})).records(STUDY, part="train")
    (tmp_path / "other").mkdir()
    other = CsvSource([CsvFile(path=tmp_path / "other" / "patients.csv")])
    lines = [line for line in ROWS.splitlines() if not line.startswith("p1")]
    (tmp_path / "other" / "patients.csv").write_text("\n".join(lines))
    absent = other.records(STUDY, part="train")

    assert excluded.features.tobytes() == absent.features.tobytes()
    assert excluded.labels.tobytes() == absent.labels.tobytes()


def test_a_source_without_a_readable_list_yields_nothing(tmp_path: Path) -> None:
    table = source(tmp_path, lambda: parse_exclusions(tmp_path / "gone.csv"))

    for part in ("train", "test"):
        with pytest.raises(DataError, match="exclusions"):
            table.records(STUDY, part=part)
    with pytest.raises(DataError, match="exclusions"):
        table.rows(STUDY)


def test_a_table_for_statistics_leaves_them_out_too(tmp_path: Path) -> None:
    columns = STUDY.data.model_dump()["columns"]
    data = Table.model_validate({"patient_key": "patient", "columns": columns})
    study = STUDY.model_copy(update={"data": data})

    rows = source(tmp_path, lambda: frozenset({"p1"})).rows(study)

    assert [row["patient"] for row in rows] == ["p2", "p3", "p4"]


def test_the_worker_that_a_hospital_runs_leaves_them_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From site.toml to the rows, through the entry point of the worker's tasks."""
    site = make_site(tmp_path / "site", top={"exclusions": "exclusions.csv"})
    (site.folder / "patients.csv").write_text(ROWS)
    (site.folder / "exclusions.csv").write_text("patient_id\np1\n")
    monkeypatch.setenv(flower_app.SETTINGS_VARIABLE, str(site.folder / "site.toml"))
    flower_app.site_worker.cache_clear()

    source = flower_app.site_worker().source

    assert isinstance(source, SiteSource)
    assert [row["patient"] for row in source.rows(STUDY)] == ["p2", "p3", "p4"]
    flower_app.site_worker.cache_clear()
