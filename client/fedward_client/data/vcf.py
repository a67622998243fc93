"""Genotypes out of a VCF or BCF file at the loci of a panel; with an index only those are read.

Names of samples and what a header says of paths and commands stay in here: sample names go to the
table of people that the site keeps, and no message has either.
"""

import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedward_common.errors import ConfigError, DataError
from fedward_common.genotypes.alignment import Calls, Record, aligned, plain_chrom
from fedward_common.genotypes.builds import check_lengths
from fedward_common.study.genotypes import Genotypes

WINDOW: Final = 50_000
"""Loci that are nearer than this are read in one go."""
_INDEXES: Final = (".tbi", ".csi")
_BGZF: Final = b"\x1f\x8b\x08\x04"
_END: Final = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block that ends every BGZF file (SAM specification, 4.1.2)."""
_EVERYWHERE: Final = (None, range(1, 1 << 40))


def read_vcf(path: Path, schema: Genotypes) -> Calls:
    """The genotypes of every sample at the loci of `schema`.

    Raises:
        DataError: no such file, not a VCF, broken lines, samples twice, a contig whose length is
            that of another build. Names neither the file nor a sample.
        ConfigError: cyvcf2 is not installed.
    """
    cyvcf2 = _cyvcf2()
    if not path.is_file():
        raise DataError("VCF: expected the file that [[data]] in site.toml names, found none")
    _check_whole(path)
    try:
        # gts012: missing genotypes as such; strict_gt: half-called ones are missing as well.
        file = cyvcf2.VCF(str(path), gts012=True, strict_gt=True)
    except (OSError, ValueError) as error:
        raise DataError(
            "VCF: expected VCF 4.x or BCF, plain or compressed by bgzip, with ##fileformat as its "
            f"first line, found another file ({type(error).__name__}); write it anew with "
            "`bcftools view -Oz`"
        ) from None
    try:
        samples = tuple(file.samples)
        if len(set(samples)) != len(samples) or not samples:
            raise DataError("VCF: expected samples with a name each, found none or one name twice")
        lengths = _lengths(file)
        check_lengths(schema.build, lengths)
        with warnings.catch_warnings():
            # cyvcf2 warns of a region without records, and writes the file's path.
            warnings.simplefilter("ignore")
            return aligned(schema, samples, _records(file, path, schema, names=lengths))
    finally:
        file.close()


def _check_whole(path: Path) -> None:
    """Raises DataError for a compressed file without its end: by its index nobody would notice, and
    the loci that are gone would count as missing.
    """
    with path.open("rb") as file:
        if file.read(len(_BGZF)) != _BGZF:
            return
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - len(_END)))
        if file.read() != _END:
            raise DataError(
                "VCF: expected the end block of a file compressed by bgzip, found none: it was cut "
                "off; copy it again"
            )


def _cyvcf2() -> Any:
    try:
        import cyvcf2  # noqa: PLC0415 - only who has genotypes needs it
    except ImportError as error:
        raise ConfigError(
            "data: expected cyvcf2 for a VCF, found none; install fedward-client[genomics]"
        ) from error
    # htslib writes paths of files to stderr.
    cyvcf2.cyvcf2.set_htslib_log_level(0)
    return cyvcf2


def _lengths(file: Any) -> dict[str, int]:
    """The contigs of a header with their lengths, 0 where it says none."""
    found = {str(name): 0 for name in file.seqnames}
    try:
        return found | dict(zip(found, map(int, file.seqlens), strict=True))
    except AttributeError:  # cyvcf2 has them only where every contig says its length
        return found


def _records(
    file: Any, path: Path, schema: Genotypes, *, names: Mapping[str, int]
) -> Iterator[Record]:
    """The records at the panel's places, each once."""
    wanted = {(locus.chrom, locus.pos) for locus in schema.loci}
    indexed = any(path.with_name(path.name + end).is_file() for end in _INDEXES)
    regions = _regions(schema, names) if indexed else [_EVERYWHERE]
    for region, places in regions:
        variants = iter(file if region is None else file(region))
        while True:
            try:
                variant = next(variants)
                place = plain_chrom(str(variant.CHROM)), int(variant.POS)
                # A region also gives the deletions that reach into it from the one before.
                here = place in wanted and place[1] in places
                record = _record(variant, samples=len(file.samples)) if here else None
            except StopIteration:
                break
            except Exception as error:  # noqa: BLE001 - cyvcf2 raises nothing more special
                raise DataError(
                    "VCF: expected lines as VCF 4.x says, found one that cannot be read "
                    f"({type(error).__name__}); look at it with `bcftools view`"
                ) from None
            if record is not None:
                yield record


def _regions(schema: Genotypes, names: Mapping[str, int]) -> list[tuple[str | None, range]]:
    """Stretches of the file's own contigs that hold all loci, each a whole number of windows."""
    # A header may have a chromosome by both of its names (1 and chr1).
    own: dict[str, list[str]] = {}
    for name in names:
        own.setdefault(plain_chrom(name), []).append(name)
    windows = sorted({(int(locus.chrom), (locus.pos - 1) // WINDOW) for locus in schema.loci})
    found: list[tuple[str | None, range]] = []
    for chrom, number in windows:
        first, last = number * WINDOW + 1, (number + 1) * WINDOW
        for name in own.get(str(chrom), ()):
            found.append((f"{name}:{first}-{last}", range(first, last + 1)))
    return found


def _record(variant: Any, *, samples: int) -> Record:
    nothing = np.full((samples, 3), -1, dtype=np.int16)
    genotypes = variant.genotype.array() if "GT" in variant.FORMAT else nothing
    ploidy = genotypes.shape[1] - 1
    alleles = np.full((samples, 2), -1, dtype=np.int8)
    if ploidy == 2:
        diploid = (genotypes[:, :2] >= 0).all(axis=1)
        alleles[diploid] = np.minimum(genotypes[diploid, :2], 127).astype(np.int8)
    return Record(
        chrom=str(variant.CHROM),
        pos=int(variant.POS),
        ref=str(variant.REF),
        alts=tuple(map(str, variant.ALT)),
        alleles=alleles,
        phased=genotypes[:, ploidy] == 1,
        passed=variant.FILTER is None,
        dosage=_numbers(variant, "DS"),
        quality=_numbers(variant, "GQ"),
        depth=_numbers(variant, "DP"),
    )


def _numbers(variant: Any, name: str) -> np.ndarray | None:
    """One number for each sample, NaN where it is missing; None: no such field."""
    if name not in variant.FORMAT:
        return None
    found = variant.format(name)
    if found is None or found.ndim != 2 or found.dtype.kind not in "if":
        return None
    first = found[:, 0].astype(np.float32)
    # htslib marks a missing whole number by the least one there is.
    first[first < 0] = np.nan
    return np.asarray(first, dtype=np.float32)
