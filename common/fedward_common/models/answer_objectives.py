"""What several answers of which some were not measured mean in numbers (see `objectives`)."""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from fedward_common.errors import ConfigError, ModelRefused
from fedward_common.privacy.histogram import NOWHERE
from fedward_common.study.evaluation import ClassScores, EvaluationRelease

Labels = npt.NDArray[np.float32]


class AnswersObjective:
    """A logit for each answer: outputs and labels [records, answers]; a label below 0 is none.

    A record's loss is the sum of the cross-entropies of what was measured, over the number of
    answers: it is the record's own whatever others have.
    """

    def __init__(self, answers: int, weights: tuple[float, ...] = ()) -> None:
        self._answers = answers
        self._weights = torch.tensor(weights or [1.0] * answers, dtype=torch.float32)

    def losses(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of each record, shape [records]; 0 where nothing was measured.

        Raises:
            ModelRefused: the output is not one logit for each answer of each record.
        """
        expected = (len(labels), self._answers)
        if outputs.shape != expected or labels.shape != expected:
            raise ModelRefused(
                f"output layer: expected one logit for each answer, shape {list(expected)}, found "
                f"{list(outputs.shape)}"
            )
        there = (labels > -0.5).to(outputs.dtype)
        each = functional.binary_cross_entropy_with_logits(
            outputs,
            labels.clamp(0.0, 1.0),
            reduction="none",
            pos_weight=self._weights.to(outputs),
        )
        return (each * there).sum(dim=-1) / self._answers

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """The probability of each answer by itself."""
        return torch.sigmoid(outputs)

    def classes(self, labels: Labels) -> Labels:
        """No one class for anybody: see `places`."""
        return np.full(len(labels), np.nan, dtype=np.float32)

    def predict(self, model: nn.Module, features: torch.Tensor) -> torch.Tensor:
        """The logits [1, answers] of one record."""
        logits: torch.Tensor = model(features)
        return logits

    def places(
        self, outputs: torch.Tensor, labels: Labels, release: EvaluationRelease
    ) -> npt.NDArray[np.int64]:
        """A mark for each answer by its score; nowhere where it was not measured.

        Raises:
            ConfigError: another kind of release.
        """
        if not isinstance(release, ClassScores) or (release.classes, release.exclusive) != (
            self._answers,
            False,
        ):
            raise ConfigError(f"releases: expected class-scores, found {release.kind}")
        scores = torch.sigmoid(outputs)[0].to(torch.float64).numpy()
        if not np.isfinite(scores).all():
            return np.full(release.marks, NOWHERE, dtype=np.int64)
        bins = release.bins
        found = np.minimum((scores * bins).astype(np.int64), bins - 1)
        rows = 2 * np.arange(self._answers) + (labels > 0.5)
        return np.where(labels > -0.5, rows * bins + found, NOWHERE).astype(np.int64)
