"""Studies of genotypes for tests, and files of variants with made-up people."""

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedward_common.study.genotypes import Genotypes
from fedward_common.study.spec import StudySpec
from tests.support.studies import make_document, make_dp, write_table

LOCI = (
    ("rs1", "1", 1000, "A", "G", 0.3),
    ("rs2", "1", 2000, "C", "T", 0.5),
    ("rs3", "2", 1500, "G", "A", 0.1),
    ("rs4", "20", 9000, "AT", "A", 0.2),
)
HEADER = (
    "##fileformat=VCFv4.2",
    "##reference=file:///home/somebody/secret/hs37d5.fa",
    '##FILTER=<ID=LowQual,Description="low">',
    "##contig=<ID=1,length=249250621>",
    "##contig=<ID=2,length=243199373>",
    "##contig=<ID=20,length=63025520>",
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">',
    '##FORMAT=<ID=DS,Number=A,Type=Float,Description="Dosage">',
    '##FORMAT=<ID=GQ,Number=1,Type=Integer,Description="Quality">',
    '##FORMAT=<ID=DP,Number=1,Type=Integer,Description="Depth">',
)


def loci(rows: Sequence[tuple[Any, ...]] = LOCI) -> list[dict[str, Any]]:
    """The loci of a study from tuples."""
    return [
        dict(zip(("id", "chrom", "pos", "ref", "alt", "frequency"), row, strict=True))
        for row in rows
    ]


def genotype_data(**changes: Any) -> dict[str, Any]:
    """Four loci, a binary label, and who is held out in a column."""
    return {
        "kind": "genotypes",
        "build": "GRCh37",
        "loci": loci(),
        "label": {"column": "case", "low": 0, "high": 1, "positive_from": 1},
        "split": {"kind": "column", "column": "split"},
    } | changes


def schema(**changes: Any) -> Genotypes:
    """The schema of `genotype_data`."""
    return Genotypes.model_validate(genotype_data(**changes))


def genotype_study(*, data: Mapping[str, Any] | None = None, **changes: Any) -> StudySpec:
    """A valid study of genotypes, per patient."""
    return StudySpec.model_validate(
        make_document(
            **{
                "task": {"kind": "genotype-classification"},
                "data": genotype_data(**(data or {})),
                "genomic": True,
                "dp": make_dp(),
                **changes,
            }
        )
    )


def write_vcf(
    path: Path,
    lines: Sequence[Sequence[str]],
    *,
    samples: Sequence[str],
    header: Sequence[str] = HEADER,
) -> Path:
    """A VCF of `lines`: chrom, pos, ref, alt, filter, format, then one cell a sample."""
    text = [*header, "\t".join([*_FIXED, *samples])]
    for chrom, pos, ref, alt, passed, form, *cells in lines:
        text.append("\t".join([chrom, pos, ".", ref, alt, ".", passed, ".", form, *cells]))
    content = "\n".join(text).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


_FIXED = ("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT")


def simple_lines(
    genotypes: Sequence[Sequence[str]], rows: Sequence[tuple[Any, ...]] = LOCI
) -> list[list[str]]:
    """Lines with GT only, one sequence of genotypes for each locus."""
    return [
        [row[1], str(row[2]), row[3], row[4], "PASS", "GT", *cells]
        for row, cells in zip(rows, genotypes, strict=True)
    ]


def write_people(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """The table of people."""
    return write_table(path, rows)


def people(count: int, **columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of `count` people: samples s0..., patients p0..., alternating cases, every third held
    out; `columns` replace or add.
    """
    rows = {
        "sample": [f"s{n}" for n in range(count)],
        "patient_id": [f"p{n}" for n in range(count)],
        "case": [str(n % 2) for n in range(count)],
        "split": ["test" if n % 3 == 2 else "train" for n in range(count)],
        **columns,
    }
    return [{name: cells[n] for name, cells in rows.items()} for n in range(count)]
