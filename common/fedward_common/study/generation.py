"""The variants about made-up records that look like real ones: generative adversarial networks."""

import math
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, model_validator

from fedward_common.errors import ConfigError
from fedward_common.study.imaging import ImageData, SeveralLabels
from fedward_common.study.registry import DataSpec, TaskSpec, register
from fedward_common.study.tabular import LabelRule

GENERATOR: Final = "generator."
"""How the names of a generator's tensors begin."""
GAN: Final = "gan"
MAX_CLASSES: Final = 24

Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


@register
class Generation(TaskSpec):
    """A generator of records, and a discriminator that tells them from real ones.

    Of a table without a label, or of flat grey images. `class_shares`, of images: one share for
    each class of their label, which sum to 1, a public constant of the study (rules 6); an image is
    then judged and generated as one of its class. None: the label is read and not learned.

    Hospitals train the discriminator alone: of each record the cross-entropy of calling it real,
    and of calling a record made up that was generated from numbers drawn for it (Goodfellow et al.
    2014). After every round the coordinator moves the generator, `generator_steps` steps of Adam
    at `generator_rate` on `generator_batch` made-up records, against the discriminator that was
    released to it; it sees no patient, and what it does costs no epsilon (Torkzadehmahani et al.
    2019; Xie et al. 2018).
    """

    added: ClassVar[frozenset[str]] = frozenset({"class_shares"})

    kind: Literal["generation"] = "generation"
    generator_rate: float = Field(default=0.001, gt=0, le=1)
    generator_steps: int = Field(default=1, ge=1, le=100)
    generator_batch: int = Field(default=256, ge=1, le=65_536)
    class_shares: tuple[Share, ...] = Field(default=(), max_length=MAX_CLASSES, strict=False)

    @model_validator(mode="after")
    def _shares_of_a_whole(self) -> "Generation":
        if self.class_shares and not math.isclose(sum(self.class_shares), 1.0, abs_tol=1e-6):
            raise ValueError(
                f"class_shares: expected shares that sum to 1, found {sum(self.class_shares):.6g}"
            )
        return self


def class_names(data: ImageData) -> tuple[str, ...]:
    """The classes that a generated image may be of, in the order of their numbers.

    Raises:
        ConfigError: several labels may hold of an image at once.
    """
    label = data.label
    if isinstance(label, SeveralLabels):
        raise ConfigError(
            "task.class_shares: expected a label of one class for each image, found several labels"
        )
    if isinstance(label, LabelRule):
        return (
            f"{label.column} < {label.positive_from}",
            f"{label.column} >= {label.positive_from}",
        )
    return label.names


def check_class_shares(task: TaskSpec, data: DataSpec) -> None:
    """Returns when a generator of classes has a share for each class of its images.

    Raises:
        ConfigError: shares of a table, where a category column is what it is, or another number.
    """
    if not isinstance(task, Generation) or not task.class_shares:
        return
    if not isinstance(data, ImageData):
        raise ConfigError(
            "task.class_shares: expected none of a table, whose outcome is one of its columns, "
            "found some"
        )
    expected = len(class_names(data))
    if len(task.class_shares) != expected:
        raise ConfigError(
            f"task.class_shares: expected {expected}, one for each class of the label, found "
            f"{len(task.class_shares)}"
        )
