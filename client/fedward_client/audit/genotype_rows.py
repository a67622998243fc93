"""Made-up people with genotypes for the audit, and the site's own way from them to records.

No file of variants is opened: its records are made up, one a locus as in the panel, and go through
the product's own alignment, coding and filling.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from fedward_client.audit.source_rows import (
    UNREADABLE,
    CalledRow,
    label_cells,
    split_cells,
    training_names,
)
from fedward_common.genotypes.alignment import MISSING, Record, aligned
from fedward_common.genotypes.encoding import encode_genotypes
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.tabular import CategoryColumn, NumberColumn

HUGE: Final = 1e30
GOOD: Final = 1e6
"""A quality and a depth that every study takes."""
KINDS: Final[tuple[tuple[tuple[str, bool | None], ...], ...]] = (
    (("reference", False),),
    (("alternative", True),),
    (("one copy", True),),
    (("half missing", False),),
    (("all missing", True),),
    (("beyond", True),),
    (("nan", False),),
    (("below", False),),
    (("reference", None),),
    (("no sample", True),),
    (("alternative", True), ("reference", True)),
    (("one copy", False),),
)
"""Each unit's people: their genotypes, and the end of the label (None: none that fits)."""
_COPIES: Final = {"alternative": (1, 1), "one copy": (0, 1), "beyond": (1, 1)}


def load_genotypes(schema: Genotypes, rows: Sequence[CalledRow]) -> PatientRecords:
    """The records to train on, by the alignment and encoding that every site uses."""
    there = [row for row in rows if row.row[schema.sample_key]]
    names = [row.row[schema.sample_key] for row in there]
    calls = aligned(schema, names, _records(schema, there))
    return encode_genotypes(schema, calls, [row.row for row in rows], part="train")


def genotype_rows(schema: Genotypes) -> list[list[CalledRow]]:
    """The people of each made-up privacy unit: families where the study has some, else patients.

    A patient who stands there twice has no part in the study; nor has one whose label fits nothing
    or whose genotypes are too few.
    """
    names = training_names(schema.split)
    return [
        [
            _person(schema, unit, number, kind=kind, high=high)
            for number, (kind, high) in enumerate(people)
        ]
        for unit, people in zip(names, KINDS, strict=False)
    ]


def _person(
    schema: Genotypes, unit: str, number: int, *, kind: str, high: bool | None
) -> CalledRow:
    loci = len(schema.loci)
    label = label_cells(schema.label, high=bool(high))
    if high is None:
        label = dict.fromkeys(label, UNREADABLE)
    alleles = np.tile(np.array(_COPIES.get(kind, (0, 0)), np.int8), (loci, 1))
    if kind in ("half missing", "all missing"):
        alleles[:: 2 if kind == "half missing" else 1] = MISSING
    # With families their name decides the side of the split, and members have names of their own.
    own = unit if schema.family_key is None else f"{unit}-{number}"
    row = {
        schema.patient_key: own,
        schema.sample_key: "" if kind == "no sample" else f"s{unit}-{number}",
        **({} if schema.family_key is None else {schema.family_key: unit}),
        **{column.name: _cell(column, kind) for column in schema.columns},
        **label,
        **split_cells(schema.split),
    }
    expected = {"beyond": HUGE, "below": -HUGE, "nan": np.nan}.get(
        kind, float(sum(_COPIES.get(kind, (0, 0))))
    )
    dosage = np.full(loci, expected, dtype=np.float32)
    return CalledRow(row=row, alleles=alleles, dosage=dosage, phased=number == 0)


def _cell(column: NumberColumn | CategoryColumn, kind: str) -> str:
    if kind in ("nan", "all missing"):
        return {"nan": "nan", "all missing": ""}[kind]
    if isinstance(column, CategoryColumn):
        return column.values[0 if kind in ("reference", "below") else -1]
    ends = {"reference": column.low, "beyond": HUGE, "below": -HUGE}
    return repr(float(ends.get(kind, column.high)))


def _records(schema: Genotypes, rows: Sequence[CalledRow]) -> Iterator[Record]:
    """The lines of the file, one for each locus of the panel."""
    good = np.full(len(rows), GOOD, dtype=np.float32)
    for number, locus in enumerate(schema.loci):
        yield Record(
            chrom=locus.chrom,
            pos=locus.pos,
            ref=locus.ref,
            alts=(locus.alt,),
            alleles=np.array([row.alleles[number] for row in rows], np.int8).reshape(-1, 2),
            phased=np.array([row.phased for row in rows], dtype=np.bool_),
            passed=True,
            dosage=np.array([row.dosage[number] for row in rows], dtype=np.float32),
            quality=good,
            depth=good,
        )
