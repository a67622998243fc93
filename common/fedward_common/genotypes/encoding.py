"""From aligned genotypes and the table of people to tensors, each patient by itself (rules 6)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedward_common.errors import DataError
from fedward_common.genotypes.alignment import Calls
from fedward_common.study.encoding import (
    PatientRecords,
    TablePart,
    code_text,
    code_texts,
    column_reader,
    decimal_number,
    hash_part,
)
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.imaging import ClassLabel
from fedward_common.study.kin import person_key
from fedward_common.study.tabular import HashSplit, NumberLabel

Row = Mapping[str, str]
Floats = npt.NDArray[np.float32]


@dataclass(slots=True)
class GenotypeTally:
    """What was found, for the site's own eyes: loci by how they were found, why people are absent.

    `rates`: of each locus, the share of the people who have a genotype there.
    """

    people: int = 0
    loci: Counter[str] = field(default_factory=Counter)
    absent: Counter[str] = field(default_factory=Counter)
    rates: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Person:
    """One person of the table with genotypes. `unit`: the family, or the patient.

    `copies` float32 [loci]: of `alt`, NaN where missing. `beside`: the inputs of the columns.
    """

    unit: str
    part: TablePart
    label: float
    copies: Floats
    features: Floats
    beside: tuple[float, ...]


def encode_genotypes(
    schema: Genotypes,
    calls: Calls,
    rows: Sequence[Row],
    *,
    part: TablePart,
    strict: bool = False,
    tally: GenotypeTally | None = None,
) -> PatientRecords:
    """The records of `part`, one for each person, grouped by family where the study has families.

    A person whose row or genotypes do not fit counts as absent, a family that stands on both sides
    of the split as well (rules 7).

    Raises:
        DataError: with `strict`, a locus that could not be resolved, a row that does not fit, or
            nobody to train on; names loci and columns, never a person.
    """
    if strict and calls.refused:
        raise DataError(refused_text(calls))
    tally = GenotypeTally() if tally is None else tally
    people = present_people(schema, calls, rows, strict=strict, tally=tally)
    groups: dict[str, list[Person]] = {}
    for person in people:
        groups.setdefault(person.unit, []).append(person)
    kept = []
    for group in groups.values():
        if len({one.part for one in group}) > 1:
            if strict:
                raise DataError("split: expected a family on one side, found one on both")
            tally.absent["family on both sides of the split"] += len(group)
        elif group[0].part == part:
            kept.append(group)
    if strict and part == "train" and not kept:
        raise DataError("genotypes: expected at least one patient to train on, found none")
    chosen = [person for group in kept for person in group]
    features = [np.concatenate([p.features, np.array(p.beside, np.float32)]) for p in chosen]
    return PatientRecords(
        features=np.array(features, dtype=np.float32).reshape(len(chosen), schema.input_size),
        labels=np.array([person.label for person in chosen], dtype=np.float32),
        patient=np.repeat(np.arange(len(kept), dtype=np.int64), [len(group) for group in kept]),
        ids=tuple(group[0].unit.partition(" ")[2] for group in kept),
    )


def refused_text(calls: Calls) -> str:
    """What a site reads where loci could not be resolved."""
    why = Counter(calls.refused.values())
    first = [f"{name} ({reason})" for name, reason in list(calls.refused.items())[:5]]
    more = ", ..." if len(calls.refused) > len(first) else ""
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(why.items()))
    return (
        f"genotypes: expected every locus of the panel, found {counts}: {', '.join(first)}{more}; "
        "compare build, strand and alleles, or call these sites in every sample"
    )


def present_people(
    schema: Genotypes,
    calls: Calls,
    rows: Sequence[Row],
    *,
    strict: bool,
    tally: GenotypeTally,
) -> list[Person]:
    """The people of the table who fit, in its order. Raises: as `encode_genotypes`."""
    reader = _Reader(schema, calls)
    tally.loci.update(calls.found.values())
    tally.loci.update(calls.refused.values())
    for number, locus in enumerate(schema.loci):
        called = calls.alleles[:, number].min(axis=1) >= 0
        tally.rates[locus.id] = float(np.mean(called)) if len(called) else 0.0
    people: list[Person] = []
    # Within one privacy unit only: what another unit's rows say must not move this one's.
    times = Counter(reader.key(row) for row in rows)
    samples = Counter(reader.sample(row) for row in rows)
    if strict and samples and max(samples.values()) > 1:
        raise DataError(
            f"column {schema.sample_key!r}: expected every sample once, found one twice"
        )
    for row in rows:
        tally.people += 1
        try:
            if times[reader.key(row)] > 1:
                raise DataError(
                    f"column {schema.patient_key!r}: expected every patient once, found one twice"
                )
            person = reader.person(row)
        except DataError as error:
            if strict:
                raise
            tally.absent[str(error).partition(":")[0]] += 1
            continue
        if isinstance(person, str):
            tally.absent[person] += 1
        else:
            people.append(person)
    return people


class _Reader:
    """Turns one row of the table with its genotypes into a person."""

    def __init__(self, schema: Genotypes, calls: Calls) -> None:
        self._schema, self._calls = schema, calls
        self._places = {name: number for number, name in enumerate(calls.samples)}
        self._columns = [
            (
                column.name,
                column_reader(
                    column, missing_codes=schema.missing_codes, filled=schema.missing == "fill"
                ),
            )
            for column in schema.columns
        ]
        self._frequency = np.array([locus.frequency for locus in schema.loci], np.float32)

    def key(self, row: Row) -> tuple[str, str]:
        """As `person_key`."""
        return person_key(self._schema, row)

    def sample(self, row: Row) -> str:
        """The name in the file of variants."""
        return self._cell(row, self._schema.sample_key)

    def person(self, row: Row) -> Person | str:
        """A person, or in words why this one is not in the study. Raises DataError."""
        schema = self._schema
        family, patient = self.key(row)
        if not patient:
            raise DataError(f"column {schema.patient_key!r}: expected a patient id in every row")
        place = self._places.get(self.sample(row))
        label = self._label(row)
        beside = [read(self._cell(row, name)) for name, read in self._columns]
        if place is None:
            return "no genotypes"
        known = [numbers for numbers in beside if numbers is not None]
        if label is None or len(known) < len(beside):
            return "incomplete or without label"
        # The two kinds of id cannot meet: a person without a family is one alone.
        unit = f"family {family}" if family else f"patient {patient}"
        alleles = self._calls.alleles[place]
        called = (alleles >= 0).all(axis=1)
        if called.mean() < schema.min_call_rate:
            return "too few genotypes"
        copies = np.where(called, alleles.sum(axis=1), np.nan).astype(np.float32)
        if schema.coding == "dosage":
            copies = self._calls.dosage[place]
        return Person(
            unit=unit,
            part=self._part(row, family or patient),
            label=label,
            copies=copies,
            features=self._features(place, copies),
            beside=tuple(number for numbers in known for number in numbers),
        )

    def _features(self, place: int, copies: Floats) -> Floats:
        if self._schema.coding != "haplotypes":
            filled = np.where(np.isnan(copies), 2.0 * self._frequency, copies)
            return (filled - 1.0).astype(np.float32)
        alleles = self._calls.alleles[place]
        same = alleles[:, 0] == alleles[:, 1]
        clear = (alleles >= 0).all(axis=1) & (same | self._calls.phased[place])
        filled = np.where(clear[:, None], alleles, self._frequency[:, None])
        # Locus by locus, so that a convolution over loci sees both haplotypes as channels.
        return (2.0 * filled - 1.0).astype(np.float32).reshape(-1)

    def _part(self, row: Row, group: str) -> TablePart:
        split = self._schema.split
        if split is None:
            return "train"
        if isinstance(split, HashSplit):
            return hash_part(split, group)
        text = self._cell(row, split.column)
        if text not in ("train", "test"):
            raise DataError(f"column {split.column!r}: expected 'train' or 'test' in every row")
        return "train" if text == "train" else "test"

    def _label(self, row: Row) -> float | None:
        rule = self._schema.label
        if rule is None:
            return 0.0
        text = self._cell(row, rule.column)
        if code_text(text) in code_texts(self._schema.missing_codes):
            return None
        if isinstance(rule, ClassLabel):
            if text not in rule.classes:
                raise DataError(f"column {rule.column!r}: expected one of the study's classes")
            return float(rule.classes.index(text))
        value = decimal_number(text)
        if isinstance(rule, NumberLabel):
            if value is None:
                raise DataError(f"column {rule.column!r}: expected a number in {rule.unit}")
            share = (min(max(value, rule.low), rule.high) - rule.low) / (rule.high - rule.low)
            return 2.0 * share - 1.0
        if value is None or value != int(value) or not rule.low <= value <= rule.high:
            raise DataError(
                f"column {rule.column!r}: expected a whole number from {rule.low} to {rule.high}"
            )
        return 1.0 if value >= rule.positive_from else 0.0

    @staticmethod
    def _cell(row: Row, column: str) -> str:
        return (row.get(column) or "").strip()
