"""What several classes, several labels and masks of images mean in numbers (see `objectives`)."""

import math
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from fedward_common.errors import ConfigError, ModelRefused
from fedward_common.models.whole_images import logits_of, overlaps
from fedward_common.privacy.histogram import NOWHERE
from fedward_common.study.evaluation import ClassScores, EvaluationRelease, OverlapScores
from fedward_common.study.imaging import ImageMasks, ImageSegmentation

Labels = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]

_SMOOTH = 1.0
"""Added to both sides of a Dice quotient, in pixels, so that an empty patch has a gradient."""


@runtime_checkable
class Counted(Protocol):
    """An objective whose evaluation marks more than one cell (see `EvaluationRelease`)."""

    def predict(self, model: nn.Module, features: torch.Tensor) -> torch.Tensor:
        """The model's outputs for one record, `features` [1, ...]."""
        ...

    def places(self, outputs: torch.Tensor, labels: Labels, release: EvaluationRelease) -> Places:
        """Where one record is counted, [marks]; NOWHERE for a mark that cannot be made.

        Raises:
            ConfigError: the release is not one for this task.
        """
        ...


class Targets(Protocol):
    """What differs between one class of several and several labels."""

    largest: int

    def losses(
        self, outputs: torch.Tensor, codes: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """One loss for each record from outputs [records, classes] and whole codes [records]."""
        ...

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """[records, classes] in [0, 1]."""
        ...

    def positive(self, code: int) -> list[bool]:
        """Which classes a record has."""
        ...


class OneClassTargets:
    """Softmax over classes; a code is the number of a class."""

    def __init__(self, classes: int) -> None:
        self.largest = classes - 1

    def losses(
        self, outputs: torch.Tensor, codes: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """The weighted cross-entropy of each record."""
        return functional.cross_entropy(outputs, codes, weight=weights, reduction="none")

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """Probabilities that add up to 1."""
        return torch.softmax(outputs, dim=-1)

    def positive(self, code: int) -> list[bool]:
        """True for one class."""
        return [number == code for number in range(self.largest + 1)]


class LabelTargets:
    """A logit for each label; the bits of a code are the labels."""

    def __init__(self, classes: int) -> None:
        self.largest = 2**classes - 1
        self._places = torch.arange(classes)

    def losses(
        self, outputs: torch.Tensor, codes: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """The mean over labels of their cross-entropies; a yes weighs what the study says."""
        bits = ((codes.unsqueeze(-1) >> self._places.to(codes.device)) & 1).to(outputs.dtype)
        each = functional.binary_cross_entropy_with_logits(
            outputs, bits, reduction="none", pos_weight=weights
        )
        return each.mean(dim=-1)

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """The probability of each label by itself."""
        return torch.sigmoid(outputs)

    def positive(self, code: int) -> list[bool]:
        """True for every label whose bit is set."""
        return [bool(code >> place & 1) for place in range(len(self._places))]


class ClassesObjective:
    """A logit for each class: outputs [records, classes], labels [records]; `Counted`."""

    def __init__(self, targets: Targets, *, classes: int, weights: tuple[float, ...]) -> None:
        self._classes, self._targets = classes, targets
        self._weights = torch.tensor(weights or [1.0] * classes, dtype=torch.float32)

    def losses(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of each record, shape [records].

        Raises:
            ModelRefused: the output is not one number for each class of each record.
        """
        expected = (*labels.shape, self._classes)
        if outputs.shape != expected:
            raise ModelRefused(
                f"output layer: expected one logit for each class, shape {list(expected)}, found "
                f"{list(outputs.shape)}"
            )
        # To the nearest whole number, by operations that back ends can check.
        # What is no number is class 0: as a whole number it would be any, and stop the round.
        rounded = torch.where(labels >= 0, labels + 0.5, torch.zeros_like(labels))
        codes = rounded.clamp(0, self._targets.largest).to(torch.int64)
        return self._targets.losses(outputs, codes, self._weights.to(outputs.device))

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """One score in [0, 1] for each class of each record."""
        return self._targets.scores(outputs)

    def positive(self, code: int) -> list[bool]:
        """Which classes a record with this label has."""
        return self._targets.positive(code)

    def classes(self, labels: Labels) -> Labels:
        """No binary class for anybody: see `places`."""
        return np.full_like(labels, np.nan)

    def predict(self, model: nn.Module, features: torch.Tensor) -> torch.Tensor:
        """The logits [1, classes] of one record."""
        logits: torch.Tensor = model(features)
        return logits

    def places(self, outputs: torch.Tensor, labels: Labels, release: EvaluationRelease) -> Places:
        """A mark for each class by its score, and one by the answer where one class is right.

        Raises:
            ConfigError: another kind of release.
        """
        if not isinstance(release, ClassScores) or release.classes != self._classes:
            raise ConfigError(f"releases: expected class-scores, found {release.kind}")
        scores = self._targets.scores(outputs)[0].to(torch.float64).numpy()
        if not np.isfinite(scores).all():
            return np.full(release.marks, NOWHERE, dtype=np.int64)
        code, bins = int(labels), release.bins
        found = np.minimum((scores * bins).astype(np.int64), bins - 1)
        rows = 2 * np.arange(self._classes) + np.array(self._targets.positive(code))
        places: Places = rows * bins + found
        if not release.exclusive:
            return places
        answer = (2 * self._classes + code) * bins + int(scores.argmax())
        return np.append(places, answer)


class SegmentationObjective:
    """Outputs [records, structures + 1, *patch] and labels [records, pixels]; `Counted`."""

    def __init__(self, spec: ImageSegmentation, data: ImageMasks) -> None:
        self._data, self._dice = data, spec.dice
        self._outputs = len(data.structures) + 1

    def losses(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Soft Dice loss over the structures plus cross-entropy over pixels, of each patch.

        Raises:
            ModelRefused: the output is not a logit for each structure and pixel.
        """
        expected = (len(labels), self._outputs, *self._data.patch)
        if outputs.shape != expected:
            raise ModelRefused(
                f"output layer: expected a logit for each structure and pixel, shape "
                f"{list(expected)}, found {list(outputs.shape)}"
            )
        flat = outputs.flatten(2)
        # What is no number is background: as a whole number it would be any, and stop the round.
        codes = labels.nan_to_num(nan=0.0).round().clamp(0, self._outputs - 1).to(torch.int64)
        shares = torch.log_softmax(flat, dim=1)
        entropy = functional.nll_loss(shares, codes, reduction="none").mean(dim=-1)
        found = shares[:, 1:].exp()
        structures = torch.arange(1, self._outputs, device=codes.device)
        wanted = (codes.unsqueeze(1) == structures.view(1, -1, 1)).to(found)
        both, sizes = (found * wanted).sum(-1), found.sum(-1) + wanted.sum(-1)
        dice = 1.0 - ((2.0 * both + _SMOOTH) / (sizes + _SMOOTH)).mean(dim=-1)
        return self._dice * dice + (1.0 - self._dice) * entropy

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """The probability of each structure for each pixel."""
        return torch.softmax(outputs, dim=1)

    def classes(self, labels: Labels) -> Labels:
        """No class for anybody."""
        return np.full(len(labels), np.nan, dtype=np.float32)

    def predict(self, model: nn.Module, features: torch.Tensor) -> torch.Tensor:
        """The logits [structures + 1, *size] of one whole image."""
        return logits_of(model, features, self._data)

    def places(self, outputs: torch.Tensor, labels: Labels, release: EvaluationRelease) -> Places:
        """For each structure a mark by its overlap and one by its distance; the worst at the edge.

        Raises:
            ConfigError: another kind of release.
        """
        data, bins = self._data, release.bins
        if not isinstance(release, OverlapScores) or release.structures != len(data.structures):
            raise ConfigError(f"releases: expected overlap-scores, found {release.kind}")
        found = overlaps(
            outputs.argmax(dim=0).numpy(),
            labels.reshape(data.size).astype(np.int64),
            structures=len(data.structures),
            spacing_mm=data.spacing_mm,
        )
        places = []
        for number, one in enumerate(found):
            far = 1.0 if math.isinf(one.distance_mm) else one.distance_mm / release.longest_mm
            for row, part in ((2 * number, one.dice), (2 * number + 1, far)):
                places.append(row * bins + min(int(part * bins), bins - 1))
        return np.array(places, dtype=np.int64)
