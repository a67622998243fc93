"""What an autoencoder is trained and judged by (see `objectives`)."""

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from fedward_common.errors import ConfigError, ModelRefused
from fedward_common.privacy.histogram import NOWHERE
from fedward_common.study.evaluation import EvaluationRelease
from fedward_common.study.inputs import input_size, inputs_of
from fedward_common.study.reconstruction import Autoencoder, ErrorScores
from fedward_common.study.spec import StudySpec

FARTHEST: Final = 2.0
"""The largest error of an input on its scale from -1 to 1; scores are parts of it."""


def value_logits(made: torch.Tensor) -> torch.Tensor:
    """The logits of all values of a category, its reference first, from those of the others."""
    return torch.cat([torch.zeros_like(made[:, :1]), made], dim=1)


class ReconstructionObjective:
    """Outputs [records, 2 inputs + 2 latent] as `models/autoencoder` gives them.

    Labels say nothing. The loss is one of the record alone: it stands in the outputs beside what
    was made of it.
    """

    def __init__(self, study: StudySpec) -> None:
        if not isinstance(study.task, Autoencoder):
            raise ConfigError(f"task.kind: expected autoencoder, found {study.task.kind!r}")
        self._task, self._latent = study.task, study.model.sampled
        self._size, self._kinds = input_size(study.data), inputs_of(study.data)
        self._numbers = torch.zeros(self._size)
        self._numbers[list(self._kinds.numbers)] = 1.0

    def losses(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The negative evidence lower bound of each record over its inputs, shape [records]; of a
        plain autoencoder half the squared error and the cross-entropies.

        Raises:
            ModelRefused: outputs of another shape.
        """
        self._check(outputs, records=len(labels))
        made, record, mean, log_variance = self._parts(outputs)
        spread = self._task.spread if self._latent else 1.0
        squared = (made - record).square() * self._numbers.to(outputs)
        total = squared.sum(dim=1) / (2.0 * spread**2)
        for first, end in self._kinds.categories:
            there = _shares(record[:, first:end])
            chances = functional.log_softmax(value_logits(made[:, first:end]), dim=1)
            total = total - (there * chances).sum(dim=1)
        if self._latent:
            divergence = mean.square() + log_variance.exp() - 1.0 - log_variance
            total = total + self._task.beta * 0.5 * divergence.sum(dim=1)
        return total / self._size

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """The root mean square error of each record over its inputs as a part of 2, in [0, 1]."""
        made, record, _, _ = self._parts(outputs)
        guess = made.clone()
        for first, end in self._kinds.categories:
            guess[:, first:end] = torch.softmax(value_logits(made[:, first:end]), dim=1)[:, 1:]
        error = (guess - record).square().mean(dim=1).sqrt()
        return (error / FARTHEST).clamp(0.0, 1.0)

    def classes(self, labels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """No class for anybody."""
        return np.full(len(labels), np.nan, dtype=np.float32)

    def predict(self, model: nn.Module, features: torch.Tensor) -> torch.Tensor:
        """The outputs of one record."""
        outputs: torch.Tensor = model(features)
        return outputs

    def places(
        self, outputs: torch.Tensor, labels: npt.NDArray[np.float32], release: EvaluationRelease
    ) -> npt.NDArray[np.int64]:
        """One mark by the error of the reconstruction; nowhere where it is no number.

        Raises:
            ConfigError: another kind of release.
        """
        del labels
        if not isinstance(release, ErrorScores):
            raise ConfigError(f"releases: expected error-scores, found {release.kind}")
        error = FARTHEST * float(self.scores(outputs)[0])
        if not np.isfinite(error):
            return np.full(1, NOWHERE, dtype=np.int64)
        place = min(int(error / release.largest * release.bins), release.bins - 1)
        return np.full(1, place, dtype=np.int64)

    def _parts(self, outputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes = [self._size, self._size, self._latent, self._latent]
        return torch.split(outputs, sizes, dim=1)

    def _check(self, outputs: torch.Tensor, *, records: int) -> None:
        expected = (records, 2 * self._size + 2 * self._latent)
        if outputs.shape != expected:
            raise ModelRefused(
                "output layer: expected what an autoencoder of the study puts out, shape "
                f"{list(expected)}, found {list(outputs.shape)}"
            )


def _shares(record: torch.Tensor) -> torch.Tensor:
    """1 for the value that a record has and 0 for the others, the reference first."""
    return torch.cat([1.0 - record.sum(dim=1, keepdim=True), record], dim=1)
