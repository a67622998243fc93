"""What studies have in common whose records stand in rows: whose they are, label and split."""

from typing import Annotated, Final, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from fedward_common.study.imaging import ClassLabel
from fedward_common.study.registry import DataSpec, Strict
from fedward_common.study.tabular import (
    ColumnSplit,
    HashSplit,
    LabelRule,
    Name,
    NumberLabel,
    TimeLabel,
    require_hashable,
)

MOST_ANSWERS: Final = 24


class SeveralAnswers(Strict):
    """Columns of 0 and 1, such as assays of a molecule; an empty cell was not measured.

    What was not measured has no part in the loss and is not counted in an evaluation.
    """

    answers: tuple[Name, ...] = Field(min_length=2, max_length=MOST_ANSWERS, strict=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The answers."""
        return self.answers

    @model_validator(mode="after")
    def _once(self) -> "SeveralAnswers":
        if len(set(self.answers)) != len(self.answers):
            raise ValueError("answers: expected each once")
        return self


class ScaffoldSplit(Strict):
    """Rows whose molecules have one Murcko scaffold (Bemis and Murcko 1996) stay on one side.

    Held out when SHA-256(salt, scaffold), as a fraction, is below `held_out`.
    """

    kind: Literal["scaffold"] = "scaffold"
    salt: str = Field(min_length=1, max_length=64)
    held_out: float = Field(gt=0, lt=1)


RowSplit = Annotated[ColumnSplit | HashSplit | ScaffoldSplit, Field(discriminator="kind")]
RowLabel = LabelRule | ClassLabel | SeveralAnswers | NumberLabel | TimeLabel


def _label_kind(value: object) -> str:
    """Which kind of label a row has, by its keys, as of tables and images."""
    if isinstance(value, dict):
        keys = {"classes": "class", "answers": "several", "event_column": "time", "unit": "number"}
        return next((kind for key, kind in keys.items() if key in value), "binary")
    kinds: dict[type[object], str] = {
        ClassLabel: "class",
        SeveralAnswers: "several",
        TimeLabel: "time",
        NumberLabel: "number",
    }
    return kinds.get(type(value), "binary")


AnyRowLabel = Annotated[
    Annotated[LabelRule, Tag("binary")]
    | Annotated[ClassLabel, Tag("class")]
    | Annotated[SeveralAnswers, Tag("several")]
    | Annotated[NumberLabel, Tag("number")]
    | Annotated[TimeLabel, Tag("time")],
    Discriminator(_label_kind),
]


class LabelledRows(DataSpec):
    """Rows of a table, each with a label and something that becomes numbers by itself.

    `no_patient_key`: the set does not say whose a row is, or a row is nobody's (a molecule); then
    every row counts as a patient of its own and the unit is `record` (rules 10).
    """

    patient_key: Name = "patient_id"
    no_patient_key: bool = False
    label: AnyRowLabel | None
    split: RowSplit

    @property
    def input_size(self) -> int:
        """The number of inputs of a model."""
        raise NotImplementedError

    @property
    def what(self) -> Literal["sequences", "molecules", "profiles", "drug-targets"]:
        """What the rows are, in words, for errors."""
        raise NotImplementedError

    @property
    def own_columns(self) -> tuple[str, ...]:
        """The columns that become inputs."""
        raise NotImplementedError

    @property
    def own_labels(self) -> tuple[type[object], ...]:
        """The kinds of label that fit."""
        raise NotImplementedError

    @property
    def outputs(self) -> int:
        """How many numbers a model puts out for a record, whatever the task."""
        return len(self.names) or 1

    @property
    def names(self) -> tuple[str, ...]:
        """The classes or answers; none of a label that is one number."""
        return self.label.names if isinstance(self.label, ClassLabel | SeveralAnswers) else ()

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns that the label is in; none where there is none."""
        if self.label is None:
            return ()
        if isinstance(self.label, SeveralAnswers):
            return self.label.answers
        event = (self.label.event_column,) if isinstance(self.label, TimeLabel) else ()
        return (self.label.column, *event)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the table's columns that are read."""
        split = (self.split.column,) if isinstance(self.split, ColumnSplit) else ()
        key = () if self.no_patient_key else (self.patient_key,)
        return (*key, *self.own_columns, *self.label_columns, *split)

    @model_validator(mode="after")
    def _fitting(self) -> "LabelledRows":
        if len(set(self.columns)) != len(self.columns):
            raise ValueError("expected every column name once")
        require_hashable(self.split, no_patient_key=self.no_patient_key)
        if isinstance(self.split, ScaffoldSplit) and self.what not in ("molecules", "drug-targets"):
            raise ValueError("split: expected scaffold where there are molecules alone")
        if not isinstance(self.label, self.own_labels):
            raise ValueError(f"label: expected one that {self.what} can have, found another kind")
        return self
