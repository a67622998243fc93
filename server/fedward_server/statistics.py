"""From the sites' noised sums to figures with their standard errors: post-processing of releases.

The sums go through the `SecureSum` port, so that masked sums take its place later. With each number
travels a 1 or 0 that says whether the site showed it; only the totals of both are kept.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from fedward_common.errors import ProtocolError
from fedward_common.ids import SiteId
from fedward_common.privacy.statistics import check_values, noise_deviation, withheld
from fedward_common.secagg.sums import noise_share
from fedward_common.study.registry import DataSpec
from fedward_common.study.spec import StudySpec
from fedward_common.study.statistics import (
    ColumnStatistics,
    Part,
    StatisticsRelease,
    cells,
    columns_of,
)
from fedward_common.study.tabular import NumberColumn
from fedward_common.wire import Octets
from fedward_server.aggregation import PlainSum, SecureSum

Numbers = npt.NDArray[np.float64]

VALUES: Final = "values"
SHOWN: Final = "shown"
INTERVAL_SD: Final = 1.96
"""Half the width of a 95 % interval, in standard errors."""
ENOUGH: Final = 3.0
"""A mean is given when its count is at least this many of its standard errors above zero."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """One release summed over the sites that answered.

    `values`: one total for each number of the release; `shown`: how many sites are in it;
    `answered`: how many sites answered at all; `noise_share`: what each site's noise is of the
    declared one (less than 1 where the shares of all add up to it).
    """

    values: tuple[float, ...]
    shown: tuple[int, ...]
    answered: int
    noise_share: float = 1.0

    def as_json(self) -> dict[str, Any]:
        """The totals as a JSON value."""
        return {
            "values": list(self.values),
            "shown": list(self.shown),
            "answered": self.answered,
            **({} if self.noise_share == 1.0 else {"noise_share": self.noise_share}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The totals in what `as_json` gave."""
        return cls(
            values=tuple(float(v) for v in value["values"]),
            shown=tuple(int(n) for n in value["shown"]),
            answered=int(value["answered"]),
            noise_share=float(value.get("noise_share", 1.0)),
        )


class StatisticsSum:
    """Adds the sites' payloads of one release; only their total can be asked for."""

    def __init__(
        self, study: StudySpec, release: StatisticsRelease, total: SecureSum | None = None
    ) -> None:
        self._study, self._release = study, release
        # Every patient counts once, so every site has the weight 1.
        self._sum = total or PlainSum({SiteId(site.id): 1.0 for site in study.sites})
        self._answered = 0

    def add(self, site: SiteId, payload: Octets) -> None:
        """Adds one site's payload once.

        Raises:
            ProtocolError: it is not what the release says, or a second one of the site.
        """
        values = parse_values(bytes(payload), release=self._release, data=self._study.data)
        tensors = {
            VALUES: np.array([0.0 if v is None else v for v in values], dtype=np.float32),
            SHOWN: np.array([v is not None for v in values], dtype=np.float32),
        }
        self._sum.add(site, tensors)
        self._answered += 1

    def totals(self) -> Totals:
        """The totals over the sites added. Raises RuntimeError when there is none."""
        mean = self._sum.mean()
        values, shown = (
            np.asarray(mean[name], dtype=np.float64) * self._answered for name in (VALUES, SHOWN)
        )
        return Totals(
            values=tuple(round(v, 3) for v in values.tolist()),
            shown=tuple(round(n) for n in shown.tolist()),
            answered=self._answered,
        )


def opened_totals(
    study: StudySpec, release: StatisticsRelease, values: Numbers, *, answered: int
) -> Totals:
    """The totals of a release whose sum was secret until it was opened.

    No site's own numbers exist here, so the minimum cell size cuts the totals: a small one is given
    as 0 shown by no site. That is post-processing of noised numbers.
    """
    kept = withheld(release, study.data, [float(v) for v in np.round(values, 3)])
    return Totals(
        values=tuple(0.0 if value is None else float(value) for value in kept),
        shown=tuple(0 if value is None else answered for value in kept),
        answered=answered,
        noise_share=noise_share(study),
    )


def parse_values(
    payload: bytes, *, release: StatisticsRelease, data: DataSpec
) -> list[float | int | None]:
    """The numbers of a statistics payload. Raises ProtocolError for anything else."""
    try:
        value: Any = json.loads(payload)
        numbers = value[VALUES]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProtocolError(
            "statistics: expected {'values': [...]}, found something else"
        ) from error
    return check_values(release, data, numbers)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A figure and the standard error that the noise gives it; None where there is none.

    `withheld_by`: how many sites kept back what goes into it (too small a cell).
    """

    value: float | None
    standard_error: float | None = None
    withheld_by: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantile:
    """A quantile read off a histogram, with an interval for noise and withheld cells."""

    share: float
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnFigures:
    """What one release says about one column, in the column's own unit."""

    column: str
    figures: Mapping[Part, Figure]
    histogram: tuple[Figure, ...] = ()
    quantiles: tuple[Quantile, ...] = ()


def column_figures(
    release: ColumnStatistics, data: DataSpec, totals: Totals, *, exact: bool = False
) -> tuple[ColumnFigures, ...]:
    """The figures of every column of a release, from its totals.

    With `exact` the totals carry no noise (the sandbox's parent, its own copy): no standard errors.
    """
    deviation = 0.0 if exact else noise_deviation(release, data) * totals.noise_share
    layout, known = cells(release, data), columns_of(data)
    columns = []
    for name in release.columns:
        own: dict[Part, list[Figure]] = {}
        for cell, value, shown in zip(layout, totals.values, totals.shown, strict=True):
            if cell.column == name:
                figure = Figure(
                    value=value if shown else None,
                    standard_error=deviation * math.sqrt(shown) if shown else None,
                    withheld_by=totals.answered - shown,
                )
                own.setdefault(cell.part, []).append(figure)
        column = known[name]
        single: dict[Part, Figure] = {
            part: found[0] for part, found in own.items() if part in ("count", "missing")
        }
        histogram = tuple(own.get("histogram", ()))
        quantiles: tuple[Quantile, ...] = ()
        if isinstance(column, NumberColumn):
            single |= _moments(own, column=column, deviation=deviation)
            quantiles = _quantiles(histogram, release, column=column, deviation=deviation)
        columns.append(
            ColumnFigures(column=name, figures=single, histogram=histogram, quantiles=quantiles)
        )
    return tuple(columns)


def _moments(
    own: Mapping[Part, Sequence[Figure]], *, column: NumberColumn, deviation: float
) -> dict[Part, Figure]:
    """Mean and variance in the column's unit; standard errors by the delta method.

    On the scale from -1 to 1: mean m = S/N, variance Q/N - m^2, with independent noise of the same
    deviation in N, S and Q.
    """
    if "mean" not in own:
        return {}
    count, total = own["count"][0], own["mean"][0]
    number, error = count.value, count.standard_error or 0.0
    half, middle = (column.high - column.low) / 2, (column.high + column.low) / 2
    nothing = Figure(value=None, withheld_by=count.withheld_by)
    empty = number is None or total.value is None or number <= max(0.0, ENOUGH * error)
    if empty or number is None or total.value is None:
        return {part: nothing for part in ("mean", "variance") if part in own}
    scaled = min(max(total.value / number, -1.0), 1.0)
    noise = error / number
    figures: dict[Part, Figure] = {
        "mean": Figure(
            value=middle + half * scaled,
            standard_error=half * noise * math.sqrt(1 + scaled**2) if deviation else 0.0,
            withheld_by=count.withheld_by,
        )
    }
    if "variance" in own and (square := own["variance"][0].value) is not None:
        variance = min(max(square / number - scaled**2, 0.0), 1.0)
        # The gradient in (N, S, Q), times N.
        by_count = 2 * scaled**2 - square / number
        slope = math.sqrt(by_count**2 + (2 * scaled) ** 2 + 1)
        figures["variance"] = Figure(
            value=half**2 * variance,
            standard_error=half**2 * noise * slope if deviation else 0.0,
            withheld_by=count.withheld_by,
        )
    return figures


def _quantiles(
    histogram: Sequence[Figure],
    release: ColumnStatistics,
    *,
    column: NumberColumn,
    deviation: float,
) -> tuple[Quantile, ...]:
    """Quantiles by straight lines inside the bins. The interval covers the noise, two standard
    errors of the cumulative count, and every way in which withheld cells may be filled.
    """
    if not histogram:
        return ()
    counts: Numbers = np.array([max(f.value or 0.0, 0.0) for f in histogram])
    hidden: Numbers = np.array([f.withheld_by * release.min_cell_size for f in histogram], float)
    most = max((f.standard_error or 0.0) for f in histogram)
    if counts.sum() <= ENOUGH * most or counts.sum() <= 0:
        return ()
    edges = np.linspace(column.low, column.high, len(histogram) + 1)
    bins, found = len(histogram), []
    for share in release.quantiles:
        value = _crossing(counts, edges, share * counts.sum())
        place = int(np.clip(np.searchsorted(edges, value, side="right") - 1, 0, bins - 1))
        below, above = np.arange(bins) <= place, np.arange(bins) >= place
        doubt = (
            INTERVAL_SD
            * most
            * math.sqrt((1 - share) ** 2 * (place + 1) + share**2 * (bins - place - 1))
            if deviation
            else 0.0
        )
        lower, upper = counts + hidden * below, counts + hidden * above
        found.append(
            Quantile(
                share=share,
                value=value,
                low=min(value, _crossing(lower, edges, share * lower.sum() - doubt)),
                high=max(value, _crossing(upper, edges, share * upper.sum() + doubt)),
            )
        )
    return tuple(found)


def _crossing(counts: Numbers, edges: Numbers, level: float) -> float:
    """Where the running sum of `counts` reaches `level`, by straight lines inside the bins."""
    running = np.concatenate(([0.0], np.cumsum(counts)))
    level = min(max(level, 0.0), float(running[-1]))
    place = min(int(np.searchsorted(running, level, side="left")), len(counts)) or 1
    step = running[place] - running[place - 1]
    part = (level - running[place - 1]) / step if step > 0 else 0.0
    return float(edges[place - 1] + part * (edges[place] - edges[place - 1]))
