"""The tabular variants: one task and one data schema."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from fedward_common.study.registry import DataSpec, Strict, TaskSpec, register

Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_. -]*$")]


@register
class TabularClassification(TaskSpec):
    """Binary classification of a patient from one table: cross-entropy on one logit."""

    kind: Literal["tabular-classification"] = "tabular-classification"


class NumberColumn(Strict):
    """A measured column.

    `low` and `high` are public clinical limits: values outside are clipped to them and the range is
    mapped to [-1, 1] (rules 6: never the site's own mean or spread).
    """

    name: Name
    type: Literal["number"] = "number"
    unit: str = Field(min_length=1, max_length=32)
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    missing_codes: tuple[str, ...] = Field(default=(), strict=False)
    fill: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _ordered(self) -> "NumberColumn":
        if not self.low < self.high:
            raise ValueError(f"expected low < high, found {self.low} and {self.high}")
        if not math.isfinite(2.0 * (self.high - self.low)):
            # The scale would overflow, and whether it does would depend on one patient's cell.
            raise ValueError("expected low and high nearer to each other")
        if self.fill is not None and not self.low <= self.fill <= self.high:
            raise ValueError(f"expected fill between low and high, found {self.fill}")
        return self


class CategoryColumn(Strict):
    """A coded column: one input per value except the first (the public reference category)."""

    name: Name
    type: Literal["category"] = "category"
    values: tuple[str, ...] = Field(min_length=2, max_length=256, strict=False)
    missing_codes: tuple[str, ...] = Field(default=(), strict=False)
    fill: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "CategoryColumn":
        if len(set(self.values)) != len(self.values):
            raise ValueError("expected each value once")
        if self.fill is not None and self.fill not in self.values:
            raise ValueError(f"expected fill to be one of the values, found {self.fill!r}")
        return self


Column = Annotated[NumberColumn | CategoryColumn, Field(discriminator="type")]


class LabelRule(Strict):
    """The label column: whole numbers low..high, positive from `positive_from` upwards."""

    column: Name
    low: int
    high: int
    positive_from: int

    @model_validator(mode="after")
    def _ordered(self) -> "LabelRule":
        if not self.low < self.positive_from <= self.high:
            raise ValueError("expected low < positive_from <= high")
        return self


class NumberLabel(Strict):
    """A measured label: [low, high] becomes [-1, 1]; what lies outside is clipped."""

    column: Name
    unit: str = Field(min_length=1, max_length=32)
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)

    @model_validator(mode="after")
    def _ordered(self) -> "NumberLabel":
        if not self.low < self.high or not math.isfinite(2.0 * (self.high - self.low)):
            raise ValueError(f"expected low < high, found {self.low} and {self.high}")
        return self


class TimeLabel(Strict):
    """Two columns: days followed, and whether the event came then (1) or not (0).

    As a number: the days, negative where there was no event.
    """

    column: Name
    event_column: Name
    longest_days: float = Field(gt=0, le=40_000)


def _label_kind(value: object) -> str:
    """Which kind of label a table is, by its keys: the first kind of label had no `kind`."""
    keys = value if isinstance(value, dict) else ()
    if isinstance(value, TimeLabel) or "event_column" in keys:
        return "time"
    return "number" if isinstance(value, NumberLabel) or "unit" in keys else "class"


Label = Annotated[
    Annotated[LabelRule, Tag("class")]
    | Annotated[NumberLabel, Tag("number")]
    | Annotated[TimeLabel, Tag("time")],
    Discriminator(_label_kind),
]


class ColumnSplit(Strict):
    """Held-out patients are marked in the data: the column says `train` or `test`."""

    kind: Literal["column"] = "column"
    column: Name


class HashSplit(Strict):
    """A patient is held out when SHA-256(salt, patient id), as a fraction, is below `held_out`.

    Removing one patient never moves another between the sets (rules 6).
    """

    kind: Literal["hash"] = "hash"
    salt: str = Field(min_length=1, max_length=64)
    held_out: float = Field(gt=0, lt=1)


Split = Annotated[ColumnSplit | HashSplit, Field(discriminator="kind")]


def require_hashable(split: object, *, no_patient_key: bool) -> None:
    """Returns when a split by hash has a patient's id to hash.

    Without one the row's number would be hashed, and a patient who is removed would move others
    between the parts (rules 6).

    Raises:
        ValueError: it has none.
    """
    if no_patient_key and isinstance(split, HashSplit):
        raise ValueError(
            "split: expected another than hash where no patient has an id to be hashed"
        )


@register
class TabularData(DataSpec):
    """One CSV table, one or more rows per patient.

    Without a label nothing is learned from it alone: it is a modality of patients whose label is in
    another. `unlabelled = "keep"`: training patients without a label are records as well, for a
    study with `[training.pseudo_labels]`.
    """

    added: ClassVar[frozenset[str]] = frozenset({"label", "unlabelled"})

    kind: Literal["tabular"] = "tabular"
    patient_key: Name
    columns: tuple[Column, ...] = Field(min_length=1, max_length=4096, strict=False)
    label: Label | None = None
    split: Split
    missing: Literal["drop", "fill"] = "drop"
    missing_codes: tuple[str, ...] = Field(default=("", "?", "NA"), strict=False)
    unlabelled: Literal["drop", "keep"] = "drop"

    @property
    def input_size(self) -> int:
        """The number of inputs of a model: 1 per number column, len(values) - 1 per category."""
        return sum(1 if isinstance(c, NumberColumn) else len(c.values) - 1 for c in self.columns)

    @model_validator(mode="after")
    def _consistent(self) -> "TabularData":
        if self.unlabelled == "keep" and not isinstance(self.label, LabelRule):
            raise ValueError("unlabelled = 'keep': expected a label of two classes, found another")
        reserved = [self.patient_key]
        if self.label is not None:
            reserved.append(self.label.column)
        if isinstance(self.label, TimeLabel):
            reserved.append(self.label.event_column)
        if isinstance(self.split, ColumnSplit):
            reserved.append(self.split.column)
        names = [c.name for c in self.columns] + reserved
        if len(set(names)) != len(names):
            raise ValueError("expected every column name once (patient key, label, split included)")
        if self.missing == "fill":
            for column in self.columns:
                if column.fill is None:
                    raise ValueError(
                        f"missing = 'fill': expected a public fill value for {column.name!r}"
                    )
        return self
