"""The records of a variant file at the loci of a panel: which allele is which, or why not.

No reader of files is in here: client and sandbox bring records, whatever they read them with.

Source: the VCF specification 4.4, 1.6 (REF is on the forward strand of the reference); Deelen et
al. 2014 (Genotype harmonizer) for the order exact, swapped, other strand.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from fedward_common.study.genotypes import COMPLEMENT, Genotypes, Locus

Int8 = npt.NDArray[np.int8]
Float32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

How = Literal["as in the panel", "alleles swapped", "other strand", "nobody has alt"]
Why = Literal["not in the file", "twice in the file", "other alleles than the panel"]

MISSING: Final = -1
_NO_ALLELE: Final = frozenset({"", ".", "*", "<NON_REF>", "<*>"})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Record:
    """One line of a variant file.

    `alleles`: [samples, 2], 0 for REF, 1 for the first of `alts`; -1 missing. `phased`: [samples].
    `dosage`: [samples], the expected copies of the first of `alts`, NaN where it is not given.
    `quality` and `depth`: [samples], NaN where they are not given; None: the file has none.
    """

    chrom: str
    pos: int
    ref: str
    alts: tuple[str, ...]
    alleles: Int8
    phased: Bools
    passed: bool
    dosage: Float32 | None = None
    quality: Float32 | None = None
    depth: Float32 | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Calls:
    """The genotypes of a file's samples at every locus of a panel, aligned to it.

    `alleles` int8 [samples, loci, 2]: copies of the panel's `alt` on each haplotype, -1 missing;
    `phased` [samples, loci]; `dosage` float32 [samples, loci]: expected copies, NaN missing.
    `found` and `refused` say by name how a locus was found, and why another one was not.
    """

    samples: tuple[str, ...]
    alleles: Int8
    phased: Bools
    dosage: Float32
    found: dict[str, How] = field(default_factory=dict)
    refused: dict[str, Why] = field(default_factory=dict)


def plain_chrom(name: str) -> str:
    """A chromosome's name without the `chr` that some files write before it."""
    return name[3:] if name[:3].lower() == "chr" else name


def matched(locus: Locus, ref: str, alts: Sequence[str]) -> tuple[How, Int8] | None:
    """How a record's alleles are the panel's, and for each of them its copies of `alt`.

    An allele that is neither of the panel's two is missing (-1). None: the record is of others.
    A/T and C/G loci match as they stand or not at all.
    """
    ref, alts = ref.upper(), [alt.upper() for alt in alts]
    named = [ref, *alts]

    def coded(one: str, other: str) -> Int8:
        codes = {one: 0, other: 1}
        return np.array([codes.get(allele, MISSING) for allele in named], dtype=np.int8)

    if ref == locus.ref and locus.alt in alts:
        return "as in the panel", coded(locus.ref, locus.alt)
    if ref == locus.ref and set(alts) <= _NO_ALLELE and alts != ["*"]:
        return "nobody has alt", coded(locus.ref, locus.alt)
    if locus.ambiguous:
        return None
    if ref == locus.alt and locus.ref in alts:
        return "alleles swapped", coded(locus.ref, locus.alt)
    if len(locus.ref) == len(locus.alt) == 1:
        one, other = COMPLEMENT[locus.ref], COMPLEMENT[locus.alt]
        if (ref == one and other in alts) or (ref == other and one in alts):
            return "other strand", coded(one, other)
    return None


def aligned(schema: Genotypes, samples: Sequence[str], records: Iterable[Record]) -> Calls:
    """The calls of `samples` at the loci of `schema`; records of other places are passed over.

    Guarantees: one person's genotypes depend on the others' only through which records the file
    has; a locus that cannot be resolved is missing for everybody, and named in `refused`.
    """
    places: dict[tuple[str, int], list[int]] = {}
    for number, locus in enumerate(schema.loci):
        places.setdefault((locus.chrom, locus.pos), []).append(number)
    shape = (len(samples), len(schema.loci))
    alleles = np.full((*shape, 2), MISSING, dtype=np.int8)
    phased = np.zeros(shape, dtype=np.bool_)
    dosage = np.full(shape, np.nan, dtype=np.float32)
    found: dict[str, How] = {}
    refused: dict[str, Why] = {}
    used: dict[int, Record] = {}
    beside: dict[int, list[Record]] = {}
    for record in records:
        for number in places.get((plain_chrom(record.chrom), record.pos), ()):
            locus = schema.loci[number]
            match = matched(locus, record.ref, record.alts)
            if match is None:
                if locus.id not in found:
                    refused.setdefault(locus.id, "other alleles than the panel")
                beside.setdefault(number, []).append(record)
                continue
            if locus.id in found:
                refused[locus.id] = "twice in the file"
                continue
            refused.pop(locus.id, None)
            found[locus.id], used[number] = match[0], record
            alleles[:, number] = _copies(schema, record, match[1])
            phased[:, number] = record.phased
            dosage[:, number] = _expected(record, match[1], alleles[:, number])
    for number, others in beside.items():
        if number in used:
            split = _third_alleles(used[number], others)
            alleles[:, number][split] = MISSING
            dosage[split.any(axis=1), number] = np.nan
    for number, locus in enumerate(schema.loci):
        if locus.id not in found:
            refused.setdefault(locus.id, "not in the file")
        if locus.id in refused:
            found.pop(locus.id, None)
            alleles[:, number], dosage[:, number] = MISSING, np.nan
    return Calls(
        samples=tuple(samples),
        alleles=alleles,
        phased=phased,
        dosage=dosage,
        found=found,
        refused=refused,
    )


def _third_alleles(record: Record, others: Sequence[Record]) -> Bools:
    """The haplotypes [samples, 2] with an allele of `others`, split off the site of `record`.

    A record that was split says the reference for them (`bcftools norm -m-`): which they have not.
    """
    found = np.zeros(record.alleles.shape, dtype=np.bool_)
    for other in others:
        if other.ref.upper() == record.ref.upper():
            found |= other.alleles > 0
    return found


def _copies(schema: Genotypes, record: Record, codes: Int8) -> Int8:
    """Copies of the panel's `alt` on each haplotype, -1 where missing or of too low quality."""
    known = record.alleles >= 0
    copies = np.where(known, codes[np.where(known, record.alleles, 0)], np.int8(MISSING))
    bad = np.zeros(len(copies), dtype=np.bool_)
    if schema.require_pass and not record.passed:
        bad[:] = True
    for least, values in (
        (schema.min_genotype_quality, record.quality),
        (schema.min_depth, record.depth),
    ):
        if least:  # asked for, and not given, is not good enough
            bad |= True if values is None else ~(values >= least)
    copies[bad] = MISSING
    return copies.astype(np.int8)


def _expected(record: Record, codes: Int8, copies: Int8) -> Float32:
    """Expected copies of the panel's `alt`: the file's own for two alleles, else those called."""
    known = (copies >= 0).all(axis=1)
    called = np.where(known, copies.sum(axis=1), np.nan).astype(np.float32)
    if record.dosage is None or len(record.alts) != 1 or codes[1] == MISSING:
        return called
    given = record.dosage if codes[1] == 1 else np.float32(2.0) - record.dosage
    return np.where(known & (given >= 0) & (given <= 2), given, called).astype(np.float32)
