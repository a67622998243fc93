"""From the rows of a site's table to tensors, by the public constants of the study alone.

Every row becomes numbers by itself: no statistic of the table enters (rules 6), so that removing
one patient leaves every other patient's numbers bit-identical.
"""

import csv
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from fedward_common.errors import DataError
from fedward_common.study.statistics import Table
from fedward_common.study.tabular import (
    CategoryColumn,
    ColumnSplit,
    HashSplit,
    NumberColumn,
    NumberLabel,
    TabularData,
    TimeLabel,
)

Row = Mapping[str, str]
TablePart = Literal["train", "test"]
Inputs = tuple[float, ...]
_Reader = Callable[[str], Inputs | None]
"""A cell -> the column's inputs; None where the cell is missing and nothing fills it."""

_DECIMAL: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_WHOLE: Final = re.compile(r"([+-]?\d+)\.0*", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PatientRecords:
    """The records of one part of a site's patients, grouped by patient.

    `features`: float32 [records, inputs], numbers in [-1, 1] and categories 0 or 1.
    `labels`: float32 [records], the same for all records of a patient (of a family, which stands
    here in a patient's place, each member's own): 0 or 1 of a class, a number
    in [-1, 1], or days until an event, negative where the patient was only followed so far; the
    number of a class; a whole number whose bits are labels. Of a segmentation [records, voxels]:
    the structure in each.
    `patient`: int64 [records], 0..patients-1, never falling; a patient's records are neighbours.
    `ids`: the site's id of each patient, by which modalities are joined; they go nowhere else.
    """

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32]
    patient: npt.NDArray[np.int64]
    ids: tuple[str, ...] = field(default=(), repr=False)

    @property
    def patients(self) -> int:
        """How many patients there are. A private number: it must not leave the site."""
        return int(self.patient[-1]) + 1 if len(self.patient) else 0


def labelled(records: PatientRecords) -> PatientRecords:
    """The records that have a label, patients numbered anew."""
    return with_labels(records, records.labels)


def with_labels(records: PatientRecords, labels: npt.NDArray[np.float32]) -> PatientRecords:
    """`records` with other labels; without those whose label is NaN, patients numbered anew."""
    kept = ~np.isnan(labels)
    if kept.all():
        return replace(records, labels=labels)
    patients = np.unique(records.patient[kept])
    return PatientRecords(
        features=records.features[kept],
        labels=labels[kept],
        patient=np.searchsorted(patients, records.patient[kept]).astype(np.int64),
        ids=tuple(records.ids[number] for number in patients) if records.ids else (),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    patient: str
    label: float
    part: TablePart
    features: Inputs


def encode_table(
    schema: TabularData,
    rows: Iterable[Row],
    *,
    part: TablePart,
    one_record_per_patient: bool = False,
) -> PatientRecords:
    """The records of the patients in `part`, in the order in which patients first appear.

    Every row is checked, also those of the other part, so that training never starts on a table
    whose evaluation would fail. Decisions where the data leave room:

    * A row with a missing value is dropped under `missing = "drop"`; under `"fill"` the column's
      public fill value takes its place. A row without a label is always dropped.
    * With `unlabelled = "keep"` a patient without any label has NaN for one. A row without a label
      is dropped all the same where the patient has a labelled one, and where the patient is held
      out.
    * A patient may have several rows unless `one_record_per_patient` (the study takes at most one
      record per patient: which one would be arbitrary). Their label, as positive or negative, and
      their side of the split must agree.
    * Codes are compared as text, except that `1.0` and `1` are the same code.
    * No patient at all, or none to train on, is an error. No held-out patient is not: the noised
      evaluation then says nothing, which is what protects that fact.

    Raises:
        DataError: the table does not fit the schema; names column and rule, never a value.
    """
    encode = _row_encoder(schema)
    records = _settled([record for row in rows if (record := encode(row)) is not None])
    if not records:
        raise DataError(
            "table: expected at least one patient with complete data, found none; check the file "
            "and the study's rule for missing values"
        )
    groups = _by_patient(records, schema, one_record_per_patient=one_record_per_patient)
    chosen = [group for group in groups if group[0].part == part]
    if not chosen and part == "train":
        raise DataError("table: expected at least one patient to train on, found none")
    return _arrays(chosen, inputs=schema.input_size)


def encode_present(
    schema: TabularData,
    rows: Iterable[Row],
    *,
    part: TablePart,
    one_record_per_patient: bool = False,
) -> tuple[PatientRecords, int]:
    """As `encode_table`, but a patient whose rows do not fit counts as absent; with their number.

    What mechanisms run on: whether they run must not depend on one patient's cells, or the refusal
    would answer a question about that patient outside epsilon (rules 7). So this never fails on
    rows. A row without a patient id counts as absent by itself; an empty part has no records. The
    number of absent patients is for the site's own log and must not leave it.
    """
    encode = _row_encoder(schema)
    groups: dict[str, list[_Record]] = {}
    absent: set[str] = set()
    for row in rows:
        patient = (row.get(schema.patient_key) or "").strip()
        try:
            record = encode(row)
        except DataError:
            absent.add(patient)
            continue
        if record is not None:
            groups.setdefault(patient, []).append(record)
    groups = {patient: own for patient, group in groups.items() if (own := _settled(group))}
    for patient, group in groups.items():
        try:
            _check_group(group, schema, one_record_per_patient=one_record_per_patient)
        except DataError:
            absent.add(patient)
    present = [group for patient, group in groups.items() if patient not in absent]
    chosen = [group for group in present if group[0].part == part]
    return _arrays(chosen, inputs=schema.input_size), len(absent)


def check_columns(schema: TabularData | Table, header: Sequence[str]) -> None:
    """Returns when `header` has every column that `schema` asks for; others do no harm.

    Raises:
        DataError: a column is absent; names all absent ones (public names of the study).
    """
    absent = [name for name in required_columns(schema) if name not in header]
    if absent:
        raise DataError(
            f"table: expected the columns {', '.join(map(repr, absent))}, found none of that name; "
            "add them or rename the table's columns"
        )


def required_columns(schema: TabularData | Table) -> tuple[str, ...]:
    """The names of all columns that `schema` reads."""
    if isinstance(schema, Table):
        return (schema.patient_key, *(column.name for column in schema.columns))
    split = () if isinstance(schema.split, HashSplit) else (schema.split.column,)
    names = (column.name for column in schema.columns)
    label = () if schema.label is None else (schema.label.column,)
    event = (schema.label.event_column,) if isinstance(schema.label, TimeLabel) else ()
    return (schema.patient_key, *names, *label, *event, *split)


def hash_part(split: HashSplit, patient: str) -> TablePart:
    """The side of a hash split that a patient id is on, on every machine.

    The first 8 bytes of SHA-256(salt + "|" + id), big-endian, over 2**64, against `held_out`.
    """
    digest = hashlib.sha256(f"{split.salt}|{patient}".encode()).digest()
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if fraction < split.held_out else "train"


def _row_encoder(schema: TabularData) -> Callable[[Row], _Record | None]:
    """A function from one row to numbers; it gives None where the study's rule drops the row."""
    readers = [
        (
            column.name,
            column_reader(
                column, missing_codes=schema.missing_codes, filled=schema.missing == "fill"
            ),
        )
        for column in schema.columns
    ]
    missing, split = code_texts(schema.missing_codes), schema.split

    def encode(row: Row) -> _Record | None:
        patient = _cell(row, schema.patient_key)
        if not patient:
            raise DataError(f"column {schema.patient_key!r}: expected a patient id in every row")
        if isinstance(split, HashSplit):
            part = hash_part(split, patient)
        else:
            part = _column_part(split, _cell(row, split.column))
        label = _label(schema, row, missing=missing)
        # Every cell is read, also after a missing one: a wrong cell is an error in any row.
        inputs = [read(_cell(row, name)) for name, read in readers]
        known = [numbers for numbers in inputs if numbers is not None]
        if label is None or len(known) < len(inputs):
            return None
        features = tuple(number for numbers in known for number in numbers)
        return _Record(patient=patient, label=label, part=part, features=features)

    return encode


def _column_part(split: ColumnSplit, text: str) -> TablePart:
    match text:
        case "train":
            return "train"
        case "test":
            return "test"
    raise DataError(f"column {split.column!r}: expected 'train' or 'test' in every row")


def _label(schema: TabularData, row: Row, *, missing: frozenset[str]) -> float | None:
    rule = schema.label
    if rule is None:
        return 0.0
    text = _cell(row, rule.column)
    if code_text(text) in missing:
        return math.nan if schema.unlabelled == "keep" else None
    value = decimal_number(text)
    if isinstance(rule, NumberLabel):
        if value is None:
            raise DataError(
                f"column {rule.column!r}: expected a number in {rule.unit} as label, found other "
                "text"
            )
        return 2.0 * (min(max(value, rule.low), rule.high) - rule.low) / (rule.high - rule.low) - 1
    if isinstance(rule, TimeLabel):
        return _days(rule, value, _cell(row, rule.event_column), missing=missing)
    if value is None or value != int(value) or not rule.low <= value <= rule.high:
        raise DataError(
            f"column {rule.column!r}: expected a whole number from {rule.low} to {rule.high} as "
            "label, found something else"
        )
    return 1.0 if value >= rule.positive_from else 0.0


def _days(
    rule: TimeLabel, days: float | None, event: str, *, missing: frozenset[str]
) -> float | None:
    """Days to the event, negative where there was none; nobody is followed for 0 days or less."""
    code = code_text(event)
    if code in missing or (days is not None and days <= 0):
        return None
    if days is None or code not in ("0", "1"):
        raise DataError(
            f"columns {rule.column!r} and {rule.event_column!r}: expected days above 0 and an "
            "event of 0 or 1, found something else"
        )
    followed = min(days, rule.longest_days)
    return followed if code == "1" and days <= rule.longest_days else -followed


def column_reader(
    column: NumberColumn | CategoryColumn, *, missing_codes: Sequence[str], filled: bool
) -> _Reader:
    """A function from a cell of `column` to its inputs; None where it is missing.

    With `filled` the column's public fill value takes the place of what is missing. The function
    raises DataError for a cell that is neither missing nor of the column.
    """
    missing = code_texts((*missing_codes, *column.missing_codes))
    encode = _number(column) if isinstance(column, NumberColumn) else _category(column)
    fill = None
    if filled and column.fill is not None:
        fill = encode(str(column.fill))

    def read(text: str) -> Inputs | None:
        return fill if code_text(text) in missing else encode(text)

    return read


def _number(column: NumberColumn) -> Callable[[str], Inputs]:
    """The value clipped to [low, high] and mapped to [-1, 1]."""

    def encode(text: str) -> Inputs:
        value = decimal_number(text)
        if value is None:
            raise DataError(
                f"column {column.name!r}: expected a number in {column.unit} or a missing code of "
                "the study, found other text"
            )
        clipped = min(max(value, column.low), column.high)
        return (2.0 * (clipped - column.low) / (column.high - column.low) - 1.0,)

    return encode


def _category(column: CategoryColumn) -> Callable[[str], Inputs]:
    """One input per value except the first: 1 for the value's own input, 0 for the others."""
    values = [code_text(value) for value in column.values]
    inputs = {
        value: tuple(1.0 if other == value else 0.0 for other in values[1:]) for value in values
    }

    def encode(text: str) -> Inputs:
        found = inputs.get(code_text(text))
        if found is None:
            raise DataError(
                f"column {column.name!r}: expected one of the study's {len(values)} codes or a "
                "missing code, found another"
            )
        return found

    return encode


def _cell(row: Row, column: str) -> str:
    text = row.get(column)
    if text is None:
        raise DataError(f"table: expected the column {column!r} in every row, found rows without")
    return text.strip()


def decimal_number(text: str) -> float | None:
    """A plain decimal number; None for anything else, also for what only Python calls a number."""
    value = float(text) if _DECIMAL.fullmatch(text) else math.nan
    return value if math.isfinite(value) else None


def readable_cells(line: bytes, *, delimiter: str) -> list[str] | None:
    """The cells of one line of a table; None for a blank line and for one that cannot be read.

    By itself: a broken quote or foreign bytes in one patient's line must not touch another's.
    """
    try:
        cells = next(csv.reader([line.decode("utf-8")], delimiter=delimiter, strict=True), [])
    except (UnicodeDecodeError, csv.Error):
        return None
    return [cell.strip() for cell in cells] or None


def code_text(text: str) -> str:
    """`text` as a code: the same for 1, 1. and 1.0, which are one code in different exports."""
    whole = _WHOLE.fullmatch(text)
    return whole.group(1) if whole else text.strip()


def code_texts(texts: Iterable[str]) -> frozenset[str]:
    """`texts` as codes."""
    return frozenset(code_text(text) for text in texts)


def _settled(records: Sequence[_Record]) -> list[_Record]:
    """Without the records that have no label where the patient has one, or is held out."""
    labelled = {record.patient for record in records if not math.isnan(record.label)}
    return [
        record
        for record in records
        if not math.isnan(record.label)
        or (record.part == "train" and record.patient not in labelled)
    ]


def _by_patient(
    records: Sequence[_Record], schema: TabularData, *, one_record_per_patient: bool
) -> list[list[_Record]]:
    groups: dict[str, list[_Record]] = {}
    for record in records:
        groups.setdefault(record.patient, []).append(record)
    for group in groups.values():
        _check_group(group, schema, one_record_per_patient=one_record_per_patient)
    return list(groups.values())


def _check_group(
    group: Sequence[_Record], schema: TabularData, *, one_record_per_patient: bool
) -> None:
    if one_record_per_patient and len(group) > 1:
        raise DataError(
            f"column {schema.patient_key!r}: expected every patient once, because the study "
            "takes one record per patient, found a patient id twice"
        )
    if len({record.part for record in group}) > 1:
        raise DataError(
            "split: expected all rows of a patient on one side, found a patient in both the "
            "training and the held-out rows"
        )
    # Labels that are missing are one and the same object, and so one entry of a set.
    if schema.label is not None and len({record.label for record in group}) > 1:
        raise DataError(
            f"column {schema.label.column!r}: expected one label per patient, found a patient "
            "with both classes"
        )


def _arrays(groups: Sequence[Sequence[_Record]], *, inputs: int) -> PatientRecords:
    records = [record for group in groups for record in group]
    patient = [number for number, group in enumerate(groups) for _ in group]
    features = np.array([record.features for record in records], dtype=np.float64)
    return PatientRecords(
        features=features.reshape(len(records), inputs).astype(np.float32),
        labels=np.array([record.label for record in records], dtype=np.float32),
        patient=np.array(patient, dtype=np.int64),
        ids=tuple(group[0].patient for group in groups),
    )
