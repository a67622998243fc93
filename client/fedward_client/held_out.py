"""How a site's held-out patients are counted under a model, for the study's one evaluation.

The counts are exact and private: the caller adds the release's noise, here or in the guard.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedward_client.tasks.registry import task_of
from fedward_client.training.weights import load_weights, record_scores
from fedward_common.arrays import Tensors
from fedward_common.errors import ProtocolError
from fedward_common.models.image_objectives import Counted, Places
from fedward_common.models.registry import build_model
from fedward_common.privacy.histogram import (
    NOWHERE,
    Counts,
    Int64Array,
    binned_counts,
    binned_units,
    tallied,
    tallied_units,
)
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.evaluation import BinnedScores, EvaluationRelease, evaluation_of
from fedward_common.study.grouped_scores import (
    GroupedScores,
    ValueScores,
    grouped_places,
    value_places,
)
from fedward_common.study.spec import StudySpec


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeldOut:
    """The held-out records of one site and the model that is evaluated on them."""

    study: StudySpec
    weights: Tensors
    records: PatientRecords

    def counts(self) -> Counts:
        """The exact counts [rows, bins] of the study's evaluation.

        Raises:
            ProtocolError: the study has no evaluation, or `weights` are not its model's.
            ConfigError: the task has no such evaluation.
        """
        release = self._release()
        if isinstance(release, BinnedScores):
            return binned_counts(*self._scored(), bins=release.bins)
        places = self._places(release)
        return tallied(places, self.records.patient, rows=release.rows, bins=release.bins)

    def units(self, *, scale: float) -> Int64Array:
        """The same in whole units of 1 / `scale`, rounded down. Raises: as `counts`."""
        release = self._release()
        if isinstance(release, BinnedScores):
            return binned_units(*self._scored(), bins=release.bins, scale=scale)
        return tallied_units(
            self._places(release),
            self.records.patient,
            rows=release.rows,
            bins=release.bins,
            scale=scale,
        )

    def _release(self) -> EvaluationRelease:
        release = evaluation_of(self.study)
        if release is None:
            raise ProtocolError("evaluation: expected the study to release one, found none")
        return release

    def _scored(
        self,
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Scores, classes and patients of the records that have a class."""
        classes = task_of(self.study).classes(self.records.labels)
        counted = np.isfinite(classes)
        scores = record_scores(self.study, self.weights, self.records.features[counted])
        return scores, classes[counted], self.records.patient[counted]

    def _places(self, release: EvaluationRelease) -> Places:
        """Each record by itself, in a fresh tensor: its bits do not depend on the others."""
        if isinstance(release, GroupedScores | ValueScores):
            return self._by_score(release)
        task = task_of(self.study)
        if not isinstance(task, Counted):
            raise ProtocolError(f"evaluation: expected one for {self.study.task.kind}")
        model = build_model(self.study.model, task.inputs).eval()
        load_weights(model, self.weights)
        places = np.zeros((len(self.records.labels), release.marks), dtype=np.int64)
        with torch.inference_mode():
            for number, (row, label) in enumerate(
                zip(self.records.features, self.records.labels, strict=True)
            ):
                outputs = task.predict(model, torch.tensor(row[None]))
                places[number] = task.places(outputs, np.asarray(label), release)
        return places

    def _by_score(self, release: GroupedScores | ValueScores) -> Places:
        """The places of records that only their score, label and inputs decide."""
        scores = record_scores(self.study, self.weights, self.records.features)
        if isinstance(release, ValueScores):
            return value_places(release, scores=scores, labels=self.records.labels, nowhere=NOWHERE)
        return grouped_places(
            self.study.data,
            release,
            scores=scores,
            classes=task_of(self.study).classes(self.records.labels),
            features=self.records.features,
            nowhere=NOWHERE,
        )
