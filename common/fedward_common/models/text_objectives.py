"""What tags of words mean in numbers, and how entities are found in them and counted."""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from fedward_common.errors import ConfigError, ModelRefused
from fedward_common.privacy.histogram import NOWHERE
from fedward_common.study.evaluation import EvaluationRelease
from fedward_common.study.notes import EntityScores, TagLabel

Labels = npt.NDArray[np.float32]
Entity = tuple[int, int, str]
"""First word, the word after the last, type."""

NO_TAG = -1.0
"""The label of a place where no word begins."""


class TaggingObjective:
    """Outputs [records, tokens, tags]; labels [records, tokens], the number of a tag or NO_TAG."""

    def __init__(self, label: TagLabel) -> None:
        self._tags = label.tags

    def losses(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy over the words of each record, shape [records].

        Raises:
            ModelRefused: the output is not one number for each tag of each word.
        """
        expected = (*labels.shape, len(self._tags))
        if outputs.shape != expected:
            raise ModelRefused(
                f"output layer: expected one logit for each tag of each word, shape "
                f"{list(expected)}, found {list(outputs.shape)}"
            )
        labels = labels.nan_to_num(nan=NO_TAG)
        there = (labels >= 0).to(outputs.dtype)
        codes = labels.round().clamp(0, len(self._tags) - 1).to(torch.int64)
        each = functional.cross_entropy(outputs.movedim(-1, 1), codes, reduction="none")
        return (each * there).sum(dim=1) / there.sum(dim=1).clamp(min=1.0)

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """The highest chance of any entity in each record, in [0, 1]."""
        return (1.0 - torch.softmax(outputs, dim=-1)[..., 0]).amax(dim=1)

    def classes(self, labels: Labels) -> Labels:
        """No class for anybody: see `places`."""
        return np.full(len(labels), np.nan, dtype=np.float32)

    def predict(self, model: nn.Module, features: torch.Tensor) -> torch.Tensor:
        """The logits [1, words, tags] of one record."""
        logits: torch.Tensor = model(features)
        return logits

    def places(
        self, outputs: torch.Tensor, labels: Labels, release: EvaluationRelease
    ) -> npt.NDArray[np.int64]:
        """One mark for each of right, wrong and missed; nowhere where the model has no answer.

        Raises:
            ConfigError: another kind of release.
        """
        if not isinstance(release, EntityScores):
            raise ConfigError(f"releases: expected entity-scores, found {release.kind}")
        if not bool(torch.isfinite(outputs).all()):
            return np.full(release.marks, NOWHERE, dtype=np.int64)
        counts = np.minimum(self.compared(outputs[0], labels), release.bins - 1)
        return np.arange(3) * release.bins + counts

    def compared(self, outputs: torch.Tensor, labels: Labels) -> npt.NDArray[np.int64]:
        """Entities of one record [words, tags] that are right, wrong and missed; exact spans."""
        words = np.flatnonzero(labels >= 0)  # of word pieces, each word's first
        chosen = outputs[words].argmax(dim=-1).tolist()
        found = entities([self._tags[number] for number in chosen])
        true = entities([self._tags[int(number)] for number in labels[words]])
        right = len(found & true)
        return np.array([right, len(found) - right, len(true) - right], dtype=np.int64)


def entities(tags: list[str]) -> set[Entity]:
    """The entities in a row of IOB2 tags, as conlleval and seqeval count them.

    An I without its B begins an entity.
    """
    found: set[Entity] = set()
    start, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        mark, _, of = tag.partition("-")
        if kind and (mark != "I" or of != kind):
            found.add((start, place, kind))
            kind = ""
        if mark == "B" or (mark == "I" and not kind):
            start, kind = place, of
    return found


def f1_of(right: float, wrong: float, missed: float) -> float:
    """The harmonic mean of precision and recall; 0 where nothing is right."""
    total = 2.0 * right + wrong + missed
    return 2.0 * right / total if total > 0 else 0.0
