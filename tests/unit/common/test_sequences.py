"""Sequences as tensors: public alphabets and words, ambiguous codes by name, FASTA files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fedward_common.errors import DataError
from fedward_common.study.row_encoding import encode_rows
from fedward_common.study.sequence import AMBIGUOUS, LETTERS, SequenceData
from fedward_common.study.sequence_encoding import (
    encode_sequence,
    read_fasta,
    sequence_features,
)


def data(**changes: Any) -> SequenceData:
    values = {
        "kind": "sequence",
        "alphabet": "dna",
        "length": 4,
        "encoding": {"kind": "one-hot"},
        "label": {"column": "site", "classes": ["donor", "acceptor", "neither"]},
        "split": {"kind": "column", "column": "split"},
    }
    return SequenceData.model_validate(values | changes)


def row(patient: str, letters: str, **more: str) -> dict[str, str]:
    return {"patient_id": patient, "sequence": letters, "site": "donor", "split": "train"} | more


def test_each_letter_is_one_of_its_place_and_an_ambiguous_code_is_in_equal_parts() -> None:
    found = encode_sequence(data(), "AcgN").reshape(4, 4)

    assert found[:3].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert found[3].tolist() == [0.25] * 4


def test_an_unknown_letter_is_nothing_where_the_study_says_so() -> None:
    assert encode_sequence(data(ambiguous="unknown"), "ACGN").reshape(4, 4)[3].sum() == 0


@pytest.mark.parametrize("alphabet", ["dna", "rna", "protein"])
def test_every_ambiguous_code_stands_for_letters_of_its_alphabet(alphabet: Any) -> None:
    schema = data(alphabet=alphabet, length=1)

    for code, letters in AMBIGUOUS[alphabet].items():
        shares = encode_sequence(schema, code)
        assert np.flatnonzero(shares).tolist() == [LETTERS[alphabet].index(x) for x in letters]
        assert shares.sum() == pytest.approx(1.0)


def test_words_have_public_numbers_and_one_with_an_unknown_letter_is_one() -> None:
    schema = data(encoding={"kind": "k-mers", "k": 2}, ambiguous="unknown", length=5)

    found = encode_sequence(schema, "AACNT")

    assert schema.input_size == 4
    assert schema.token_size == 18
    assert found.tolist() == [2, 3, 1, 1]


def test_longer_is_cut_and_shorter_is_filled_where_the_study_says_so() -> None:
    fit = data(other_lengths="fit")
    words = data(
        other_lengths="fit", encoding={"kind": "k-mers", "k": 2}, ambiguous="refuse", length=4
    )

    assert (encode_sequence(fit, "ACGTACGT") == encode_sequence(fit, "ACGT")).all()
    assert encode_sequence(fit, "AC").reshape(4, 4)[2:].sum() == 0
    assert encode_sequence(words, "AC").tolist() == [3, 0, 0]


@pytest.mark.parametrize(
    ("changes", "letters", "expected"),
    [
        ({}, "ACG", "4 letters"),
        ({}, "ACGU", "letters of dna"),
        ({"alphabet": "rna"}, "ACGT", "letters of rna"),
        ({"ambiguous": "refuse"}, "ACGN", "letters of dna"),
        ({}, "AC-T", "letters of dna"),
    ],
)
def test_what_does_not_fit_is_refused_without_a_letter_of_it(
    changes: dict[str, Any], letters: str, expected: str
) -> None:
    with pytest.raises(DataError, match=expected) as refused:
        encode_sequence(data(**changes), letters)

    assert letters not in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"encoding": {"kind": "k-mers", "k": 2}},
        {"encoding": {"kind": "k-mers", "k": 5}, "ambiguous": "refuse"},
        {"alphabet": "protein", "encoding": {"kind": "k-mers", "k": 4}, "ambiguous": "refuse"},
        {"label": {"column": "days", "event_column": "died", "longest_days": 100.0}},
        {"label": {"column": "sequence", "low": 0, "high": 1, "positive_from": 1}},
    ],
    ids=["shares of words", "longer than all", "too many words", "survival", "one column twice"],
)
def test_a_schema_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        data(**changes)


def test_a_patient_whose_sequence_does_not_fit_is_absent_and_no_other_changes() -> None:
    schema = data()
    good = [row("a", "ACGT"), row("b", "TTTT", site="neither")]

    records, absent = encode_rows(schema, good, sequence_features(schema), part="train")
    with_bad, one = encode_rows(
        schema,
        [good[0], row("c", "ACGX"), row("c", "ACGT"), good[1]],
        sequence_features(schema),
        part="train",
    )

    assert (absent, one) == (0, 1)
    assert (records.features == with_bad.features).all()
    assert records.labels.tolist() == with_bad.labels.tolist() == [0.0, 2.0]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row("a", "ACGT"), row("a", "ACGT", site="neither")], "one label"),
        ([row("a", "ACGT"), row("a", "ACGT", split="test")], "one side"),
        ([row("a", "ACGT", site="else")], "3 classes"),
        ([row("", "ACGT")], "patient id"),
        ([row("a", "ACGT", split="test")], "to train on"),
    ],
)
def test_for_the_sites_own_eyes_what_does_not_fit_is_an_error(
    rows: list[dict[str, str]], expected: str
) -> None:
    schema = data()

    with pytest.raises(DataError, match=expected):
        encode_rows(schema, rows, sequence_features(schema), part="train", strict=True)


def test_a_fasta_file_has_its_records_by_name_and_a_name_twice_is_nobody_s(tmp_path: Path) -> None:
    path = tmp_path / "x.fasta"
    path.write_text(">a Homo sapiens\nAC\nGT\n\n>b\nACGT\n>b\nTTTT\n")
    schema = data()

    fasta = read_fasta(path)
    records, absent = encode_rows(
        schema,
        [row("p", "a"), row("q", "b"), row("r", "none")],
        sequence_features(schema, fasta),
        part="train",
    )

    assert fasta == {"a": "ACGT", "b": None}
    assert (records.patients, absent) == (1, 2)
    assert (records.features[0] == encode_sequence(schema, "ACGT")).all()


def test_bytes_that_are_no_text_make_one_record_unreadable_and_touch_no_other(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.fasta"
    path.write_bytes(b">a M\xfcller\nACGT\n>b\nAC\xffT\n>\xfc1\nACGT\n>\xfd1\nACGT\n>c\nTTTT\n")
    schema = data()

    records, absent = encode_rows(
        schema,
        [row("p", "a"), row("q", "b"), row("r", "c")],
        sequence_features(schema, read_fasta(path)),
        part="train",
    )

    assert (records.patients, absent) == (2, 1)


@pytest.mark.parametrize("content", [b"ACGT\n", b"\xff\xfe"])
def test_what_is_no_fasta_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.fasta"
    path.write_bytes(content)

    with pytest.raises(DataError, match="FASTA"):
        read_fasta(path)
