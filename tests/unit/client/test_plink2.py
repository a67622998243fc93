"""PLINK 2 files: the same tensors as a VCF and a PLINK 1 set of the same people, faults without a
name. Needs pgenlib, an extra of its own (LGPL) that set-up does not install.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bed_reader import to_bed

from fedward_client.data.genotypes import GenotypeSource
from fedward_client.data.plink2 import read_plink2
from fedward_client.data.vcf import read_vcf
from fedward_client.data_entries import GenotypeFiles
from fedward_common.errors import ConfigError, DataError
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

SAMPLES = ("s0", "s1", "s2", "s3")
CELLS = (
    ("0/0", "0/1", "1/1", "./."),
    ("1/1", "0/1", "0/0", "0/1"),
    ("0/1", "./.", "0/0", "1/1"),
    ("0/0", "0/0", "0/1", "0/0"),
)
"""Of each locus the samples' genotypes."""
NEEDED = "pgenlib (extra plink2, LGPL) is not installed"


def codes(cells: tuple[str, ...]) -> list[int]:
    """The allele codes of a line as pgenlib takes them."""
    return [
        -9 if code == "." else int(code)
        for cell in cells
        for code in cell.replace("|", "/").split("/")
    ]


def pgen(
    folder: Path,
    lines: tuple[tuple[str, ...], ...] = CELLS,
    *,
    rows: tuple[tuple[Any, ...], ...] = LOCI,
    filters: tuple[str, ...] = (),
    samples: tuple[str, ...] = SAMPLES,
) -> Path:
    """A .pgen of `lines` with its .pvar and .psam."""
    pgenlib = pytest.importorskip("pgenlib", reason=NEEDED)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "secret.pgen"
    most = max(2, *(2 + row[4].count(",") for row in rows))
    with pgenlib.PgenWriter(
        str(path).encode(),
        len(samples),
        variant_ct=len(rows),
        nonref_flags=False,
        allele_ct_limit=most,
        hardcall_phase_present=True,
    ) as writer:
        for row, cells in zip(rows, lines, strict=True):
            writer.append_alleles(
                np.array(codes(cells), dtype=np.int32),
                all_phased="|" in cells[0],
                allele_ct=2 + row[4].count(","),
            )
    passed = filters or ("PASS",) * len(rows)
    text = ["##contig=<ID=secret>", "#CHROM\tPOS\tID\tREF\tALT\tFILTER"]
    text += [
        f"{r[1]}\t{r[2]}\t{r[0]}\t{r[3]}\t{r[4]}\t{f}" for r, f in zip(rows, passed, strict=True)
    ]
    path.with_suffix(".pvar").write_text("\n".join(text) + "\n")
    names = "\n".join(f"Secret\t{name}\t1" for name in samples)
    path.with_suffix(".psam").write_text(f"#FID\tIID\tSEX\n{names}\n")
    return path


def bed(folder: Path) -> Path:
    """The same people as a PLINK 1 set."""
    copies = [[np.nan if c == "./." else float(c.count("1")) for c in cells] for cells in CELLS]
    path = folder / "secret.bed"
    properties = {
        "iid": list(SAMPLES),
        "sid": [row[0] for row in LOCI],
        "chromosome": [row[1] for row in LOCI],
        "bp_position": [row[2] for row in LOCI],
        "allele_1": [row[4] for row in LOCI],
        "allele_2": [row[3] for row in LOCI],
    }
    to_bed(path, np.array(copies).T, properties=properties)
    return path


@pytest.mark.parametrize("coding", ["hard-calls", "dosage", "haplotypes"])
def test_vcf_plink_1_and_plink_2_of_the_same_people_give_identical_tensors(
    coding: str, tmp_path: Path
) -> None:
    table = write_people(tmp_path / "people.csv", people(4))
    study = genotype_study(data={"min_call_rate": 0.25, "coding": coding})
    vcf = write_vcf(tmp_path / "a.vcf", simple_lines(CELLS), samples=SAMPLES)

    found = [
        GenotypeSource(
            [GenotypeFiles(path=path, people=table, build="GRCh37", patient_key="patient_id")]
        ).records(study, part="train")
        for path in (vcf, bed(tmp_path), pgen(tmp_path))
    ]

    assert found[0].patients == 3
    for other in found[1:]:
        assert other.features.tobytes() == found[0].features.tobytes()
        assert other.labels.tobytes() == found[0].labels.tobytes()
        assert other.ids == found[0].ids


def test_phase_and_a_third_allele_are_read_as_from_a_vcf(tmp_path: Path) -> None:
    rows = (("rs1", "1", 1000, "A", "G,T", 0.3), *LOCI[1:])
    lines = (("0|1", "1|0", "2|1", "0|0"), *CELLS[1:])
    text = [[row[1], str(row[2]), row[3], row[4], "PASS", "GT", *cells]
            for row, cells in zip(rows, lines, strict=True)]  # fmt: skip
    theirs = read_vcf(write_vcf(tmp_path / "a.vcf", text, samples=SAMPLES), schema())

    ours = read_plink2(pgen(tmp_path, lines, rows=rows), schema())

    np.testing.assert_array_equal(ours.alleles, theirs.alleles)
    np.testing.assert_array_equal(ours.dosage, theirs.dosage)
    assert ours.alleles[0, 0].tolist() == [0, 1]
    assert ours.alleles[1, 0].tolist() == [1, 0]
    assert ours.alleles[2, 0].tolist() == [-1, 1]
    assert ours.phased[:2, 0].all()


def test_swapped_alleles_other_strands_and_filters_are_as_of_a_vcf(tmp_path: Path) -> None:
    panel = [("rs1", "1", 1000, "G", "A", 0.3), ("rs2", "1", 2000, "G", "A", 0.5), *LOCI[2:]]
    filters = ("PASS", "PASS", "LowQual", ".")
    text = simple_lines(CELLS)
    text[2][4] = "LowQual"
    asked = schema(loci=loci(panel), require_pass=True)
    theirs = read_vcf(write_vcf(tmp_path / "a.vcf", text, samples=SAMPLES), asked)

    ours = read_plink2(pgen(tmp_path, filters=filters), asked)

    assert (
        ours.found
        == theirs.found
        == {
            "rs1": "alleles swapped",
            "rs2": "other strand",
            "rs3": "as in the panel",
            "rs4": "as in the panel",
        }
    )
    np.testing.assert_array_equal(ours.dosage, theirs.dosage)
    assert np.isnan(ours.dosage[:, 2]).all()


def test_a_locus_that_is_not_there_or_has_other_alleles_is_refused_by_name(tmp_path: Path) -> None:
    panel = [("rs1", "1", 1000, "A", "C", 0.3), *LOCI[1:], ("rs9", "9", 77, "A", "C", 0.1)]

    found = read_plink2(pgen(tmp_path), schema(loci=loci(panel)))

    assert found.refused == {"rs1": "other alleles than the panel", "rs9": "not in the file"}
    assert np.isnan(found.dosage[:, 0]).all()


@pytest.mark.parametrize(
    "broken",
    ["no psam", "no header", "short", "text", "two alike", "fewer samples", "more variants"],
)
def test_a_set_that_does_not_fit_is_refused_without_a_name(
    broken: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    alike = ("s0", "s0", "s2", "s3") if broken == "two alike" else SAMPLES
    path = pgen(tmp_path, samples=alike)
    psam, pvar = path.with_suffix(".psam"), path.with_suffix(".pvar")
    match broken:
        case "no psam":
            psam.unlink()
        case "no header":
            psam.write_text("\n".join(psam.read_text().splitlines()[1:]) + "\n")
        case "short":
            path.write_bytes(path.read_bytes()[:-3])
        case "text":
            path.write_text("no pgen at all")
        case "fewer samples":
            psam.write_text("\n".join(psam.read_text().splitlines()[:-1]) + "\n")
        case "more variants":
            pvar.write_text(pvar.read_text() + "20\t9001\trs5\tA\tG\tPASS\n")

    with pytest.raises(DataError, match="PLINK 2: expected") as found:
        read_plink2(path, schema())

    said = str(found.value).lower() + "".join(capfd.readouterr()).lower()
    assert not any(word in said for word in ("secret", "s0", str(tmp_path).lower()))


def test_without_pgenlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pgenlib", None)

    with pytest.raises(ConfigError, match=r"fedward-client\[plink2\]"):
        read_plink2(tmp_path / "any.pgen", schema())
