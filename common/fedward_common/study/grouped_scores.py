"""Evaluations that a clinician reads: scores by class within groups of patients, and of values.

Groups are told by the model's own inputs, so that a site needs to know nothing besides them.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from fedward_common.errors import ConfigError
from fedward_common.study.clinical import Age, ClinicalData, Measured, Present, Sex
from fedward_common.study.evaluation import EvaluationRelease
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.registry import DataSpec, Strict, register
from fedward_common.study.tabular import CategoryColumn, Name, NumberColumn, TabularData

Cut = Annotated[float, Field(allow_inf_nan=False)]
Group = Annotated[str, Field(min_length=1, max_length=64)]
GroupPlaces = npt.NDArray[np.int64]
"""One group's number per record; -1 where the record is in none."""

MAX_GROUPS: Final = 24


class Grouping(Strict):
    """Patients by one feature or column of the study: bands of a number, or the values of a code.

    `cuts` make bands: below the first, from the first up to the second, and so on. `values` names
    the codes of a category in the study's order, or `female` and `male`, or `absent` and `present`.
    """

    by: Name
    cuts: tuple[Cut, ...] = Field(default=(), max_length=11, strict=False)
    values: tuple[Group, ...] = Field(default=(), max_length=12, strict=False)

    @model_validator(mode="after")
    def _one_of_them(self) -> "Grouping":
        if bool(self.cuts) == bool(self.values):
            raise ValueError("expected either cuts or values")
        if list(self.cuts) != sorted(set(self.cuts)):
            raise ValueError("cuts: expected numbers in order, each once")
        if len(set(self.values)) != len(self.values) or len(self.values) == 1:
            raise ValueError("values: expected at least two, each once")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The groups in words."""
        if self.values:
            return self.values
        edges = [f"{cut:g}" for cut in self.cuts]
        between = [f"{low} to {high}" for low, high in pairwise(edges)]
        return (f"below {edges[0]}", *between, f"{edges[-1]} and above")


@register
class GroupedScores(EvaluationRelease):
    """Evaluation of a binary model, once, for everybody and for groups of patients.

    Rows 0 and 1 as in `BinnedScores`; then two rows for each group of each grouping. `threshold`:
    from which score on the model says yes, where figures need one.
    """

    kind: Literal["grouped-scores"] = "grouped-scores"
    groupings: tuple[Grouping, ...] = Field(min_length=1, max_length=6, strict=False)
    threshold: float = Field(default=0.5, gt=0, lt=1)

    @property
    def rows(self) -> int:
        """Two for everybody, and two for each group."""
        return 2 + 2 * sum(len(grouping.names) for grouping in self.groupings)

    @property
    def marks(self) -> int:
        """Everybody once, and once in each grouping."""
        return 1 + len(self.groupings)

    @property
    def counted(self) -> str:
        """What is counted, in words for a hospital."""
        names = ", ".join(grouping.by for grouping in self.groupings)
        return (
            f"held-out patients per class in {self.bins} score bins, for everybody and for groups "
            f"by {names}"
        )

    @model_validator(mode="after")
    def _few_enough(self) -> "GroupedScores":
        if len({grouping.by for grouping in self.groupings}) != len(self.groupings):
            raise ValueError("groupings: expected every feature once")
        if self.rows > 2 * (1 + MAX_GROUPS):
            raise ValueError(f"groupings: expected at most {MAX_GROUPS} groups in all")
        return self


@register
class ValueScores(EvaluationRelease):
    """Evaluation of a regression, once: row r, bin b: held-out patients whose value is in the r-th
    and whose prediction is in the b-th of `bins` equal parts of the label's range.
    """

    kind: Literal["value-scores"] = "value-scores"

    @property
    def rows(self) -> int:
        """As many as bins."""
        return self.bins

    @property
    def counted(self) -> str:
        """What is counted, in words for a hospital."""
        return f"held-out patients by measured and by predicted value, in {self.bins} parts each"


def check_groupings(data: DataSpec, release: GroupedScores) -> None:
    """Returns when every grouping can be told from the inputs of a study's data.

    Raises:
        ConfigError: a feature that the study does not have, or with other groups.
    """
    for grouping in release.groupings:
        _teller(data, grouping)


def group_places(
    data: DataSpec, grouping: Grouping, features: npt.NDArray[np.float32]
) -> GroupPlaces:
    """The group of each record; -1 for a record that is in none (an unknown sex, for one).

    A missing value that the study fills counts as the fill value.

    Raises:
        ConfigError: as `check_groupings`.
    """
    return _teller(data, grouping)(features)


_Teller = Callable[[npt.NDArray[np.float32]], GroupPlaces]


def _teller(data: DataSpec, grouping: Grouping) -> _Teller:
    if isinstance(data, MultimodalData):
        return _of_modality(data, grouping)
    place = 0
    if isinstance(data, TabularData):
        for column in data.columns:
            width = 1 if isinstance(column, NumberColumn) else len(column.values) - 1
            if column.name == grouping.by:
                return _of_column(column, grouping, place)
            place += width
    if isinstance(data, ClinicalData):
        for feature in data.static:
            if feature.name == grouping.by:
                return _of_feature(feature, grouping, place)
            place += feature.width
    raise ConfigError(
        f"releases.groupings: expected a column or a feature that is one number, found "
        f"{grouping.by!r}"
    )


def _of_modality(data: MultimodalData, grouping: Grouping) -> _Teller:
    """By the first modality that has the column or feature; who lacks the modality is in none."""
    start = len(data.parts)
    for number, part in enumerate(data.parts.values()):
        inputs = slice(start, start + part.input_size)
        start = inputs.stop
        names = [column.name for column in part.columns] if isinstance(part, TabularData) else []
        names += [feature.name for feature in part.static] if isinstance(part, ClinicalData) else []
        if grouping.by in names:
            return _where_present(_teller(part, grouping), place=number, inputs=inputs)
    raise ConfigError(
        f"releases.groupings: expected a column or a feature of a modality, found {grouping.by!r}"
    )


def _where_present(tell: _Teller, *, place: int, inputs: slice) -> _Teller:
    def there(features: npt.NDArray[np.float32]) -> GroupPlaces:
        return np.where(features[:, place] > 0.5, tell(features[:, inputs]), -1).astype(np.int64)

    return there


def _of_column(column: NumberColumn | CategoryColumn, grouping: Grouping, place: int) -> _Teller:
    if isinstance(column, NumberColumn):
        _require(bool(grouping.cuts), grouping, "cuts for a number")
        return _bands(grouping, place, low=column.low, high=column.high)
    _require(grouping.values == column.values, grouping, "the values of the column, in its order")
    others = len(column.values) - 1

    def tell(features: npt.NDArray[np.float32]) -> GroupPlaces:
        marked = features[:, place : place + others] > 0.5
        return np.where(marked.any(axis=1), marked.argmax(axis=1) + 1, 0).astype(np.int64)

    return tell


def _of_feature(feature: Measured | Present | Age | Sex, grouping: Grouping, place: int) -> _Teller:
    match feature:
        case Sex():
            _require(grouping.values == ("female", "male"), grouping, "values female and male")

            def tell(features: npt.NDArray[np.float32]) -> GroupPlaces:
                both = features[:, place : place + 2] > 0.5
                return np.where(both.any(axis=1), both.argmax(axis=1), -1).astype(np.int64)

            return tell
        case Present():
            _require(grouping.values == ("absent", "present"), grouping, "absent and present")
            return lambda features: (features[:, place] > 0.5).astype(np.int64)
        case _:
            _require(bool(grouping.cuts), grouping, "cuts for a number")
            bands = _bands(grouping, place, low=feature.low, high=feature.high)
            if feature.missing != "indicator":
                return bands
            return lambda features: np.where(features[:, place + 1] > 0.5, -1, bands(features))


def _bands(grouping: Grouping, place: int, *, low: float, high: float) -> _Teller:
    if not all(low < cut < high for cut in grouping.cuts):
        raise ConfigError(
            f"releases.groupings: expected cuts of {grouping.by!r} between {low:g} and {high:g}"
        )
    # In float32 as the inputs are: a value that is a cut then has exactly its number.
    edges = np.array(
        [2.0 * (cut - low) / (high - low) - 1.0 for cut in grouping.cuts], dtype=np.float32
    )
    return lambda features: np.searchsorted(edges, features[:, place], side="right").astype(
        np.int64
    )


def _require(holds: bool, grouping: Grouping, expected: str) -> None:
    if not holds:
        raise ConfigError(f"releases.groupings: expected {expected} by {grouping.by!r}")


def grouped_places(
    data: DataSpec,
    release: GroupedScores,
    *,
    scores: npt.NDArray[np.floating],
    classes: npt.NDArray[np.floating],
    features: npt.NDArray[np.float32],
    nowhere: int,
) -> GroupPlaces:
    """The cells [records, marks] of records with these scores in [0, 1] and classes 0, 1 or NaN."""
    counted = np.isfinite(classes) & np.isfinite(scores)
    label = np.where(counted, classes, 0).astype(np.int64)
    part = np.minimum(np.where(counted, scores, 0.0) * release.bins, release.bins - 1)
    within = part.astype(np.int64)
    places = np.full((len(scores), release.marks), nowhere, dtype=np.int64)
    places[:, 0] = np.where(counted, label * release.bins + within, nowhere)
    row = 2
    for mark, grouping in enumerate(release.groupings, start=1):
        group = group_places(data, grouping, features)
        cell = (row + 2 * group + label) * release.bins + within
        places[:, mark] = np.where(counted & (group >= 0), cell, nowhere)
        row += 2 * len(grouping.names)
    return places


def value_places(
    release: ValueScores,
    *,
    scores: npt.NDArray[np.floating],
    labels: npt.NDArray[np.floating],
    nowhere: int,
) -> GroupPlaces:
    """The cells [records, 1] of records with these predictions in [0, 1] and labels in [-1, 1]."""
    counted = np.isfinite(scores) & np.isfinite(labels)
    true = np.clip((np.where(counted, labels, 0.0) + 1.0) / 2.0, 0.0, 1.0)
    row, place = (
        np.minimum(part * release.bins, release.bins - 1).astype(np.int64)
        for part in (true, np.where(counted, scores, 0.0))
    )
    return np.where(counted, row * release.bins + place, nowhere)[:, None]
