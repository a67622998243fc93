"""Alleles against a panel, quality, families, and how genotypes become numbers."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fedward_common.errors import DataError
from fedward_common.genotypes.alignment import Calls, Record, aligned, matched
from fedward_common.genotypes.builds import check_lengths
from fedward_common.genotypes.encoding import GenotypeTally, encode_genotypes
from fedward_common.study.genotypes import Genotypes, Locus
from tests.support.genotype_studies import genotype_study, loci, people, schema
from tests.support.studies import make_dp

ONE = [("rs1", "1", 1000, "A", "G", 0.25)]


def record(alleles: list[tuple[int, int]], **changes: Any) -> Record:
    values: dict[str, Any] = {
        "chrom": "1",
        "pos": 1000,
        "ref": "A",
        "alts": ("G",),
        "alleles": np.array(alleles, dtype=np.int8),
        "phased": np.zeros(len(alleles), dtype=np.bool_),
        "passed": True,
    }
    return Record(**(values | changes))


def one_locus(**changes: Any) -> Genotypes:
    return schema(loci=loci(ONE), **changes)


def calls_of(data: Genotypes, *records: Record, samples: int = 3) -> Calls:
    return aligned(data, [f"s{n}" for n in range(samples)], records)


def locus(ref: str, alt: str) -> Locus:
    return Locus(id="rs1", chrom="1", pos=1000, ref=ref, alt=alt, frequency=0.2)


@pytest.mark.parametrize(
    ("panel", "found", "how", "copies"),
    [
        (("A", "G"), ("A", ["G"]), "as in the panel", [0, 1]),
        (("A", "G"), ("a", ["g"]), "as in the panel", [0, 1]),
        (("A", "G"), ("A", ["T", "G"]), "as in the panel", [0, -1, 1]),
        (("A", "G"), ("G", ["A"]), "alleles swapped", [1, 0]),
        (("A", "G"), ("T", ["C"]), "other strand", [0, 1]),
        (("A", "G"), ("C", ["T"]), "other strand", [1, 0]),
        (("A", "G"), ("A", ["."]), "nobody has alt", [0, -1]),
        (("AT", "A"), ("AT", ["A"]), "as in the panel", [0, 1]),
        (("A", "T"), ("A", ["T"]), "as in the panel", [0, 1]),
    ],
)
def test_an_allele_is_the_panel_s_as_it_stands_swapped_or_on_the_other_strand(
    panel: tuple[str, str], found: tuple[str, list[str]], how: str, copies: list[int]
) -> None:
    match = matched(locus(*panel), *found)

    assert match is not None
    assert (match[0], match[1].tolist()) == (how, copies)


@pytest.mark.parametrize(
    ("panel", "found"),
    [
        (("A", "T"), ("T", ["A"])),
        (("C", "G"), ("G", ["C"])),
        (("A", "G"), ("A", ["C"])),
        (("A", "G"), ("C", ["A"])),
        (("AT", "A"), ("TA", ["T"])),
    ],
)
def test_what_cannot_be_told_apart_matches_nothing(
    panel: tuple[str, str], found: tuple[str, list[str]]
) -> None:
    assert matched(locus(*panel), *found) is None


def test_a_panel_with_an_ambiguous_locus_says_that_files_are_on_the_forward_strand() -> None:
    ambiguous = loci([("rs9", "1", 5, "C", "G", 0.5)])

    with pytest.raises(ValidationError, match=r"rs9: expected no A/T or C/G locus"):
        schema(loci=ambiguous)

    assert schema(loci=ambiguous, strand_ambiguous="forward").loci[0].ambiguous


def test_a_swapped_record_gives_the_same_numbers_as_the_panel_s_own() -> None:
    data = one_locus()

    straight = calls_of(data, record([(0, 0), (0, 1), (1, 1)]))
    swapped = calls_of(data, record([(1, 1), (1, 0), (0, 0)], ref="G", alts=("A",)))

    np.testing.assert_array_equal(straight.dosage, swapped.dosage)
    assert swapped.found == {"rs1": "alleles swapped"}


def test_a_third_allele_is_missing_for_who_has_it() -> None:
    calls = calls_of(one_locus(), record([(0, 1), (0, 2), (2, 2)], alts=("T", "G")))

    assert calls.alleles[:, 0].tolist() == [[0, -1], [0, 1], [1, 1]]


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([], "not in the file"),
        ([record([(0, 0)] * 3, alts=("C",))], "other alleles than the panel"),
        ([record([(0, 0)] * 3), record([(0, 1)] * 3)], "twice in the file"),
    ],
)
def test_a_locus_without_one_answer_is_missing_for_everybody_and_refused_by_name(
    records: list[Record], why: str
) -> None:
    data = one_locus(min_call_rate=0.0)
    calls = calls_of(data, *records)
    rows = people(3)

    assert calls.refused == {"rs1": why}
    assert encode_genotypes(data, calls, rows, part="train").features.tolist() == [[-0.5], [-0.5]]
    with pytest.raises(DataError, match=rf"rs1 \({why}\)"):
        encode_genotypes(data, calls, rows, part="train", strict=True)


def test_a_split_multiallelic_site_is_found_among_its_records() -> None:
    other = record([(0, 0)] * 3, alts=("C",))

    calls = calls_of(one_locus(), other, record([(0, 1)] * 3), other)

    assert calls.found == {"rs1": "as in the panel"}
    assert not calls.refused


@pytest.mark.parametrize(
    ("rule", "given"),
    [
        ({"min_genotype_quality": 20}, {"quality": np.array([30, 10, np.nan], np.float32)}),
        ({"min_depth": 8}, {"depth": np.array([8, 7, np.nan], np.float32)}),
    ],
)
def test_a_genotype_of_low_or_unknown_quality_is_missing(
    rule: dict[str, Any], given: dict[str, Any]
) -> None:
    calls = calls_of(one_locus(**rule), record([(0, 1)] * 3, **given))
    nothing = calls_of(one_locus(**rule), record([(0, 1)] * 3))

    assert (calls.alleles[:, 0] >= 0).all(axis=1).tolist() == [True, False, False]
    assert (nothing.alleles < 0).all()


def test_a_record_that_failed_its_filter_is_missing_unless_the_study_takes_it() -> None:
    failed = record([(0, 1)] * 3, passed=False)

    assert (calls_of(one_locus(), failed).alleles < 0).all()
    assert (calls_of(one_locus(require_pass=False), failed).alleles >= 0).all()


def test_dosages_are_the_file_s_own_and_follow_a_swap() -> None:
    data = one_locus(coding="dosage", min_call_rate=0.0)
    given = np.array([0.1, 1.2, np.nan], np.float32)

    calls = calls_of(data, record([(0, 0), (0, 1), (1, 1)], dosage=given))
    swapped = calls_of(data, record([(0, 0), (0, 1), (1, 1)], ref="G", alts=("A",), dosage=given))

    np.testing.assert_allclose(calls.dosage[:, 0], [0.1, 1.2, 2.0])
    np.testing.assert_allclose(swapped.dosage[:, 0], [1.9, 0.8, 0.0], rtol=1e-6)


def test_of_haplotypes_an_unphased_heterozygote_is_missing() -> None:
    data = one_locus(coding="haplotypes")
    phased = np.array([True, False, False])

    calls = calls_of(data, record([(0, 1), (0, 1), (1, 1)], phased=phased))
    found = encode_genotypes(data, calls, people(3, split=["train"] * 3), part="train")

    assert found.features.tolist() == [[-1.0, 1.0], [-0.5, -0.5], [1.0, 1.0]]


def test_who_has_too_few_genotypes_is_not_in_the_study() -> None:
    data = one_locus(min_call_rate=0.5)
    tally = GenotypeTally()

    calls = calls_of(data, record([(0, 1), (-1, -1), (0, 0)]))
    found = encode_genotypes(data, calls, people(3), part="train", tally=tally)

    assert found.patients == 1
    assert tally.absent == {"too few genotypes": 1}


def test_without_one_person_every_other_person_s_numbers_are_the_same() -> None:
    data = one_locus(min_call_rate=0.0)
    calls = calls_of(data, record([(0, 1), (1, 1), (0, 0), (-1, -1)]), samples=4)
    rows = people(4, split=["train"] * 4)
    everyone = encode_genotypes(data, calls, rows, part="train").features

    for left_out in range(4):
        fewer = [row for number, row in enumerate(rows) if number != left_out]
        found = encode_genotypes(data, calls, fewer, part="train").features
        np.testing.assert_array_equal(found, np.delete(everyone, left_out, axis=0))


def test_kin_are_one_unit_on_one_side_of_the_split() -> None:
    data = one_locus(family_key="family")
    calls = calls_of(data, record([(0, 1)] * 5), samples=5)
    rows = people(
        5,
        family=["f1", "f1", "", "f2", "f2"],
        split=["train", "train", "train", "train", "test"],
    )
    tally = GenotypeTally()

    found = encode_genotypes(data, calls, rows, part="train", tally=tally)

    assert found.patient.tolist() == [0, 0, 1]
    assert tally.absent == {"family on both sides of the split": 2}


def test_who_has_no_family_code_is_nobody_s_kin() -> None:
    data = one_locus(family_key="family", missing_codes=["", "NA", "none"])
    rows = people(4, family=["NA", "NA", "none", ""], split=["train"] * 4)

    found = encode_genotypes(
        data, calls_of(data, record([(0, 1)] * 4), samples=4), rows, part="train"
    )

    assert found.patient.tolist() == [0, 1, 2, 3]


def test_a_patient_of_two_families_moves_neither_of_them() -> None:
    data = one_locus(family_key="family")
    calls = calls_of(data, record([(0, 1)] * 3))
    rows = people(3, family=["f1", "f2", "f2"], patient_id=["p", "p", "q"], split=["train"] * 3)

    both = encode_genotypes(data, calls, rows, part="train")
    second = encode_genotypes(data, calls, rows[1:], part="train")

    assert (both.patients, second.patients) == (2, 1)
    assert len(second.labels) == 2


def test_the_unit_is_the_family_exactly_where_the_data_say_who_is_kin() -> None:
    kin = {"family_key": "family"}

    with pytest.raises(ValidationError, match="expected 'family' exactly where"):
        genotype_study(data=kin)
    with pytest.raises(ValidationError, match="expected 'family' exactly where"):
        genotype_study(dp=make_dp(unit="family"))

    assert genotype_study(data=kin, dp=make_dp(unit="family")).data.is_genomic


def test_a_study_of_genomes_says_so() -> None:
    with pytest.raises(ValidationError, match="expected genomic = true with data of kind"):
        genotype_study(genomic=False)


@pytest.mark.parametrize("name", ["20", "chr20"])
def test_positions_of_another_build_are_refused_by_the_lengths_of_contigs(name: str) -> None:
    check_lengths("GRCh37", {name: 63025520, "other": 7, "1": 0})
    with pytest.raises(DataError, match=r"positions of GRCh37, .* found contigs of GRCh38"):
        check_lengths("GRCh37", {name: 64444167})
