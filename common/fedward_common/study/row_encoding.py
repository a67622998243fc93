"""From labelled rows to tensors: each row by itself and by public constants alone (rules 6)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from fedward_common.errors import DataError
from fedward_common.study.encoding import (
    PatientRecords,
    TablePart,
    code_text,
    decimal_number,
    hash_part,
)
from fedward_common.study.imaging import ClassLabel
from fedward_common.study.labelled_rows import LabelledRows, SeveralAnswers
from fedward_common.study.tabular import ColumnSplit, HashSplit, LabelRule, NumberLabel, TimeLabel

Row = Mapping[str, str]
Floats = npt.NDArray[np.float32]
Features = Callable[[Row], Floats]
"""A row -> its inputs [inputs]. Raises DataError, without a value of the row."""
PartOf = Callable[[Row], TablePart]
"""A row -> the side of the split that its own content puts it on. Raises as `Features`."""

NOT_MEASURED: Final = -1.0
"""The label of an answer that nobody measured."""
MISSING: Final = frozenset({"", "?", "NA", "nan", "NaN"})


@dataclass(frozen=True, slots=True, eq=False)
class _Record:
    part: TablePart
    features: Floats
    label: tuple[float, ...]


def encode_rows(
    schema: LabelledRows,
    rows: Iterable[Row],
    features: Features,
    *,
    part: TablePart,
    part_of: PartOf | None = None,
    strict: bool = False,
    one_record_per_patient: bool = False,
) -> tuple[PatientRecords, int]:
    """The records of the patients in `part`, grouped by patient; and how many patients are absent.

    A patient whose rows do not fit counts as absent (rules 7); with `strict` it is an error. The
    rows of the other part are read as well: whether they fit never depends on the part. labels
    [records], or [records, answers] with NOT_MEASURED where there is none.

    Raises:
        DataError: with `strict`, anything that does not fit, or nobody to train on.
    """
    groups: dict[str, list[_Record]] = {}
    absent: set[str] = set()
    for number, row in enumerate(rows):
        patient = f"#{number}" if schema.no_patient_key else cell(row, schema.patient_key)
        try:
            record = _record(schema, row, features, patient=patient, part_of=part_of)
            groups.setdefault(patient, []).append(record)
        except DataError:
            if strict:
                raise
            absent.add(patient)
    for patient, records in groups.items():
        try:
            if patient not in absent:
                _check_patient(schema, records, single=one_record_per_patient)
        except DataError:
            if strict:
                raise
            absent.add(patient)
    chosen = {
        patient: records
        for patient, records in groups.items()
        if patient not in absent and records[0].part == part
    }
    if strict and part == "train" and not chosen:
        raise DataError(f"{schema.what}: expected at least one patient to train on, found none")
    return _arrays(schema, chosen), len(absent)


def cell(row: Row, column: str) -> str:
    """The text of a cell; nothing where there is none."""
    return (row.get(column) or "").strip()


def _record(
    schema: LabelledRows, row: Row, features: Features, *, patient: str, part_of: PartOf | None
) -> _Record:
    if not patient:
        raise DataError(f"column {schema.patient_key!r}: expected a patient id in every row")
    label = _label(schema, row)
    if part_of is not None:
        part = part_of(row)
    elif isinstance(schema.split, HashSplit):
        part = hash_part(schema.split, patient)
    else:
        part = _column_part(schema, row)
    return _Record(part=part, features=features(row), label=label)


def _column_part(schema: LabelledRows, row: Row) -> TablePart:
    if not isinstance(schema.split, ColumnSplit):
        raise DataError("split: expected a column or a hash, found another")
    text = cell(row, schema.split.column)
    if text not in ("train", "test"):
        raise DataError(f"column {schema.split.column!r}: expected 'train' or 'test'")
    return "train" if text == "train" else "test"


def _label(schema: LabelledRows, row: Row) -> tuple[float, ...]:
    rule = schema.label
    match rule:
        case LabelRule():
            return (_answer(rule, cell(row, rule.column)),)
        case ClassLabel():
            text = cell(row, rule.column)
            if text not in rule.classes:
                raise DataError(
                    f"column {rule.column!r}: expected one of the study's {len(rule.classes)} "
                    "classes, found something else"
                )
            return (float(rule.classes.index(text)),)
        case SeveralAnswers():
            return tuple(_measured(cell(row, name), column=name) for name in rule.answers)
        case NumberLabel():
            value = decimal_number(cell(row, rule.column))
            if value is None:
                raise DataError(f"column {rule.column!r}: expected a number in {rule.unit}")
            clipped = min(max(value, rule.low), rule.high)
            return (2.0 * (clipped - rule.low) / (rule.high - rule.low) - 1.0,)
        case TimeLabel():
            return (_days(rule, row),)
        case None:
            return (0.0,)


def _answer(rule: LabelRule, text: str) -> float:
    value = decimal_number(text)
    if value is None or value != int(value) or not rule.low <= value <= rule.high:
        raise DataError(
            f"column {rule.column!r}: expected a whole number from {rule.low} to {rule.high} as "
            "label, found something else"
        )
    return 1.0 if value >= rule.positive_from else 0.0


def _measured(text: str, *, column: str) -> float:
    if text in MISSING:
        return NOT_MEASURED
    code = code_text(text)
    if code not in ("0", "1"):
        raise DataError(f"column {column!r}: expected 0, 1 or nothing, found something else")
    return float(code)


def _days(rule: TimeLabel, row: Row) -> float:
    """Days to the event, negative where there was none by the end of follow-up."""
    days, event = (
        decimal_number(cell(row, rule.column)),
        code_text(cell(row, rule.event_column)),
    )
    if days is None or days <= 0 or event not in ("0", "1"):
        raise DataError(
            f"columns {rule.column!r} and {rule.event_column!r}: expected days above 0 and an "
            "event of 0 or 1, found something else"
        )
    followed = min(days, rule.longest_days)
    return followed if event == "1" and days <= rule.longest_days else -followed


def _check_patient(schema: LabelledRows, records: list[_Record], *, single: bool) -> None:
    if single and len(records) > 1:
        raise DataError(
            f"column {schema.patient_key!r}: expected every patient once, because the study takes "
            "one record per patient, found a patient id twice"
        )
    if len({record.part for record in records}) > 1:
        raise DataError("split: expected all rows of a patient on one side, found both")
    if len({record.label for record in records}) > 1:
        raise DataError(
            f"columns {', '.join(map(repr, schema.label_columns))}: expected one label per "
            "patient, found several"
        )


def _arrays(schema: LabelledRows, groups: Mapping[str, list[_Record]]) -> PatientRecords:
    records = [record for group in groups.values() for record in group]
    sizes = [len(group) for group in groups.values()]
    several = isinstance(schema.label, SeveralAnswers)
    width = len(schema.label_columns) if several else 1
    labels = np.array([record.label for record in records], dtype=np.float32).reshape(-1, width)
    features = np.zeros((len(records), schema.input_size), dtype=np.float32)
    for number, record in enumerate(records):
        features[number] = record.features
    return PatientRecords(
        features=features,
        labels=labels if several else labels[:, 0],
        patient=np.repeat(np.arange(len(groups), dtype=np.int64), sizes),
        ids=tuple(groups),
    )
