"""The imaging variants: a task on images, and what a site's images and their table look like."""

from typing import Final, Literal

from pydantic import Field, model_validator

from fedward_common.study.registry import DataSpec, Strict, TaskSpec, register
from fedward_common.study.tabular import ColumnSplit, LabelRule, Name, Split

MAX_INPUTS: Final = 1 << 20


@register
class ImageClassification(TaskSpec):
    """Binary classification of a patient from images: cross-entropy on one logit."""

    kind: Literal["image-classification"] = "image-classification"


class PublicWindow(Strict):
    """One window for every image, in units after the modality transformation (Hounsfield, ...)."""

    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)

    @model_validator(mode="after")
    def _ordered(self) -> "PublicWindow":
        if not self.low < self.high:
            raise ValueError(f"expected low < high, found {self.low} and {self.high}")
        return self


@register
class ImageData(DataSpec):
    """Grey images of one size; who is in them, label and split stand in a table beside them.

    Every image is scaled by itself to [-1, 1] (rules 6): by `window` where there is one, otherwise
    by its own VOI transformation or the range of its bits. `no_patient_key`: the set does not say
    whose an image is; then every image counts as a patient of its own, and the privacy unit of the
    study must be `record` (rules 10).
    """

    kind: Literal["image"] = "image"
    height: int = Field(ge=8, le=1024)
    width: int = Field(ge=8, le=1024)
    patient_key: Name = "patient_id"
    no_patient_key: bool = False
    label: LabelRule
    split: Split
    window: PublicWindow | None = None

    @property
    def input_size(self) -> int:
        """The number of inputs of a model: the pixels."""
        return self.height * self.width

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the table's columns that are read, besides the images."""
        split = (self.split.column,) if isinstance(self.split, ColumnSplit) else ()
        key = () if self.no_patient_key else (self.patient_key,)
        return (*key, self.label.column, *split)

    @model_validator(mode="after")
    def _consistent(self) -> "ImageData":
        if self.input_size > MAX_INPUTS:
            raise ValueError(f"expected at most {MAX_INPUTS} pixels, found {self.input_size}")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError("expected every column name once")
        return self
