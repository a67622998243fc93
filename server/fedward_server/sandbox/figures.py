"""Exact figures of a model on the parent's own copy of the held-out patients.

They leave no hospital: the sandbox's parent made the tables itself. A real federation has none.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import accuracy_score, roc_auc_score, roc_curve

from fedward_common.arrays import Tensors
from fedward_common.ids import SiteId
from fedward_common.models.registry import build_model
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.spec import StudySpec
from fedward_server.sandbox.baselines import pool

SMALLEST_CLASS: Final = 10
THRESHOLD: Final = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class ExactFigures:
    """The figures on one set of held-out patients.

    `auc` is None where a class has fewer than 10 patients: a curve through one negative patient is
    no curve. `majority` is the accuracy of always saying the larger class. `accuracy_error` is the
    standard error of the accuracy from the number of patients alone.
    """

    held_out: int
    auc: float | None
    accuracy: float
    majority: float
    accuracy_error: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFigures:
    """Pooled over all held-out patients, per hospital, and the plain means over hospitals."""

    pooled: ExactFigures
    per_site: dict[SiteId, ExactFigures]
    site_mean_accuracy: float
    site_mean_majority: float
    site_mean_accuracy_error: float


def model_figures(
    study: StudySpec, tensors: Tensors, held_out: Mapping[SiteId, PatientRecords]
) -> ModelFigures:
    """The exact figures of the study's model with weights `tensors`.

    A hospital without a held-out patient has no figures.
    """
    tables = {site: records for site, records in held_out.items() if records.patients}
    per_site = {
        site: exact_figures(scores(study, tensors, records), records)
        for site, records in tables.items()
    }
    everyone = pool(list(tables.values()))
    sites = list(per_site.values())
    return ModelFigures(
        pooled=exact_figures(scores(study, tensors, everyone), everyone),
        per_site=per_site,
        site_mean_accuracy=float(np.mean([site.accuracy for site in sites])),
        site_mean_majority=float(np.mean([site.majority for site in sites])),
        # Hospitals are independent, so the variances of their accuracies add up.
        site_mean_accuracy_error=math.hypot(*(site.accuracy_error for site in sites)) / len(sites),
    )


def scores(study: StudySpec, tensors: Tensors, records: PatientRecords) -> npt.NDArray[np.float64]:
    """The predicted probability of the positive class of every record."""
    model = build_model(study.model, records.features.shape[1]).eval()
    model.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()})
    with torch.inference_mode():
        probabilities = torch.sigmoid(model(torch.from_numpy(records.features)))
    return probabilities.numpy().astype(np.float64)


def exact_figures(predicted: npt.NDArray[np.float64], records: PatientRecords) -> ExactFigures:
    """The figures of these scores; every patient counts once, however many records there are."""
    weights = _weights(records)
    positive = float(weights[records.labels == 1].sum())
    patients = records.patients
    smaller = min(positive, patients - positive)
    accuracy = float(accuracy_score(records.labels, predicted > THRESHOLD, sample_weight=weights))
    auc = None
    if round(smaller) >= SMALLEST_CLASS:
        auc = float(roc_auc_score(records.labels, predicted, sample_weight=weights))
    return ExactFigures(
        held_out=patients,
        auc=auc,
        accuracy=accuracy,
        majority=1.0 - smaller / patients,
        accuracy_error=math.sqrt(accuracy * (1.0 - accuracy) / patients),
    )


def roc_points(
    study: StudySpec, tensors: Tensors, held_out: Mapping[SiteId, PatientRecords]
) -> tuple[tuple[float, float], ...]:
    """The pooled ROC curve: (false positive rate, true positive rate); empty where AUC is None."""
    everyone = pool([records for records in held_out.values() if records.patients])
    predicted = scores(study, tensors, everyone)
    if exact_figures(predicted, everyone).auc is None:
        return ()
    false, true, _ = roc_curve(everyone.labels, predicted, sample_weight=_weights(everyone))
    return tuple(zip(false.tolist(), true.tolist(), strict=True))


def _weights(records: PatientRecords) -> npt.NDArray[np.float64]:
    """1 / (records of the patient) for each record."""
    _, position, size = np.unique(records.patient, return_inverse=True, return_counts=True)
    weights: npt.NDArray[np.float64] = (1.0 / size)[position]
    return weights
