"""PLINK 1 files: the same people as in a VCF, alleles by their letters, faults without a name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bed_reader import to_bed

from fedward_client.data.genotypes import GenotypeSource
from fedward_client.data.plink import read_plink
from fedward_client.data.vcf import read_vcf
from fedward_client.data_entries import GenotypeFiles
from fedward_common.errors import DataError
from tests.support.genotype_studies import (
    LOCI,
    genotype_study,
    loci,
    people,
    schema,
    simple_lines,
    write_people,
    write_vcf,
)

COPIES = np.array([[0, 1, 2, 1], [1, np.nan, 0, 1], [2, 0, 1, 1]])
SAMPLES = ("s0", "s1", "s2")


def bed(folder: Path, *, swap: bool = False, copies: np.ndarray = COPIES, **changes: Any) -> Path:
    """`copies` of the panel's alt; with `swap` the file's allele 1 is the panel's ref."""
    first, second = [row[4] for row in LOCI], [row[3] for row in LOCI]
    properties = {
        "iid": list(SAMPLES),
        "fid": ["Secret"] * 3,
        "sid": [row[0] for row in LOCI],
        "chromosome": [row[1] for row in LOCI],
        "bp_position": [row[2] for row in LOCI],
        "allele_1": second if swap else first,
        "allele_2": first if swap else second,
    } | changes
    path = folder / "secret.bed"
    to_bed(path, 2.0 - copies if swap else copies, properties=properties)
    return path


@pytest.mark.parametrize("swap", [False, True])
def test_a_plink_set_has_the_same_people_as_a_vcf(tmp_path: Path, swap: bool) -> None:
    codes = {0.0: "0/0", 1.0: "0/1", 2.0: "1/1"}
    cells = [[codes.get(c, "./.") for c in column] for column in COPIES.T.tolist()]
    vcf = write_vcf(tmp_path / "a.vcf", simple_lines(cells), samples=SAMPLES)

    ours, theirs = read_plink(bed(tmp_path, swap=swap), schema()), read_vcf(vcf, schema())

    np.testing.assert_array_equal(ours.alleles, theirs.alleles)
    np.testing.assert_array_equal(ours.dosage, theirs.dosage)
    assert (ours.samples, ours.refused) == (theirs.samples, {})


@pytest.mark.parametrize(("first", "second", "copies"), [("0", "A", 0), ("0", "G", 2)])
def test_a_locus_at_which_all_are_alike_is_known_by_its_one_letter(
    tmp_path: Path, first: str, second: str, copies: int
) -> None:
    alike = COPIES.copy()
    alike[:, 0] = 0.0
    path = bed(
        tmp_path,
        copies=alike,
        allele_1=[first, *(row[4] for row in LOCI[1:])],
        allele_2=[second, *(row[3] for row in LOCI[1:])],
    )

    assert read_plink(path, schema()).dosage[:, 0].tolist() == [copies] * 3


@pytest.mark.parametrize("swap", [False, True])
def test_a_third_allele_in_a_variant_of_its_own_is_missing_for_who_has_it(
    swap: bool, tmp_path: Path
) -> None:
    rows = [("rs1", "1", 1000, "A", "G", 0.3)]
    names = {"sid": ["rs1", "rs1b"], "chromosome": ["1", "1"], "bp_position": [1000, 1000]}
    copies = np.array([[1, 0], [1, 1], [0, 1]])
    first, second = ["G", "T"], ["A", "A"]
    alleles = (second, first) if swap else (first, second)
    path = bed(
        tmp_path, swap=swap, copies=copies, allele_1=alleles[0], allele_2=alleles[1], **names
    )

    found = read_plink(path, schema(loci=loci(rows)))

    assert not found.refused
    assert [one[0].min() >= 0 for one in found.alleles] == [True, False, False]


def test_an_ambiguous_locus_is_told_by_its_letters_on_the_forward_strand(tmp_path: Path) -> None:
    rows = [("rs1", "1", 1000, "A", "T", 0.3), *LOCI[1:]]
    path = bed(tmp_path, allele_1=["A", *(row[4] for row in LOCI[1:])],
               allele_2=["T", *(row[3] for row in LOCI[1:])])  # fmt: skip

    found = read_plink(path, schema(loci=loci(rows), strand_ambiguous="forward"))

    assert found.dosage[:, 0].tolist() == [2.0, 1.0, 0.0]


def test_a_study_reads_a_site_s_plink_set(tmp_path: Path) -> None:
    entry = GenotypeFiles(
        path=bed(tmp_path),
        people=write_people(tmp_path / "people.csv", people(3)),
        build="GRCh37",
        patient_key="patient_id",
    )

    found = GenotypeSource([entry]).records(
        genotype_study(data={"min_call_rate": 0.5}), part="train"
    )

    assert found.features[0].tolist() == [-1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("broken", ["no fam", "short bed", "text", "two alike"])
def test_a_set_that_does_not_fit_is_refused_without_a_name(tmp_path: Path, broken: str) -> None:
    path = bed(tmp_path, **({"iid": ["s0", "s0", "s1"]} if broken == "two alike" else {}))
    if broken == "no fam":
        path.with_suffix(".fam").unlink()
    if broken == "short bed":
        path.write_bytes(path.read_bytes()[:-2])
    if broken == "text":
        path.write_text("no bed at all")

    with pytest.raises(DataError, match="PLINK: expected") as found:
        read_plink(path, schema())

    assert not any(word in str(found.value).lower() for word in ("secret", "s0", str(tmp_path)))
