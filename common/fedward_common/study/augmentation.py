"""Copies of training records, set apart in ways that keep their label (De et al. 2022).

The copies of a record go into its patient's own mean gradient, before that is clipped, so they cost
no privacy. Which ways keep a label only who knows the pictures can say: an image of tissue has no
up and down, a radiograph that is turned over shows another finding.
"""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, model_validator

from fedward_common.study.registry import Extensible, Strict


class Flip(Strict):
    """Turned over, or not, with the same chance."""

    kind: Literal["flip"] = "flip"
    axis: Literal["left-right", "up-down"]


class Turn(Strict):
    """Turned about the middle by at most `degrees` each way."""

    kind: Literal["turn"] = "turn"
    degrees: float = Field(gt=0, le=180)


class Zoom(Strict):
    """Larger or smaller by at most the part `factor`."""

    kind: Literal["zoom"] = "zoom"
    factor: float = Field(gt=0, le=0.5)


class Contrast(Strict):
    """Values further from the middle of their range, or nearer, by at most the part `factor`."""

    kind: Literal["contrast"] = "contrast"
    factor: float = Field(gt=0, le=0.9)


class Brightness(Strict):
    """All values of an image more or less by at most `by` (their range is -1 to 1)."""

    kind: Literal["brightness"] = "brightness"
    by: float = Field(gt=0, le=1)


Augmentation = Annotated[Flip | Turn | Zoom | Contrast | Brightness, Field(discriminator="kind")]
MOVING: Final = (Flip, Turn, Zoom)
"""What moves pixels: for flat images with a label of the whole image."""


class Jitter(Extensible):
    """Augmentation multiplicity: `copies` of each record, each set apart by draws of its own.

    Every modality: Gaussian noise of `scale` on the encoded inputs. Images only: moved by at most
    `shift` pixels each way, edges repeated, and the list `augment`, each with a draw for each copy.
    """

    added: ClassVar[frozenset[str]] = frozenset({"shift", "augment"})

    copies: int = Field(ge=2, le=64)
    scale: float = Field(ge=0, le=1)
    shift: int = Field(default=0, ge=0, le=64)
    augment: tuple[Augmentation, ...] = Field(default=(), max_length=16, strict=False)

    @property
    def moves(self) -> bool:
        """Whether pixels change their places."""
        return bool(self.shift) or any(isinstance(one, MOVING) for one in self.augment)

    @model_validator(mode="after")
    def _sets_apart(self) -> "Jitter":
        if not self.scale and not self.shift and not self.augment:
            raise ValueError("jitter: expected scale, shift or augment, found equal copies")
        return self
