"""The statistics mechanism: sums over a site's patients, plus noise, minus small cells.

Order matters: exact sums, then noise, then the minimum cell size on the noised numbers. Cutting by
the true numbers would be an answer of its own: whether a cell is shown would tell with certainty
whether 9 or 10 patients are in it, and no noise covers that. On noised numbers it is
post-processing and costs nothing.

Sources: Dwork and Roth 2014, 3.3 and A.1 (Laplace and Gaussian mechanisms); Canonne, Kamath,
Steinke 2020, algorithms 1 and 2 (exact discrete Laplace); Mironov 2012 (why numbers are rounded).
"""

import math
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from fedward_common.errors import ConfigError, ProtocolError
from fedward_common.genotypes.encoding import Person
from fedward_common.privacy.randomness import RandomSource
from fedward_common.privacy.variant_statistics import exact_variant_sums
from fedward_common.study.encoding import Row, code_text, code_texts, decimal_number
from fedward_common.study.registry import DataSpec
from fedward_common.study.statistics import (
    COUNTS,
    Cell,
    ColumnStatistics,
    StatisticsRelease,
    Table,
    cells,
    columns_of,
    weight,
)
from fedward_common.study.tabular import CategoryColumn, NumberColumn, TabularData
from fedward_common.study.variant_statistics import VariantRelease

GRID: Final = 1024.0
"""Numbers with Gaussian noise are rounded to 1/1024, as `privacy/histogram` does."""
LARGEST: Final = 2.0**40
"""No released number is beyond this: more than 10**12 patients is a mistake."""

Value = float | int | None
"""A released number; None where it is withheld."""
Exact = npt.NDArray[np.float64]
StatisticsRow = Row | Person
"""A row of a table, or a person with genotypes."""
_Read = Callable[[str], float | None]
"""A cell -> the scaled number or the code's position; None where there is no readable value."""


class IntegerSource(Protocol):
    """Independent whole numbers."""

    def below(self, bound: int) -> int:
        """A whole number, uniform on 0..bound-1."""
        ...


class SystemIntegers:
    """An `IntegerSource` over the operating system's generator; it has no seed (rules 11)."""

    __slots__ = ()

    def below(self, bound: int) -> int:
        """A whole number, uniform on 0..bound-1."""
        return secrets.randbelow(bound)


def exact_sums(
    release: StatisticsRelease,
    data: DataSpec,
    rows: Iterable[StatisticsRow],
    *,
    scale: float | None = None,
) -> Exact:
    """The sums over all patients in `rows`, one for each of `cells(release, data)`. Private.

    With `scale` every patient's share is first rounded towards zero to a multiple of 1 / scale, so
    that the sums are exact on that grid and no patient's share grows.

    Guarantees:
        Adding or removing one patient with all rows changes no entry by more than 1, at most
        `weight(release, data)` entries at all, and of the count-like ones by 0 or 1 exactly.
        A row without a patient id counts for nobody. A cell that is missing, or that does not fit
        the schema, counts as no value; nothing in a row can make this fail.

    Raises:
        ConfigError: the release does not fit the data's schema.
    """
    if isinstance(release, VariantRelease):
        people = (row for row in rows if isinstance(row, Person))
        return exact_variant_sums(release, data, people, scale=scale)
    known, layout = columns_of(data), cells(release, data)
    place = {cell: number for number, cell in enumerate(layout)}
    readers = {name: _reader(known[name], data) for name in release.columns}
    sums = np.zeros(len(layout), dtype=np.float64)
    for own in _by_patient((row for row in rows if not isinstance(row, Person)), data):
        for name, read in readers.items():
            values = [v for row in own if (v := read((row.get(name) or "").strip())) is not None]
            column = known[name]
            shares = (
                _of_number(name, values, release)
                if isinstance(column, NumberColumn)
                else _of_category(name, values)
            )
            for cell, share in shares:
                if cell in place:
                    kept = share if scale is None else math.trunc(share * scale) / scale
                    sums[place[cell]] += kept
    return sums


def noised(
    release: StatisticsRelease,
    data: DataSpec,
    exact: Exact,
    *,
    noise: RandomSource,
    integers: IntegerSource,
) -> list[float | int]:
    """`exact` with the release's noise on every number: whole numbers under discrete Laplace.

    Raises:
        ConfigError: the release does not fit the data's schema.
    """
    spread = noise_spread(release, data)
    if release.mechanism == "gaussian":
        drawn = exact + spread * noise.normal(exact.size)
        return [float(x) for x in np.round(drawn * GRID) / GRID]
    parameter = Fraction(1.0 / spread)
    return [round(x) + discrete_laplace(parameter, integers=integers) for x in exact.tolist()]


def noise_spread(release: StatisticsRelease, data: DataSpec) -> float:
    """The noise of each number: standard deviation, or scale of the discrete Laplace noise.

    Raises:
        ConfigError: the release does not fit the data's schema.
    """
    if release.mechanism == "gaussian":
        return release.noise_multiplier * math.sqrt(weight(release, data))
    return release.noise_multiplier * release.counts_weight


def noise_deviation(release: StatisticsRelease, data: DataSpec) -> float:
    """The standard deviation of the noise of each number, under either mechanism."""
    spread = noise_spread(release, data)
    if release.mechanism == "gaussian":
        return spread
    return math.sqrt(2.0 * math.exp(-1.0 / spread)) / -math.expm1(-1.0 / spread)


def withheld(
    release: StatisticsRelease, data: DataSpec, values: Sequence[float | int]
) -> list[Value]:
    """`values`, already noised, without small cells: None where a number stays at the site.

    A number of patients stays when it is below the release's minimum cell size; mean and variance
    stay when their column's count does.
    """
    least = release.min_cell_size
    layout = cells(release, data)
    small = {
        cell.column
        for cell, value in zip(layout, values, strict=True)
        if cell.part == "count" and value < least
    }

    def stays(cell: Cell, value: float) -> bool:
        if cell.part == "sum":  # of many patients, and no number of them
            return False
        return value < least if cell.part in COUNTS else cell.column in small

    return [None if stays(c, v) else v for c, v in zip(layout, values, strict=True)]


def check_values(release: StatisticsRelease, data: DataSpec, values: object) -> list[Value]:
    """`values` as what `withheld` returns; each number in the one form it may have.

    Raises:
        ProtocolError: another length, a number that is not finite, too large or off the grid, a
            cell below the minimum size, or a mean without its count.
    """
    layout = cells(release, data)
    if not isinstance(values, list) or len(values) != len(layout):
        raise ProtocolError(f"statistics: expected {len(layout)} values, found something else")
    grid = GRID if release.mechanism == "gaussian" else 1.0
    if not all(value is None or _on_grid(value, grid=grid) for value in values):
        raise ProtocolError(
            f"statistics: expected finite multiples of 1/{grid:g} or null, found something else"
        )
    shown = {
        cell.column
        for cell, value in zip(layout, values, strict=True)
        if cell.part == "count" and value is not None
    }
    least = release.min_cell_size
    for cell, value in zip(layout, values, strict=True):
        if cell.part in COUNTS:
            right = value is None or value >= least
        elif cell.part == "sum":
            right = value is not None
        else:
            right = (value is None) == (cell.column not in shown)
        if not right:
            raise ProtocolError(
                f"statistics: expected no number of patients below {least} and nothing else about "
                "a column whose count stays, found otherwise"
            )
    return list(values)


def _on_grid(value: object, *, grid: float) -> bool:
    if type(value) is float:
        return math.isfinite(value) and abs(value) <= LARGEST and (value * grid).is_integer()
    return type(value) is int and abs(value) <= LARGEST


def discrete_laplace(parameter: Fraction, *, integers: IntegerSource) -> int:
    """A whole number k with probability proportional to exp(-parameter |k|), exactly.

    Guarantees: only whole-number arithmetic, so that no floating-point grid shows (Mironov 2012).
    Source: Canonne, Kamath, Steinke 2020, algorithm 2, with t / s = 1 / parameter.
    """
    if parameter <= 0:
        raise ConfigError(f"discrete Laplace: expected a parameter above 0, found {parameter}")
    s, t = parameter.numerator, parameter.denominator
    while True:
        first = integers.below(t)
        if not _bernoulli_exp(Fraction(first, t), integers=integers):
            continue
        whole = 0
        while _bernoulli_exp(Fraction(1), integers=integers):
            whole += 1
        size = (first + t * whole) // s
        negative = integers.below(2) == 1
        if not (negative and size == 0):
            return -size if negative else size


def _bernoulli_exp(gamma: Fraction, *, integers: IntegerSource) -> bool:
    """True with probability exp(-gamma), for gamma in [0, 1] (the same paper, algorithm 1)."""
    count = 1
    while integers.below(gamma.denominator * count) < gamma.numerator:
        count += 1
    return count % 2 == 1


def _by_patient(rows: Iterable[Row], data: DataSpec) -> Iterable[list[Row]]:
    if not isinstance(data, Table | TabularData):
        raise ConfigError(f"data.kind: expected table or tabular, found {data.kind!r}")
    own: dict[str, list[Row]] = {}
    for row in rows:
        patient = (row.get(data.patient_key) or "").strip()
        if patient:
            own.setdefault(patient, []).append(row)
    return own.values()


def _reader(column: NumberColumn | CategoryColumn, data: DataSpec) -> _Read:
    codes = data.missing_codes if isinstance(data, Table | TabularData) else ()
    missing = code_texts((*codes, *column.missing_codes))
    if isinstance(column, CategoryColumn):
        places = {code_text(value): float(n) for n, value in enumerate(column.values)}

        def place(text: str) -> float | None:
            return None if code_text(text) in missing else places.get(code_text(text))

        return place

    def scaled(text: str) -> float | None:
        value = None if code_text(text) in missing else decimal_number(text)
        if value is None:
            return None
        clipped = min(max(value, column.low), column.high)
        share = (clipped - column.low) / (column.high - column.low)
        return min(max(2.0 * share - 1.0, -1.0), 1.0)

    return scaled


def _of_number(
    name: str, values: Sequence[float], release: ColumnStatistics
) -> Iterable[tuple[Cell, float]]:
    if not values:
        return [(Cell(column=name, part="missing"), 1.0)]
    mean = min(max(math.fsum(values) / len(values), -1.0), 1.0)
    slot = min(int((mean + 1.0) / 2.0 * release.bins), release.bins - 1)
    return [
        (Cell(column=name, part="count"), 1.0),
        (Cell(column=name, part="mean"), mean),
        (Cell(column=name, part="variance"), mean * mean),
        (Cell(column=name, part="histogram", index=slot), 1.0),
    ]


def _of_category(name: str, values: Sequence[float]) -> Iterable[tuple[Cell, float]]:
    if not values:
        return [(Cell(column=name, part="missing"), 1.0)]
    times: Mapping[float, int] = Counter(values)
    # The most frequent code; of several the first in the study's order: never the table's order.
    most = max(times.values())
    slot = int(min(place for place, count in times.items() if count == most))
    return [
        (Cell(column=name, part="count"), 1.0),
        (Cell(column=name, part="histogram", index=slot), 1.0),
    ]
