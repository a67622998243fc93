"""Evaluations of the final model: how held-out patients are counted, and what that costs."""

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from fedward_common.study.registry import ReleaseSpec, register

if TYPE_CHECKING:
    from fedward_common.study.spec import StudySpec


class EvaluationRelease(ReleaseSpec):
    """Counts [rows, bins] of held-out patients under the final model, once, with Gaussian noise.

    A patient marks `marks` cells with a weight of 1 each, an equal share by every record, each mark
    in rows of its own: adding or removing a patient moves the counts by at most sqrt(marks) in L2.
    `noise_multiplier` is relative to that. Later kinds derive from this and say rows and marks.
    """

    bins: int = Field(ge=2, le=20)
    noise_multiplier: float = Field(gt=0, allow_inf_nan=False)

    @property
    def rows(self) -> int:
        """How many rows of bins there are."""
        return 2

    @property
    def marks(self) -> int:
        """How many cells a record marks."""
        return 1

    @property
    def sensitivity(self) -> float:
        """The L2 norm of one patient's part in the counts, at most."""
        return math.sqrt(self.marks)

    @property
    def noise_std(self) -> float:
        """The standard deviation of the noise on each count of one site."""
        return self.noise_multiplier * self.sensitivity

    @property
    def counted(self) -> str:
        """What is counted, in words for a hospital."""
        return f"held-out patients per class in {self.bins} score bins"


@register
class BinnedScores(EvaluationRelease):
    """Evaluation of a binary model, once.

    Per class, how many held-out patients score in each of `bins` equal parts of [0, 1], plus
    Gaussian noise of `noise_multiplier` (L2 sensitivity 1).
    """

    kind: Literal["binned-scores"] = "binned-scores"


@register
class ClassScores(EvaluationRelease):
    """Evaluation of a model with several classes (exactly one is right) or several labels.

    For each class: held-out patients without and with it, by score, as in `BinnedScores`; rows
    2 c and 2 c + 1. With `exclusive`, one row more for each class: its patients by what the model
    says (the class with the highest score), in bin 0 for class 0 and so on.
    """

    kind: Literal["class-scores"] = "class-scores"
    classes: int = Field(ge=2, le=24)
    exclusive: bool

    @property
    def rows(self) -> int:
        """Two for each class, and one of the answers where exactly one class is right."""
        return (3 if self.exclusive else 2) * self.classes

    @property
    def marks(self) -> int:
        """One score for each class, and one answer."""
        return self.classes + self.exclusive

    @property
    def counted(self) -> str:
        """What is counted, in words for a hospital."""
        answers = ", and what the model says of them" if self.exclusive else ""
        return (
            f"held-out patients with and without each of {self.classes} classes in {self.bins} "
            f"score bins{answers}"
        )

    @model_validator(mode="after")
    def _fitting(self) -> "ClassScores":
        if self.exclusive and self.classes > self.bins:
            raise ValueError(f"bins: expected at least one for each of {self.classes} classes")
        return self


@register
class OverlapScores(EvaluationRelease):
    """Evaluation of a segmentation: for each structure, held-out patients by overlap and distance.

    Row 2 s: patients by Dice coefficient in equal parts of [0, 1]; row 2 s + 1: by the 95th
    percentile of the Hausdorff distance, in equal parts of [0, `longest_mm`].
    """

    kind: Literal["overlap-scores"] = "overlap-scores"
    structures: int = Field(ge=1, le=32)
    longest_mm: float = Field(gt=0, le=1000)

    @property
    def rows(self) -> int:
        """Two for each structure."""
        return 2 * self.structures

    @property
    def marks(self) -> int:
        """Overlap and distance of each structure."""
        return 2 * self.structures

    @property
    def counted(self) -> str:
        """What is counted, in words for a hospital."""
        return (
            f"held-out patients by overlap and by surface distance of {self.structures} "
            f"structure(s) in {self.bins} bins"
        )


def evaluation_of(study: "StudySpec") -> EvaluationRelease | None:
    """The study's evaluation; None where it has none."""
    return next((r for r in study.releases if isinstance(r, EvaluationRelease)), None)
