"""Federated statistics as part of a study: columns of a table, and what is released about them.

A release is one vector per site. Every patient adds to it a vector whose entries are at most 1 in
size and of which at most `ColumnStatistics.weight` are not zero; that number is the sensitivity in
L1, its root the one in L2. It follows from the study alone, so both sides compute the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from fedward_common.errors import ConfigError
from fedward_common.study.registry import DataSpec, DpSpec, ReleaseSpec, TaskSpec, register
from fedward_common.study.spec import DpSgd, Positive, StudySpec
from fedward_common.study.tabular import (
    CategoryColumn,
    Column,
    Name,
    NumberColumn,
    TabularData,
)
from fedward_common.study.variant_statistics import (
    VariantRelease,
    genotypes_of,
    variant_sums,
)

Part = Literal["count", "missing", "mean", "variance", "histogram", "sum"]
ColumnPart = Literal["count", "missing", "mean", "variance", "histogram"]
COUNTS: Final[frozenset[Part]] = frozenset({"count", "missing", "histogram"})
"""Parts in which a patient counts 1 or 0: numbers of patients, under the minimum cell size."""
NO_MODEL: Final = "none"
MAX_RELEASES: Final = 20
MAX_CELLS: Final = 4096


@register
class FederatedStatistics(TaskSpec):
    """Noised sums over the hospitals' patients; nothing is learned."""

    kind: Literal["federated-statistics"] = "federated-statistics"


@register
class Table(DataSpec):
    """One CSV table, one or more rows per patient; no label and no held-out patients."""

    kind: Literal["table"] = "table"
    patient_key: Name
    columns: tuple[Column, ...] = Field(min_length=1, max_length=4096, strict=False)
    missing_codes: tuple[str, ...] = Field(default=("", "?", "NA"), strict=False)

    @model_validator(mode="after")
    def _consistent(self) -> "Table":
        names = [self.patient_key, *(column.name for column in self.columns)]
        if len(set(names)) != len(names):
            raise ValueError("expected every column name once (patient key included)")
        return self


@register
class ReleasesOnly(DpSpec):
    """No training: the study costs what its releases cost.

    `epsilon` bounds all of them together for one patient of one site at `delta`, by the accountant
    `epsilon_is`. With `placement = "local"` each site adds the whole noise itself; distributed, the
    sites' shares add up to it in a secure sum.
    """

    kind: Literal["releases-only"] = "releases-only"
    unit: Literal["patient", "family"] = "patient"
    placement: Literal["local", "distributed"] = "local"
    epsilon: Positive
    epsilon_is: Literal["admission", "pld"] = "admission"
    delta: float = Field(gt=0, lt=0.01)


@register
class ColumnStatistics(ReleaseSpec):
    """Noised sums about some columns, as one mechanism.

    Per patient and column, all from the patient's own rows and public constants: a number is the
    mean of the patient's own readable values, each clipped to [low, high], on the scale where low
    is -1 and high is 1; a category is the patient's most frequent code. Released, with noise:

    * count: patients with a value; missing: patients without any readable value;
    * mean, variance: the sums of the scaled value and of its square (number columns);
    * histogram: patients in each of `bins` equal parts of [low, high], or with each code.
      Quantiles are read off it.

    `noise_multiplier` is the noise over the sensitivity: the standard deviation over the L2 one
    for `gaussian`, the scale over the L1 one for `discrete-laplace` (whole numbers only).
    Numbers of patients below `min_cell_size`, after the noise, stay at the site; a site refuses a
    study whose number is below its own.
    """

    kind: Literal["column-statistics"] = "column-statistics"
    columns: tuple[Name, ...] = Field(min_length=1, max_length=256, strict=False)
    statistics: tuple[ColumnPart, ...] = Field(min_length=1, max_length=5, strict=False)
    bins: int = Field(default=10, ge=2, le=64)
    quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=(0.25, 0.5, 0.75), max_length=32, strict=False
    )
    mechanism: Literal["gaussian", "discrete-laplace"] = "gaussian"
    noise_multiplier: Positive
    min_cell_size: int = Field(default=10, ge=1, le=10_000)

    @property
    def counts_weight(self) -> int:
        """At most how many numbers of patients one patient is counted in."""
        seen = ("count" in self.statistics) + ("histogram" in self.statistics)
        return len(self.columns) * max(seen, "missing" in self.statistics)

    @model_validator(mode="after")
    def _consistent(self) -> "ColumnStatistics":
        for field, values in (("columns", self.columns), ("statistics", self.statistics)):
            if len(set(values)) != len(values):
                raise ValueError(f"{field}: expected each entry once")
        asked = set(self.statistics)
        if asked & {"mean", "variance"} and "count" not in asked:
            raise ValueError("statistics: expected 'count' beside mean and variance")
        if "variance" in asked and "mean" not in asked:
            raise ValueError("statistics: expected 'mean' beside variance")
        if self.mechanism == "discrete-laplace" and not asked <= COUNTS:
            raise ValueError(
                "mechanism: expected gaussian for mean and variance; discrete-laplace is for "
                "whole numbers (count, missing, histogram)"
            )
        return self


StatisticsRelease = ColumnStatistics | VariantRelease


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One number of a release; `index` counts the cells of a histogram, or sums of genotypes."""

    column: str
    part: Part
    index: int = 0


def columns_of(data: DataSpec) -> dict[str, NumberColumn | CategoryColumn]:
    """The columns that statistics may be about, by name.

    Raises:
        ConfigError: the data are no table.
    """
    if not isinstance(data, Table | TabularData):
        raise ConfigError(f"data.kind: expected table or tabular, found {data.kind!r}")
    return {column.name: column for column in data.columns}


def cells(release: StatisticsRelease, data: DataSpec) -> tuple[Cell, ...]:
    """The numbers of a release in their order on the wire: column by column.

    A category has no mean and no variance; the rest is released for it all the same.

    Raises:
        ConfigError: a column that the data do not have, or too many numbers.
    """
    if isinstance(release, VariantRelease):
        count = variant_sums(release, data)
        return tuple(Cell(column=release.kind, part="sum", index=n) for n in range(count))
    known = columns_of(data)
    unknown = [name for name in release.columns if name not in known]
    if unknown:
        raise ConfigError(
            f"releases.columns: expected columns of data.columns, found {', '.join(unknown)}"
        )
    found = [
        Cell(column=name, part=part, index=index)
        for name in release.columns
        for part in _parts(release, known[name])
        for index in range(_size(part, release, known[name]))
    ]
    if not 0 < len(found) <= MAX_CELLS:
        raise ConfigError(
            f"releases: expected 1 to {MAX_CELLS} numbers in a release, found {len(found)}"
        )
    return tuple(found)


def weight(release: StatisticsRelease, data: DataSpec) -> int:
    """In how many numbers of the release one patient may count: its L1 sensitivity, and the square
    of its L2 sensitivity, because no single number moves by more than 1.

    Raises:
        ConfigError: as `cells`.
    """
    if isinstance(release, VariantRelease):
        variant_sums(release, data)
        return release.weight(genotypes_of(data))
    known = columns_of(data)
    cells(release, data)
    total = 0
    for name in release.columns:
        parts = _parts(release, known[name])
        # A patient either has a value or is counted as missing, never both.
        seen = sum(part != "missing" for part in parts)
        total += max(seen, "missing" in parts)
    return total


def statistics_releases(study: StudySpec) -> tuple[StatisticsRelease, ...]:
    """The releases of a statistics study, in order; the instruction's round counts them from 1.

    Raises:
        ConfigError: the study is not a whole statistics study: another task, plan, data or kind of
            release, other rounds than its releases, or a delta above what rules 9 allow.
    """
    releases = [r for r in study.releases if isinstance(r, ColumnStatistics | VariantRelease)]
    if not isinstance(study.task, FederatedStatistics) or not isinstance(study.dp, ReleasesOnly):
        raise ConfigError(
            f"study {study.id}: expected task federated-statistics with dp releases-only, found "
            f"{study.task.kind} with {study.dp.kind}"
        )
    if len(releases) != len(study.releases) or not 0 < len(releases) <= MAX_RELEASES:
        raise ConfigError(
            f"study {study.id}: expected 1 to {MAX_RELEASES} releases of kind column-statistics or "
            f"about genotypes, found {len(releases)} among {len(study.releases)}"
        )
    if (study.rounds, study.local_steps) != (len(releases), 1) or study.model.name != NO_MODEL:
        raise ConfigError(
            f"study {study.id}: expected one round of one step for each release and no model; "
            "leave rounds, local_steps and model out of the file"
        )
    check_delta(study, study.dp.delta)
    if study.dp.placement == "distributed" and not study.secure_sum:
        raise ConfigError("dp.placement: expected secure_sum = true with distributed noise")
    if study.secure_sum and any(release.mechanism != "gaussian" for release in releases):
        raise ConfigError(
            "releases.mechanism: expected gaussian with secure_sum: its noise is added to the "
            "masked sum"
        )
    for release in releases:
        cells(release, study.data)
    return tuple(releases)


def check_delta(study: StudySpec, delta: float) -> None:
    """Returns when `delta` is at most 1 / (10 N), and 1e-5 from 10,000 patients on (rules 9).

    Raises:
        ConfigError: it is larger.
    """
    people = study.public_patients
    limit = 1 / (10 * people) if people < 10_000 else 1e-5
    if delta > limit * (1 + 1e-9):
        raise ConfigError(f"dp.delta: expected at most {limit:.3g} (1 / (10 N)), found {delta}")


def is_statistics(study: StudySpec) -> bool:
    """Whether the study releases statistics and trains nothing."""
    return isinstance(study.task, FederatedStatistics)


def declared(study: StudySpec) -> DpSgd | ReleasesOnly:
    """The plan of a study whose epsilon, delta and unit are known.

    Raises:
        ConfigError: another kind of plan.
    """
    if not isinstance(study.dp, DpSgd | ReleasesOnly):
        raise ConfigError(
            f"dp.kind: expected a plan with known accounting, found {study.dp.kind!r}"
        )
    return study.dp


def _parts(release: ColumnStatistics, column: NumberColumn | CategoryColumn) -> Sequence[Part]:
    order: tuple[Part, ...] = ("count", "missing", "mean", "variance", "histogram")
    number = isinstance(column, NumberColumn)
    return [
        part
        for part in order
        if part in release.statistics and (number or part not in ("mean", "variance"))
    ]


def _size(part: Part, release: ColumnStatistics, column: NumberColumn | CategoryColumn) -> int:
    if part != "histogram":
        return 1
    return release.bins if isinstance(column, NumberColumn) else len(column.values)
