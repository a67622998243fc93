"""Evaluations of the final model: how held-out patients are counted, and what that costs."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from fedward_common.study.registry import ReleaseSpec, Strict, register

if TYPE_CHECKING:
    from fedward_common.study.spec import StudySpec


class EarlyStopping(Strict):
    """When training ends before its last round: held-out patients get no better scores.

    After every `every` rounds, `validations` times, the model is counted as the final one is: each
    time a release of its own, with noise of its own. Training ends when the best AUC so far, by
    those counts, was not beaten by more than `least_gain` for `patience` validations. The model is
    then the last one. Every validation is reserved, whether it comes to it or not, and the study
    costs what all its rounds cost: a stop that depends on data is no saving (rules 4, 7).
    """

    every: int = Field(ge=1, le=100_000)
    validations: int = Field(ge=1, le=1000)
    patience: int = Field(ge=1, le=1000)
    least_gain: float = Field(default=0.0, ge=0, lt=1)

    @property
    def rounds(self) -> tuple[int, ...]:
        """After which rounds the model is validated."""
        return tuple(self.every * number for number in range(1, self.validations + 1))

    def stops(self, aucs: Sequence[float | None]) -> bool:
        """Whether training ends after these validations; None where one says nothing."""
        best, since = -math.inf, 0
        for auc in aucs:
            if auc is None:
                continue
            if auc > best + self.least_gain:
                best, since = auc, 0
            else:
                since += 1
        return since >= self.patience


class EvaluationRelease(ReleaseSpec):
    """Counts [rows, bins] of held-out patients under the final model, with Gaussian noise: once,
    unless the study stops early (`BinnedScores`).

    A patient marks `marks` cells with a weight of 1 each, an equal share by every record, each mark
    in rows of its own: adding or removing a patient moves the counts by at most sqrt(marks) in L2.
    `noise_multiplier` is relative to that. Later kinds derive from this and say rows and marks.
    """

    bins: int = Field(ge=2, le=20)
    noise_multiplier: float = Field(gt=0, allow_inf_nan=False)

    @property
    def stopping(self) -> EarlyStopping | None:
        """How training ends early; None where it does not."""
        return None

    @property
    def times(self) -> int:
        """How often it is released at most: declared, and reserved as a whole."""
        return 1 + (0 if self.stopping is None else self.stopping.validations)

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
    """Evaluation of a binary model, once, and as often before as `early_stopping` says.

    Per class, how many held-out patients score in each of `bins` equal parts of [0, 1], plus
    Gaussian noise of `noise_multiplier` (L2 sensitivity 1).
    """

    added: ClassVar[frozenset[str]] = frozenset({"early_stopping"})

    kind: Literal["binned-scores"] = "binned-scores"
    early_stopping: EarlyStopping | None = None

    @property
    def stopping(self) -> EarlyStopping | None:
        """As the study says."""
        return self.early_stopping


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


def validation_rounds(study: "StudySpec") -> tuple[int, ...]:
    """After which rounds the study validates its model; none where it does not stop early."""
    release = evaluation_of(study)
    stopping = None if release is None else release.stopping
    return () if stopping is None else stopping.rounds


def evaluation_of(study: "StudySpec") -> EvaluationRelease | None:
    """The study's evaluation; None where it has none."""
    return next((r for r in study.releases if isinstance(r, EvaluationRelease)), None)
