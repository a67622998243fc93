"""Genotypes out of a PLINK 1 file set (.bed, .bim, .fam) at the loci of a panel.

Its two alleles of a locus come in no order that means anything: they are told by their letters.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedward_common.errors import ConfigError, DataError
from fedward_common.genotypes.alignment import Calls, Record, aligned, plain_chrom
from fedward_common.study.genotypes import Genotypes, Locus

_NO_ALLELE = "0"


def read_plink(path: Path, schema: Genotypes) -> Calls:
    """The genotypes of every sample of `path` (.bed) at the loci of `schema`, none of them phased.

    Raises:
        DataError: a file of the three is missing or not what it should be, or a sample is named
            twice. Names neither a file nor a sample.
        ConfigError: bed-reader is not installed.
    """
    try:
        from bed_reader import open_bed  # noqa: PLC0415 - only who has PLINK files needs it
    except ImportError as error:
        raise ConfigError(
            "data: expected bed-reader for PLINK files, found none; install "
            "fedward-client[genomics]"
        ) from error
    if not all(path.with_suffix(end).is_file() for end in (".bed", ".bim", ".fam")):
        raise DataError("PLINK: expected a .bed file with its .bim and .fam beside it, found none")
    try:
        with open_bed(path, num_threads=1) as bed:
            samples = tuple(map(str, bed.iid))
            if len(set(samples)) != len(samples) or not samples:
                raise DataError("PLINK: expected samples (IID) with a name each, found one twice")
            return aligned(schema, samples, _records(bed, schema))
    except (OSError, ValueError, IndexError, UnicodeDecodeError) as error:
        raise DataError(
            f"PLINK: expected a .bed in order of variants, as plink --make-bed writes it, and the "
            f".bim and .fam of the same samples and variants, found others ({type(error).__name__})"
        ) from None


def _records(bed: Any, schema: Genotypes) -> Iterator[Record]:
    """A record for each variant of the file at a place of the panel."""
    panel: dict[tuple[str, int], list[Locus]] = {}
    for locus in schema.loci:
        panel.setdefault((locus.chrom, locus.pos), []).append(locus)
    places = zip(map(str, bed.chromosome), map(int, bed.bp_position), strict=True)
    wanted = [n for n, (c, pos) in enumerate(places) if (plain_chrom(c), pos) in panel]
    if not wanted:
        return
    counts = bed.read(np.s_[:, wanted], dtype="int8", num_threads=1)  # of allele 1; -127 missing
    for column, number in enumerate(wanted):
        place = (plain_chrom(str(bed.chromosome[number])), int(bed.bp_position[number]))
        first, second = str(bed.allele_1[number]).upper(), str(bed.allele_2[number]).upper()
        yield _oriented(panel[place], (first, second), counts[:, column])


def _oriented(loci: list[Locus], named: tuple[str, str], counts: np.ndarray) -> Record:
    """The record with the panel's own order of alleles, where its letters are those of a locus."""
    first, second = named
    copies = np.where(counts >= 0, counts, -1).astype(np.int8)
    for locus in loci:
        pair = {locus.ref, locus.alt}
        letters = set(named) - {_NO_ALLELE}
        if len(letters) == 1 and letters < pair:
            # Everybody has the one allele that is named.
            other = (pair - letters).pop()
            first, second = (other if one == _NO_ALLELE else one for one in named)
        if (first, second) == (locus.ref, locus.alt):
            return _record(locus, locus.ref, locus.alt, np.where(copies >= 0, 2 - copies, copies))
    if first in {locus.ref for locus in loci}:
        # A third allele of a site that was split: its other one is the panel's.
        return _record(loci[0], first, second, np.where(copies >= 0, 2 - copies, copies))
    return _record(loci[0], second, first, copies)


def _record(locus: Locus, ref: str, alt: str, copies: np.ndarray) -> Record:
    alleles = np.full((len(copies), 2), -1, dtype=np.int8)
    known = copies >= 0
    alleles[known, 0] = copies[known] == 2
    alleles[known, 1] = copies[known] >= 1
    return Record(
        chrom=locus.chrom,
        pos=locus.pos,
        ref=ref,
        alts=(alt,),
        alleles=alleles,
        phased=np.zeros(len(copies), dtype=np.bool_),
        passed=True,
    )
