"""Genotypes out of a PLINK 2 file set (.pgen, .pvar, .psam) at the loci of a panel.

Its REF and ALT are those of a VCF. pgenlib (LGPL) reads the binary file; the two texts beside it
are read here, because their names of samples and headers stay in this module.

Source: the PLINK 2 file formats (https://www.cog-genomics.org/plink/2.0/formats).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedward_common.errors import ConfigError, DataError
from fedward_common.genotypes.alignment import Calls, Record, aligned, plain_chrom
from fedward_common.study.genotypes import Genotypes

ENDINGS: Final = (".pgen", ".pvar", ".psam")
_FIXED: Final = ("#CHROM", "POS", "REF", "ALT")
_PASSED: Final = frozenset({".", "PASS"})
_MOST_ALLELES: Final = 127


@dataclass(frozen=True, kw_only=True, slots=True)
class _Variant:
    """A line of a .pvar at a place of the panel: its number in the .pgen, and what it is."""

    number: int
    chrom: str
    pos: int
    ref: str
    alts: tuple[str, ...]
    passed: bool


def read_plink2(path: Path, schema: Genotypes) -> Calls:
    """The genotypes of every sample of `path` (.pgen) at the loci of `schema`, with phase and
    dosages where the file has them.

    Raises:
        DataError: a file of the three is missing or not what it should be, or a sample is named
            twice. Names neither a file nor a sample.
        ConfigError: pgenlib is not installed.
    """
    try:
        import pgenlib  # noqa: PLC0415 - an extra of its own: LGPL
    except ImportError as error:
        raise ConfigError(
            "data: expected pgenlib for PLINK 2 files, found none; install fedward-client[plink2]"
        ) from error
    if not all(path.with_suffix(end).is_file() for end in ENDINGS):
        raise DataError(
            "PLINK 2: expected a .pgen file with its .pvar and .psam beside it, not compressed, "
            "found none"
        )
    try:
        samples = _samples(path.with_suffix(".psam"))
        variants, alleles = _variants(path.with_suffix(".pvar"), schema)
        offsets = np.concatenate([[0], np.cumsum(alleles)]).astype(np.uintp)
        file = pgenlib.PgenReader(
            str(path).encode(),
            raw_sample_ct=len(samples),
            variant_ct=len(alleles),
            allele_idx_offsets=offsets,
        )
        try:
            return aligned(schema, samples, _records(file, variants, samples=len(samples)))
        finally:
            file.close()
    except (RuntimeError, OSError, ValueError, IndexError) as error:
        raise DataError(
            "PLINK 2: expected a .pgen as plink2 --make-pgen writes it, and the .pvar and .psam of "
            f"the same samples and variants, found others ({type(error).__name__})"
        ) from None


def _samples(path: Path) -> tuple[str, ...]:
    """The names of the samples, in the order of the .pgen."""
    header: Sequence[str] = ()
    found: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("##"):
            continue
        cells = line.split()
        if line.startswith("#"):
            header = [cell.removeprefix("#") for cell in cells]
        elif cells:
            found.append(cells[header.index("IID")])
    if not found or len(set(found)) != len(found):
        raise DataError("PLINK 2: expected samples (IID) with a name each, found none or one twice")
    return tuple(found)


def _variants(path: Path, schema: Genotypes) -> tuple[list[_Variant], list[int]]:
    """The variants at the panel's places, and how many alleles each variant of the file has."""
    wanted = {(locus.chrom, locus.pos) for locus in schema.loci}
    place: dict[str, int] = {}
    found: list[_Variant] = []
    alleles: list[int] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            cells = line.rstrip("\n").split("\t")
            if line.startswith("#"):
                place = {name: number for number, name in enumerate(cells)}
                continue
            chrom, pos, ref, alt = (cells[_column(place, name)] for name in _FIXED)
            alts = () if alt == "." else tuple(alt.split(","))
            number = len(alleles)
            # One alternative at least: as pgenlib counts them.
            alleles.append(max(2, 1 + len(alts)))
            if (plain_chrom(chrom), int(pos)) not in wanted:
                continue
            passed = "FILTER" not in place or cells[place["FILTER"]] in _PASSED
            found.append(
                _Variant(
                    number=number, chrom=chrom, pos=int(pos), ref=ref, alts=alts, passed=passed
                )
            )
    return found, alleles


def _column(place: dict[str, int], name: str) -> int:
    if name not in place:
        raise ValueError("expected a line that begins with #CHROM")
    return place[name]


def _records(file: Any, variants: Sequence[_Variant], *, samples: int) -> Iterator[Record]:
    codes = np.empty(2 * samples, dtype=np.int32)
    phased = np.empty(samples, dtype=np.uint8)
    dosage = np.empty(samples, dtype=np.float32)
    for variant in variants:
        file.read_alleles_and_phasepresent(variant.number, codes, phased)
        file.read_dosages(variant.number, dosage)
        yield Record(
            chrom=variant.chrom,
            pos=variant.pos,
            ref=variant.ref,
            alts=variant.alts,
            alleles=np.clip(codes, -1, _MOST_ALLELES).astype(np.int8).reshape(samples, 2),
            phased=phased.astype(np.bool_),
            passed=variant.passed,
            dosage=np.where(dosage >= 0, dosage, np.float32(np.nan)),
        )
