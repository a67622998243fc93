"""A site's variant file and its table of people: what is read, refused, and never shown."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pysam
import pytest

from fedward_client.data.genotypes import GenotypeSource
from fedward_client.data.vcf import WINDOW, read_vcf
from fedward_client.data_entries import GenotypeFiles
from fedward_common.errors import DataError
from fedward_common.genotypes.alignment import Calls
from fedward_server.sandbox.genotypes import read_site
from tests.support.genotype_studies import (
    HEADER,
    LOCI,
    genotype_study,
    loci,
    people,
    schema,
    simple_lines,
    write_people,
    write_vcf,
)

SAMPLES = ("s0", "s1", "s2")
MIXED = [["0|0", "0/1", "1|1"], ["0/1", "./.", "0/0"], ["1/1", "0/0", "0/1"], ["0/1"] * 3]


def entry(folder: Path, **changes: Any) -> GenotypeFiles:
    values = {
        "path": folder / "genotypes.vcf.gz",
        "people": folder / "patients.csv",
        "build": "GRCh37",
        "patient_key": "patient_id",
    }
    return GenotypeFiles(**(values | changes))


def site(folder: Path, *, lines: list[list[str]] | None = None, count: int = 3) -> Path:
    path = folder / "genotypes.vcf.gz"
    write_vcf(path, simple_lines(MIXED) if lines is None else lines, samples=SAMPLES[:count])
    write_people(folder / "patients.csv", people(count))
    return path


def same(one: Calls, other: Calls) -> None:
    np.testing.assert_array_equal(one.alleles, other.alleles)
    np.testing.assert_array_equal(one.dosage, other.dosage)
    there = (one.alleles >= 0).all(axis=2)
    np.testing.assert_array_equal(one.phased[there], other.phased[there])
    assert (one.found, one.refused) == (other.found, other.refused)


def test_the_site_s_reader_and_the_sandbox_s_own_agree(tmp_path: Path) -> None:
    path = site(
        tmp_path,
        lines=[
            ["chr1", "1000", "A", "G", "PASS", "GT:GQ:DP:DS", "0|1:9:9:0.9", "1/1:50:3:2", "./."],
            ["1", "2000", "T", "C,G", "PASS", "GT", "0/1", "0/2", "1|1"],
            ["2", "1500", "C", "T", "LowQual", "GT", "0/1", "0/0", "1/1"],
            ["20", "9000", "AT", "A", ".", "GT:DP", "0/1:30", "0/0:40", "1/1:."],
        ],
    )

    for changes in ({}, {"coding": "dosage"}, {"min_genotype_quality": 20}, {"min_depth": 8}):
        data = schema(**changes)
        found = read_vcf(path, data)
        same(found, read_site(data, path)[0])

    assert read_vcf(path, schema()).alleles[:, 1].tolist() == [[1, 0], [1, -1], [0, 0]]


def test_with_an_index_the_same_is_read_by_regions(tmp_path: Path) -> None:
    plain = site(tmp_path / "plain")
    text = write_vcf(tmp_path / "indexed.vcf", simple_lines(MIXED), samples=SAMPLES)
    indexed = Path(pysam.tabix_index(str(text), preset="vcf", force=True))

    assert indexed.with_name(indexed.name + ".tbi").is_file()
    same(read_vcf(indexed, schema()), read_vcf(plain, schema()))


def test_a_region_without_records_shows_no_path(tmp_path: Path) -> None:
    text = write_vcf(tmp_path / "secret.vcf", simple_lines(MIXED[:1], LOCI[:1]), samples=SAMPLES)
    indexed = Path(pysam.tabix_index(str(text), preset="vcf", force=True))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_vcf(indexed, schema())

    assert found.refused == dict.fromkeys(("rs2", "rs3", "rs4"), "not in the file")


def test_a_file_that_was_cut_off_is_refused_though_its_index_is_whole(tmp_path: Path) -> None:
    text = write_vcf(tmp_path / "whole.vcf", simple_lines(MIXED), samples=SAMPLES)
    indexed = Path(pysam.tabix_index(str(text), preset="vcf", force=True))
    indexed.write_bytes(indexed.read_bytes()[:-28])

    with pytest.raises(DataError, match="end block"):
        read_vcf(indexed, schema())


@pytest.mark.parametrize("used", ["1", "chr1"])
def test_a_header_with_both_names_of_a_chromosome_hides_no_record(
    used: str, tmp_path: Path
) -> None:
    rows = [("rs1", "1", 1000, "A", "G", 0.3)]
    header = [
        *HEADER[:3],
        "##contig=<ID=1,length=249250621>",
        "##contig=<ID=chr1,length=249250621>",
        *HEADER[6:],
    ]
    lines = [[used, "1000", "A", "G", "PASS", "GT", "0/0", "0/1", "1/1"]]
    text = write_vcf(tmp_path / "a.vcf", lines, samples=SAMPLES, header=header)
    data = schema(loci=loci(rows))
    plain = read_vcf(text, data)
    indexed = Path(pysam.tabix_index(str(text), preset="vcf", force=True))

    same(read_vcf(indexed, data), plain)
    assert not plain.refused


@pytest.mark.parametrize("third", ["T", "AT", "*"])
def test_a_site_of_several_alleles_gives_the_same_numbers_whole_and_split(
    third: str, tmp_path: Path
) -> None:
    """The lower lines are what `bcftools norm -m-` makes of the upper one."""
    rows = [("rs1", "1", 1000, "A", "G", 0.3)]
    samples = [f"s{n}" for n in range(5)]
    whole = [["1", "1000", "A", f"G,{third}", "PASS", "GT", "0|1", "1|2", "0|2", "2|2", "0|0"]]
    split = [
        ["1", "1000", "A", "G", "PASS", "GT:DS", "0|1:1", "1|0:1", "0|0:0", "0|0:0", "0|0:0"],
        ["1", "1000", "A", third, "PASS", "GT:DS", "0|0:0", "0|1:1", "0|1:1", "1|1:2", "0|0:0"],
    ]
    data = schema(loci=loci(rows), coding="dosage")
    expected = read_vcf(write_vcf(tmp_path / "w.vcf", whole, samples=samples), data)

    for lines in (split, split[::-1]):
        path = write_vcf(tmp_path / "s.vcf", lines, samples=samples)
        same(read_vcf(path, data), expected)
    assert expected.alleles[:, 0].tolist() == [[0, 1], [1, -1], [0, -1], [-1, -1], [0, 0]]


def test_a_deletion_that_reaches_into_the_next_region_is_found_once(tmp_path: Path) -> None:
    rows = [
        ("rs1", "1", WINDOW, "ATTTT", "A", 0.3),
        ("rs2", "1", WINDOW + 3, "C", "T", 0.5),
    ]
    lines = simple_lines([["0/0", "0/1", "1/1"], ["0/1"] * 3], rows)
    text = write_vcf(tmp_path / "a.vcf", lines, samples=SAMPLES)
    data = schema(loci=loci(rows))
    plain = read_vcf(text, data)
    indexed = Path(pysam.tabix_index(str(text), preset="vcf", force=True))

    same(read_vcf(indexed, data), plain)
    assert not plain.refused


def test_records_are_those_of_the_people_in_the_table(tmp_path: Path) -> None:
    site(tmp_path)
    source = GenotypeSource([entry(tmp_path)], excluded=lambda: frozenset({"p1"}))
    study = genotype_study(data={"min_call_rate": 0.5})

    train, test = (source.records(study, part=part) for part in ("train", "test"))

    assert train.features.tolist() == [[-1.0, 0.0, 1.0, 0.0]]
    assert test.features.tolist() == [[1.0, -1.0, 0.0, 0.0]]
    assert train.labels.tolist() == [0.0]


def test_what_is_missing_is_filled_with_the_panel_s_frequency(tmp_path: Path) -> None:
    site(tmp_path)

    found = GenotypeSource([entry(tmp_path)]).records(
        genotype_study(data={"min_call_rate": 0.5}), part="train"
    )

    assert found.features[1].tolist() == [0.0, 2 * LOCI[1][5] - 1.0, -1.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"build": "GRCh38"}, "expected a study of GRCh38, as"),
        ({"patient_key": "mrn"}, "takes patient_key and family_key of"),
        ({"family_key": "family"}, "takes patient_key and family_key of"),
    ],
)
def test_a_study_of_another_build_or_other_people_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    site(tmp_path)

    with pytest.raises(DataError, match=message):
        GenotypeSource([entry(tmp_path, **changes)]).records(genotype_study(), part="train")


@pytest.mark.parametrize(
    "content",
    [b"", b"not a VCF\n", b"#CHROM\tPOS\n1\t2\n", b"\x1f\x8b\x08broken"],
    ids=["empty", "text", "no fileformat", "broken gzip"],
)
def test_another_file_than_a_vcf_is_refused_without_its_path(
    tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "secret-name.vcf.gz"
    path.write_bytes(content)

    with pytest.raises(DataError, match="VCF: expected") as found:
        read_vcf(path, schema())

    shown = str(found.value) + "".join(capfd.readouterr())
    assert "secret-name" not in shown
    assert found.value.__cause__ is None


@pytest.mark.parametrize(
    "lines",
    [
        [["1", "not a number", "A", "G", "PASS", "GT", "0/1", "0/1", "0/1"]],
        [["1", "1000", "A", "G", "PASS", "GT", "0/1"]],
        [["1", "1000", "A", "G", "PASS", "XX", "0/1", "0/1", "0/1"]],
    ],
    ids=["position", "cells", "no genotypes"],
)
def test_broken_lines_are_refused_or_missing_and_no_sample_or_path_is_shown(
    tmp_path: Path, lines: list[list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_vcf(tmp_path / "secret.vcf", lines, samples=("Ms-Secret", "b", "c"))
    shown = ""

    try:
        assert (read_vcf(path, schema()).alleles < 0).all()
    except DataError as error:
        shown = str(error)

    shown += "".join(capfd.readouterr())
    assert "ecret" not in shown


def test_a_header_of_another_build_is_refused(tmp_path: Path) -> None:
    header = [line.replace("63025520", "64444167") for line in HEADER]
    path = write_vcf(tmp_path / "a.vcf", simple_lines(MIXED), samples=SAMPLES, header=header)

    with pytest.raises(DataError, match="positions of GRCh37"):
        read_vcf(path, schema())


def test_a_contig_without_a_length_says_nothing_of_the_build(tmp_path: Path) -> None:
    header = [line.replace(",length=63025520", "") for line in HEADER]
    path = write_vcf(tmp_path / "a.vcf", simple_lines(MIXED), samples=SAMPLES, header=header)

    assert not read_vcf(path, schema()).refused


def test_strict_reading_names_the_locus_and_no_person(tmp_path: Path) -> None:
    site(tmp_path, lines=simple_lines(MIXED[:3], LOCI[:3]))
    source = GenotypeSource([entry(tmp_path)])

    with pytest.raises(DataError, match=r"1 not in the file: rs4") as found:
        source.checked_records(genotype_study(), part="train")

    assert not any(name in str(found.value) for name in (*SAMPLES, "p0", str(tmp_path)))
    assert source.records(genotype_study(data={"min_call_rate": 0.7}), part="train").patients == 1
