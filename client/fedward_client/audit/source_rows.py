"""What a made-up row of any kind of source is, and the cells that all kinds share."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import numpy.typing as npt

from fedward_common.study.encoding import Row, hash_part
from fedward_common.study.image_encoding import FloatArray, ImageRow
from fedward_common.study.imaging import ClassLabel, SeveralLabels
from fedward_common.study.labelled_rows import SeveralAnswers
from fedward_common.study.tabular import ColumnSplit, HashSplit, LabelRule, NumberLabel, TimeLabel

UNREADABLE = "no number"
"""A cell that is no answer to anything."""
DAYS = "100"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ProfiledRow:
    """A row of a table of patients, and the patient's values in each matrix by its layer's name.

    A layer that is not there has no row of this patient.
    """

    row: Row
    layers: Mapping[str, FloatArray]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CalledRow:
    """A row of a table of people, and the person's genotypes: copies of `alt` and their dosage."""

    row: Row
    alleles: npt.NDArray[np.int8]
    """[loci, 2], -1 where missing."""
    dosage: FloatArray
    phased: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ModalityRow:
    """A row of one modality."""

    modality: str
    row: "OwnRow"


OwnRow = Row | ImageRow | ProfiledRow | CalledRow
"""A row of a source of one kind."""
SourceRow = OwnRow | ModalityRow


def cells_of(row: OwnRow) -> Row:
    """The cells of the row, by column."""
    if isinstance(row, ImageRow):
        return row.cells
    return row.row if isinstance(row, ProfiledRow | CalledRow) else row


def with_cells(row: OwnRow, cells: Row) -> OwnRow:
    """The row with these cells besides its own or in their place."""
    both = {**cells_of(row), **cells}
    if isinstance(row, ImageRow):
        return replace(row, cells=both)
    return replace(row, row=both) if isinstance(row, ProfiledRow | CalledRow) else both


def training_names(split: object) -> Iterator[str]:
    """Names of patients who are trained on; without end, and of rising texts."""
    numbers = (f"{number:06d}" for number in count())
    return (
        name
        for name in numbers
        if not isinstance(split, HashSplit) or hash_part(split, name) == "train"
    )


def split_cells(split: object) -> dict[str, str]:
    """The cells that put a row among those who are trained on."""
    return {split.column: "train"} if isinstance(split, ColumnSplit) else {}


def label_cells(label: object, *, high: bool) -> dict[str, str]:
    """The cells of a label at one of its ends; none where there is no label.

    Of several answers the low end has one that was not measured.
    """
    match label:
        case LabelRule() | NumberLabel():
            return {label.column: str(label.high if high else label.low)}
        case ClassLabel():
            return {label.column: label.classes[-1 if high else 0]}
        case TimeLabel():
            return {label.column: DAYS, label.event_column: str(int(high))}
        case SeveralAnswers():
            cells = dict.fromkeys(label.answers, str(int(high)))
            return cells if high else {**cells, label.answers[-1]: ""}
        case SeveralLabels():
            return dict.fromkeys(label.labels, str(int(high)))
    return {}
