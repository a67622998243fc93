"""The imaging variants: tasks on images, and what a site's images and their table look like."""

import math
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from fedward_common.study.registry import DataSpec, Strict, TaskSpec, register
from fedward_common.study.tabular import ColumnSplit, LabelRule, Name, Split, require_hashable

MAX_INPUTS: Final = 1 << 24
MAX_LABELS: Final = 24
"""Several labels of an image are the bits of one float32, which holds 24 of them exactly."""

Weight = Annotated[float, Field(gt=0, le=1e3, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=8, le=1024)]


@register
class ImageClassification(TaskSpec):
    """Classes of a patient from images: one of two, one of several, or several labels at once.

    Which of them it is follows from the data's label. Cross-entropy, each class with its weight of
    `class_weights`, public constants (rules 6): of a binary answer no and yes; of several classes
    one each; of several labels the weight of a yes. None: 1 each.
    """

    added: ClassVar[frozenset[str]] = frozenset({"class_weights"})

    kind: Literal["image-classification"] = "image-classification"
    class_weights: tuple[Weight, ...] = Field(default=(), max_length=MAX_LABELS, strict=False)


@register
class ImageSegmentation(TaskSpec):
    """Which structure each voxel belongs to: soft Dice loss plus cross-entropy, `dice` and the rest
    of 1 as their weights (Isensee et al. 2021). The loss is each patch's own.
    """

    kind: Literal["image-segmentation"] = "image-segmentation"
    dice: float = Field(default=0.5, ge=0, le=1)


class PublicWindow(Strict):
    """One window for every image, in units after the modality transformation (Hounsfield, ...)."""

    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)

    @model_validator(mode="after")
    def _ordered(self) -> "PublicWindow":
        if not self.low < self.high:
            raise ValueError(f"expected low < high, found {self.low} and {self.high}")
        return self


class ClassLabel(Strict):
    """A column that holds one of several codes; a class's number is its place among `classes`."""

    column: Name
    classes: tuple[Name, ...] = Field(min_length=3, max_length=MAX_LABELS, strict=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        return (self.column,)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes."""
        return self.classes

    @model_validator(mode="after")
    def _once(self) -> "ClassLabel":
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: expected each once")
        return self


class SeveralLabels(Strict):
    """Columns of 0 and 1, any number of which may be 1 for a patient."""

    labels: tuple[Name, ...] = Field(min_length=2, max_length=MAX_LABELS, strict=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        return self.labels

    @property
    def names(self) -> tuple[str, ...]:
        """The labels."""
        return self.labels


def _label_kind(value: object) -> str:
    """Which kind of label images have, by its keys: the first kind of label had no `kind`."""
    keys = value if isinstance(value, dict) else ()
    if isinstance(value, SeveralLabels) or "labels" in keys:
        return "several"
    return "class" if isinstance(value, ClassLabel) or "classes" in keys else "binary"


ImageLabel = Annotated[
    Annotated[LabelRule, Tag("binary")]
    | Annotated[ClassLabel, Tag("class")]
    | Annotated[SeveralLabels, Tag("several")],
    Discriminator(_label_kind),
]


class Pictures(DataSpec):
    """Grey images (or volumes, with `depth`) of one size; who is in them stands in a table.

    Every image is scaled by itself to [-1, 1] (rules 6): by `window` where there is one, otherwise
    by its own VOI transformation or the range of its bits. `no_patient_key`: the set does not say
    whose an image is; then every image counts as a patient of its own, and the privacy unit of the
    study must be `record` (rules 10).
    """

    added: ClassVar[frozenset[str]] = frozenset({"depth"})

    depth: int = Field(default=0, ge=0, le=1024, description="slices of a volume; 0: flat images")
    height: Side
    width: Side
    patient_key: Name = "patient_id"
    no_patient_key: bool = False
    split: Split
    window: PublicWindow | None = None

    @property
    def size(self) -> tuple[int, ...]:
        """[height, width] of an image, or [depth, height, width] of a volume."""
        return (self.depth, self.height, self.width) if self.depth else (self.height, self.width)

    @property
    def input_size(self) -> int:
        """The number of inputs of a model: the pixels."""
        return math.prod(self.size)

    @property
    def _own_columns(self) -> tuple[str, ...]:
        return ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the table's columns that are read, besides the images."""
        split = (self.split.column,) if isinstance(self.split, ColumnSplit) else ()
        key = () if self.no_patient_key else (self.patient_key,)
        return (*key, *self._own_columns, *split)

    @model_validator(mode="after")
    def _fitting(self) -> "Pictures":
        if math.prod(self.size) > MAX_INPUTS:
            raise ValueError(f"expected at most {MAX_INPUTS} pixels, found {math.prod(self.size)}")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError("expected every column name once")
        require_hashable(self.split, no_patient_key=self.no_patient_key)
        return self


@register
class ImageData(Pictures):
    """Images with a label for each patient (see `Pictures`); with three `channels` in colour.

    A colour image is red, green and blue, each by the range of its bits; no grey one is taken for
    it. The inputs are channel by channel.
    """

    added: ClassVar[frozenset[str]] = Pictures.added | {"channels"}

    kind: Literal["image"] = "image"
    label: ImageLabel
    channels: Literal[1, 3] = 1

    @property
    def size(self) -> tuple[int, ...]:
        """As of `Pictures`, and of a colour image [channels, height, width]."""
        plain = (self.depth, self.height, self.width) if self.depth else (self.height, self.width)
        return (self.channels, *plain) if self.channels > 1 else plain

    @property
    def _own_columns(self) -> tuple[str, ...]:
        return (self.label.column,) if isinstance(self.label, LabelRule) else self.label.columns

    @property
    def outputs(self) -> int:
        """How many numbers a model puts out for an image."""
        return 1 if isinstance(self.label, LabelRule) else len(self.label.names)

    @model_validator(mode="after")
    def _colour_is_flat(self) -> "ImageData":
        if self.channels > 1 and (self.depth or self.window is not None):
            raise ValueError("channels: expected flat images without window in colour")
        return self


@register
class PlainImages(Pictures):
    """Images without a label: one modality of patients whose label is in another."""

    kind: Literal["plain-image"] = "plain-image"


@register
class ImageMasks(Pictures):
    """Images with a mask of the same size: 0 for background, 1 for the first of `structures`...

    A smaller image is set into the middle of `size`, of a larger one its middle is taken. Training
    sees patches of `patch`, every `stride` pixels: `dp.max_records_per_patient` of a patient's are
    drawn in a step, whatever slice or volume they are from, and all are one privacy unit. Held-out
    images are looked at whole, patch by patch (sliding window). `spacing_mm` is what a step along
    each side is taken for in distances.
    """

    added: ClassVar[frozenset[str]] = Pictures.added

    kind: Literal["image-masks"] = "image-masks"
    structures: tuple[Name, ...] = Field(min_length=1, max_length=32, strict=False)
    patch: tuple[Side, ...] = Field(min_length=2, max_length=3, strict=False)
    stride: tuple[Side, ...] = Field(min_length=2, max_length=3, strict=False)
    spacing_mm: tuple[Annotated[float, Field(gt=0, le=100)], ...] = Field(
        min_length=2, max_length=3, strict=False
    )

    @property
    def input_size(self) -> int:
        """The number of inputs of a model: the pixels of a patch."""
        return math.prod(self.patch)

    @property
    def starts(self) -> tuple[tuple[int, ...], ...]:
        """Along each side, where patches begin; the last one ends with the image."""
        return tuple(
            (*range(0, side - patch, stride), side - patch)
            for side, patch, stride in zip(self.size, self.patch, self.stride, strict=True)
        )

    @model_validator(mode="after")
    def _patches_fit(self) -> "ImageMasks":
        sides = len(self.size)
        if not len(self.patch) == len(self.stride) == len(self.spacing_mm) == sides:
            raise ValueError(f"patch, stride, spacing_mm: expected {sides} numbers each")
        if any(patch > side for patch, side in zip(self.patch, self.size, strict=True)):
            raise ValueError("patch: expected at most the size of an image")
        if any(step > patch for step, patch in zip(self.stride, self.patch, strict=True)):
            raise ValueError("stride: expected at most the patch, so that nothing is left out")
        if len(set(self.structures)) != len(self.structures):
            raise ValueError("structures: expected each once")
        return self
