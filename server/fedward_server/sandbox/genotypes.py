"""The sandbox parent's own copy of a site's genotypes: a VCF read as text, line by line.

Another reader than the site's on purpose; only what an allele means is shared.
"""

import csv
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import numpy as np

from fedward_common.errors import DataError
from fedward_common.genotypes.alignment import Calls, Record, aligned, plain_chrom
from fedward_common.genotypes.encoding import (
    GenotypeTally,
    Person,
    encode_genotypes,
    present_people,
)
from fedward_common.ids import SiteId
from fedward_common.study.encoding import PatientRecords, TablePart
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.kin import Kin, kin_of

GENOTYPES: Final = "genotypes.vcf.gz"
PEOPLE: Final = "patients.csv"
"""Beside the genotypes: whose a sample is, label and split."""
_FIXED: Final = 9


def read_genotypes(schema: Genotypes, site: SiteId, path: Path, part: TablePart) -> PatientRecords:
    """The records of a site's genotypes as the site encodes them. Raises DataError."""
    try:
        calls, rows = read_site(schema, path)
        return encode_genotypes(schema, calls, rows, part=part, strict=True)
    except DataError as error:
        raise DataError(f"{site}: {error}") from error


def read_people(schema: Genotypes, site: SiteId, path: Path) -> list[Person]:
    """A site's people for statistics. Raises DataError naming the site."""
    try:
        calls, rows = read_site(schema, path)
        return present_people(schema, calls, rows, strict=False, tally=GenotypeTally())
    except DataError as error:
        raise DataError(f"{site}: {error}") from error


def read_kin(schema: Genotypes, site: SiteId, path: Path) -> Kin:
    """Who is kin by a site's table of people. Raises DataError naming the site."""
    try:
        return kin_of(schema, _rows(path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{site}: expected {PEOPLE} beside {path.name}, found {type(error).__name__}"
        ) from None


def read_site(schema: Genotypes, path: Path) -> tuple[Calls, list[dict[str, str]]]:
    """Calls and people of one site. Raises DataError."""
    try:
        rows = _rows(path)
        with gzip.open(path, "rt", encoding="utf-8") as text:
            samples = _samples(text)
            return aligned(schema, samples, _records(text, schema)), rows
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, ValueError, IndexError) as error:
        raise DataError(
            f"expected {path.name}, a VCF that can be read, and {PEOPLE} beside it, found "
            f"{type(error).__name__}"
        ) from None


def _rows(path: Path) -> list[dict[str, str]]:
    with path.with_name(PEOPLE).open(encoding="utf-8-sig", newline="") as file:
        return [dict(row) for row in csv.DictReader(file)]


def _samples(lines: IO[str]) -> list[str]:
    for line in lines:
        if line.startswith("#CHROM"):
            return line.rstrip("\n").split("\t")[_FIXED:]
    raise DataError("VCF: expected a line #CHROM, found none")


def _records(lines: IO[str], schema: Genotypes) -> Iterator[Record]:
    wanted = {(locus.chrom, locus.pos) for locus in schema.loci}
    for line in lines:
        chrom, pos, _, ref, alt, _, passed, _, names, *cells = line.rstrip("\n").split("\t")
        if (plain_chrom(chrom), int(pos)) not in wanted:
            continue
        fields = [dict(zip(names.split(":"), cell.split(":"), strict=False)) for cell in cells]
        called = [one.get("GT", ".") for one in fields]
        yield Record(
            chrom=chrom,
            pos=int(pos),
            ref=ref,
            alts=tuple(alt.split(",")),
            alleles=np.array([_pair(text) for text in called], dtype=np.int8).reshape(-1, 2),
            phased=np.array(["|" in text for text in called], dtype=np.bool_),
            passed=passed in ("PASS", "."),
            **{
                key: _numbers(fields, name)
                for key, name in (("dosage", "DS"), ("quality", "GQ"), ("depth", "DP"))
                if name in names.split(":")
            },
        )


def _pair(text: str) -> tuple[int, int]:
    found = text.replace("|", "/").split("/")
    if len(found) != 2 or "." in found:
        return -1, -1
    return int(found[0]), int(found[1])


def _numbers(fields: list[dict[str, str]], name: str) -> np.ndarray:
    texts = [one.get(name, ".") for one in fields]
    return np.array([np.nan if text in (".", "") else float(text) for text in texts], np.float32)
