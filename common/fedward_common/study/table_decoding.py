"""From what a decoder makes of drawn codes to the rows of a table: the inverse of `encoding`."""

import numpy as np
import numpy.typing as npt

from fedward_common.privacy.randomness import RandomSource
from fedward_common.study.tabular import CategoryColumn, NumberColumn, TabularData

Floats = npt.NDArray[np.float64]


def drawn_rows(
    schema: TabularData, made: npt.NDArray[np.floating], *, spread: float, source: RandomSource
) -> list[dict[str, str]]:
    """A row of cells by column name for each row of `made` [rows, inputs].

    Numbers are drawn about what was made with the standard deviation `spread` on their scale, stay
    within the study's limits and have four digits; categories are drawn by their chances. Each row
    by draws of its own. No row has a patient id or a side of the split.
    """
    columns = {}
    place = 0
    for column in schema.columns:
        if isinstance(column, NumberColumn):
            columns[column.name] = _numbers(column, made[:, place], spread=spread, source=source)
            place += 1
        else:
            width = len(column.values) - 1
            columns[column.name] = _values(column, made[:, place : place + width], source=source)
            place += width
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _numbers(
    column: NumberColumn, made: npt.NDArray[np.floating], *, spread: float, source: RandomSource
) -> list[str]:
    drawn = np.clip(made.astype(np.float64) + spread * source.normal(len(made)), -1.0, 1.0)
    values = column.low + (drawn + 1.0) / 2.0 * (column.high - column.low)
    return [f"{float(f'{value:.4g}'):g}" for value in values]


def _values(
    column: CategoryColumn, made: npt.NDArray[np.floating], *, source: RandomSource
) -> list[str]:
    logits = np.concatenate([np.zeros((len(made), 1)), made.astype(np.float64)], axis=1)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    ends = np.cumsum(shares / shares.sum(axis=1, keepdims=True), axis=1)
    chosen = (source.uniform(len(made))[:, None] >= ends[:, :-1]).sum(axis=1)
    return [column.values[number] for number in chosen]
