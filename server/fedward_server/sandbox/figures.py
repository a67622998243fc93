"""Exact figures of a model on the parent's own copy of the held-out patients.

They leave no hospital: the sandbox's parent made the tables itself. A real federation has none.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import accuracy_score, roc_auc_score, roc_curve

from fedward_common.arrays import Tensors
from fedward_common.ids import SiteId
from fedward_common.models.objectives import objective_of
from fedward_common.models.reconstruction_objective import FARTHEST
from fedward_common.models.registry import build_model, load_tensors
from fedward_common.study.drug_target import DrugTarget
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.generation import Generation
from fedward_common.study.imaging import ImageMasks, SeveralLabels
from fedward_common.study.labelled_rows import SeveralAnswers
from fedward_common.study.reconstruction import Autoencoder
from fedward_common.study.spec import StudySpec
from fedward_common.study.survival import Survival
from fedward_common.study.tasks import is_regression, value_range
from fedward_server.sandbox.baselines import pool
from fedward_server.sandbox.entities import entity_figures
from fedward_server.sandbox.image_figures import (
    Judged,
    is_judged_here,
    is_measured,
    judge,
    measures,
    positives,
    together,
)
from fedward_server.sandbox.made_up_rows import tested_on_real, told_apart
from fedward_server.sandbox.measures import bootstrap_weights, intervals

SMALLEST_CLASS: Final = 10
THRESHOLD: Final = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class ExactFigures:
    """The figures on one set of held-out patients.

    `auc` is None where a class has fewer than 10 patients: a curve through one negative patient is
    no curve. `majority` is the accuracy of always saying the larger class. `accuracy_error` is the
    standard error of the accuracy from the number of patients alone. All of these are None where
    nobody has a class (regression). `more` are the figures that only this kind of task has.
    """

    held_out: int
    auc: float | None
    accuracy: float | None
    majority: float | None
    accuracy_error: float | None
    more: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFigures:
    """Pooled over all held-out patients, per hospital, and the plain means over hospitals."""

    pooled: ExactFigures
    per_site: dict[SiteId, ExactFigures]
    site_mean_accuracy: float | None
    site_mean_majority: float | None
    site_mean_accuracy_error: float | None


def model_figures(
    study: StudySpec,
    tensors: Tensors,
    held_out: Mapping[SiteId, PatientRecords],
    *,
    draws: int = 0,
) -> ModelFigures:
    """The exact figures of the study's model with weights `tensors`.

    A hospital without a held-out patient has no figures. With `draws` the pooled figures of images
    have bootstrap intervals.
    """
    tables = {site: records for site, records in held_out.items() if records.patients}
    judged = {}
    if is_judged_here(study):
        judged = {site: judge(study, tensors, records) for site, records in tables.items()}
        per_site = {site: judged_figures(study, found) for site, found in judged.items()}
    else:
        per_site = {site: task_figures(study, tensors, records) for site, records in tables.items()}
    sites = list(per_site.values())
    accuracies, majorities, errors = (
        [value for site in sites if (value := getattr(site, name)) is not None]
        for name in ("accuracy", "majority", "accuracy_error")
    )
    return ModelFigures(
        pooled=(
            judged_figures(study, together(list(judged.values())), draws=draws)
            if judged
            else task_figures(study, tensors, _pooled(tables))
        ),
        per_site=per_site,
        site_mean_accuracy=float(np.mean(accuracies)) if accuracies else None,
        site_mean_majority=float(np.mean(majorities)) if majorities else None,
        # Hospitals are independent, so the variances of their accuracies add up.
        site_mean_accuracy_error=math.hypot(*errors) / len(errors) if errors else None,
    )


def judged_figures(study: StudySpec, judged: Judged, *, draws: int = 0) -> ExactFigures:
    """The exact figures of what a model of images made of records."""
    found = measures(study, judged, draws=draws)
    own = {name: float(rows[0]) for name, rows in found.items() if np.isfinite(rows[0])}
    held_out = len(np.unique(judged.patient))
    positive = positives(study, judged.labels)
    more = {name: value for name, value in own.items() if name not in ("auc", "accuracy")}
    if isinstance(study.data, ImageMasks):
        return ExactFigures(
            held_out=held_out,
            auc=None,
            accuracy=None,
            majority=None,
            accuracy_error=None,
            more=more,
            intervals=intervals(found),
        )
    weights = bootstrap_weights(judged.patient, draws=0)[0]
    if positive.shape[1] == 1:
        answers = (judged.found[:, 0] > THRESHOLD) == positive[:, 0]
        own["accuracy"] = float(np.average(answers, weights=weights))
    measured = weights[:, None] * is_measured(judged.labels, answers=positive.shape[1])
    shares = (positive * measured).sum(axis=0) / np.maximum(measured.sum(axis=0), 1.0)
    label = getattr(study.data, "label", None)
    several = isinstance(label, SeveralLabels | SeveralAnswers)
    majority = float(
        np.maximum(shares, 1.0 - shares).mean() if several or len(shares) == 1 else shares.max()
    )
    accuracy = own["accuracy"]
    return ExactFigures(
        held_out=held_out,
        auc=own.get("auc"),
        accuracy=accuracy,
        majority=majority,
        accuracy_error=math.sqrt(accuracy * (1.0 - accuracy) / held_out),
        more=more,
        intervals=intervals(found),
    )


def task_figures(study: StudySpec, tensors: Tensors, records: PatientRecords) -> ExactFigures:
    """The exact figures on `records`: by class where the task has classes, and the task's own."""
    predicted = scores(study, tensors, records)
    classes = objective_of(study).classes(records.labels)
    counted = np.isfinite(classes)
    more = own_figures(study, predicted, records) | entity_figures(study, tensors, records)
    if isinstance(study.task, Generation) and records.patients >= SMALLEST_CLASS:
        more |= told_apart(study, tensors, records) | tested_on_real(study, tensors, records)
    if not counted.any():
        return ExactFigures(
            held_out=records.patients,
            auc=None,
            accuracy=None,
            majority=None,
            accuracy_error=None,
            more=more,
        )
    found = exact_figures(predicted[counted], _classed(records, classes, counted))
    return replace(found, held_out=records.patients, more=more)


def own_figures(
    study: StudySpec, predicted: npt.NDArray[np.float64], records: PatientRecords
) -> dict[str, float]:
    """What only this kind of task has, by name; empty below 10 patients.

    Survival: `c_index` of the chance of the event by the horizon. Regression, in the label's unit:
    `rmse`, `mae`, and `r2`; of affinities also `pearson` and `c_index`. Autoencoder:
    `reconstruction_error`, the mean over patients of the root mean square over inputs, and
    `explained`, the part of the variance about the patients' own mean.
    """
    if records.patients < SMALLEST_CLASS:
        return {}
    if isinstance(study.task, Survival):
        concordant, comparable = concordance(predicted, records.labels)
        return {"c_index": concordant / comparable} if comparable else {}
    if isinstance(study.task, Autoencoder):
        return _reconstruction(predicted, records)
    if not is_regression(study):
        return {}
    low, high = value_range(study.data)
    weights = _weights(records)
    true, guess = (low + part * (high - low) for part in ((records.labels + 1.0) / 2.0, predicted))
    squared = float(np.average((guess - true) ** 2, weights=weights))
    mean = np.average(true, weights=weights)
    variance = float(np.average((true - mean) ** 2, weights=weights))
    figures = {
        "rmse": math.sqrt(squared),
        "mae": float(np.average(np.abs(guess - true), weights=weights)),
    }
    figures |= {"r2": 1.0 - squared / variance} if variance > 0 else {}
    if isinstance(study.task, DrugTarget):
        figures |= _affinity(predicted, records.labels, weights=weights)
    return figures


def _affinity(
    predicted: npt.NDArray[np.float64],
    labels: npt.NDArray[np.float32],
    *,
    weights: npt.NDArray[np.float64],
) -> dict[str, float]:
    """Whether stronger affinities are predicted as stronger: `pearson`, and `c_index` of pairs of
    records (Gonen and Heller 2005); each where it means something.
    """
    moments = np.cov(predicted, labels, aweights=weights)
    spread = math.sqrt(moments[0, 0] * moments[1, 1])
    found = {"pearson": float(moments[0, 1]) / spread} if spread > 0 else {}
    # As times to an event that everybody had, of which a lower risk should be a longer one.
    concordant, comparable = concordance(-predicted, labels + 2.0)
    return found | ({"c_index": concordant / comparable} if comparable else {})


def _reconstruction(
    predicted: npt.NDArray[np.float64], records: PatientRecords
) -> dict[str, float]:
    weights, error = _weights(records), FARTHEST * predicted
    features = records.features.astype(np.float64)
    mean = np.average(features, axis=0, weights=weights)
    about = np.average(((features - mean) ** 2).mean(axis=1), weights=weights)
    found = {"reconstruction_error": float(np.average(error, weights=weights))}
    squared = float(np.average(error**2, weights=weights))
    return found | ({"explained": 1.0 - squared / float(about)} if about > 0 else {})


def concordance(
    risk: npt.NDArray[np.float64], labels: npt.NDArray[np.float32]
) -> tuple[float, float]:
    """(concordant, comparable) pairs, ties of the risk as half a pair (Harrell 1982).

    `labels`: days, negative where censored. A pair is comparable where the earlier one had the
    event; of equal times, where exactly one had it.
    """
    days, event = np.abs(labels), labels > 0
    earlier = event[:, None] & (
        (days[:, None] < days[None, :]) | ((days[:, None] == days[None, :]) & ~event[None, :])
    )
    higher, equal = risk[:, None] > risk[None, :], risk[:, None] == risk[None, :]
    return float((earlier & higher).sum() + 0.5 * (earlier & equal).sum()), float(earlier.sum())


def _classed(
    records: PatientRecords, classes: npt.NDArray[np.float32], counted: npt.NDArray[np.bool_]
) -> PatientRecords:
    """The records that have a class, with it as their label."""
    _, patient = np.unique(records.patient[counted], return_inverse=True)
    return PatientRecords(
        features=records.features[counted],
        labels=classes[counted],
        patient=patient.astype(np.int64),
    )


def _pooled(tables: Mapping[SiteId, PatientRecords]) -> PatientRecords:
    return pool(list(tables.values()))


def scores(study: StudySpec, tensors: Tensors, records: PatientRecords) -> npt.NDArray[np.float64]:
    """The score in [0, 1] of every record: of a class, the chance of the positive one."""
    model = build_model(study.model, records.features.shape[1]).eval()
    load_tensors(model, tensors)
    with torch.inference_mode():
        found = objective_of(study).scores(model(torch.from_numpy(records.features)))
    return found.numpy().astype(np.float64)


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
    if objective_has_no_classes(study):
        return ()
    everyone = pool([records for records in held_out.values() if records.patients])
    predicted = scores(study, tensors, everyone)
    classes = objective_of(study).classes(everyone.labels)
    counted = np.isfinite(classes)
    predicted, everyone = predicted[counted], _classed(everyone, classes, counted)
    if not counted.any() or exact_figures(predicted, everyone).auc is None:
        return ()
    false, true, _ = roc_curve(everyone.labels, predicted, sample_weight=_weights(everyone))
    return tuple(zip(false.tolist(), true.tolist(), strict=True))


def objective_has_no_classes(study: StudySpec) -> bool:
    """Whether a record of the study is not simply positive or negative."""
    return bool(np.isnan(objective_of(study).classes(np.ones(1, np.float32))).all())


def _weights(records: PatientRecords) -> npt.NDArray[np.float64]:
    """1 / (records of the patient) for each record."""
    _, position, size = np.unique(records.patient, return_inverse=True, return_counts=True)
    weights: npt.NDArray[np.float64] = (1.0 / size)[position]
    return weights
