"""Exact figures on the parent's own copy: classes, labels and answers; structures of images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from fedward_common.arrays import Tensors
from fedward_common.models.answer_objectives import AnswersObjective
from fedward_common.models.image_objectives import ClassesObjective, Counted
from fedward_common.models.objectives import objective_of
from fedward_common.models.registry import build_model, load_tensors
from fedward_common.models.whole_images import overlaps
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.generation import Generation
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.imaging import ClassLabel, ImageData, ImageMasks, Pictures
from fedward_common.study.inputs import input_size
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.notes import NotesData, RelationLabel
from fedward_common.study.spec import StudySpec
from fedward_server.relation_figures import relation_f1
from fedward_server.sandbox.measures import (
    SMALLEST_CLASS,
    Numbers,
    bootstrap_weights,
    class_measures,
    intervals,
    mean_measure,
)

Classed = ImageData | LabelledRows | Genotypes | MultimodalData | NotesData
"""Data whose label has classes, or may have."""
BATCH: Final = 256


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judged:
    """What a model made of each record: scores [records, classes] of classes and labels, or
    [records, 3 * structures] of masks: Dice, IoU and 95 % Hausdorff distance in mm.
    """

    found: Numbers
    labels: npt.NDArray[np.float32]
    patient: npt.NDArray[np.int64]


def judge(study: StudySpec, tensors: Tensors, records: PatientRecords) -> Judged:
    """`records` under the study's model with weights `tensors`."""
    model = build_model(study.model, input_size(study.data)).eval()
    load_tensors(model, tensors)
    objective, data = objective_of(study), study.data
    rows: list[Numbers] = []
    with torch.inference_mode():
        if isinstance(data, ImageMasks) and isinstance(objective, Counted):
            for features, label in zip(records.features, records.labels, strict=True):
                logits = objective.predict(model, torch.from_numpy(features[None]))
                rows.append(_overlap_row(data, logits.argmax(dim=0).numpy(), label))
            width = 3 * len(data.structures)
        else:
            for start in range(0, len(records.labels), BATCH):
                batch = torch.from_numpy(records.features[start : start + BATCH])
                scored = objective.scores(model(batch)).numpy().astype(np.float64)
                rows.append(scored.reshape(len(batch), -1))
            width = data.outputs if isinstance(data, Classed) else 1
    found = np.concatenate([np.zeros((0, width)), *rows])
    labels = np.zeros(len(found), np.float32) if isinstance(data, ImageMasks) else records.labels
    return Judged(found=found, labels=labels, patient=records.patient)


def together(parts: list[Judged]) -> Judged:
    """The records of several hospitals; patients stay apart."""
    starts = np.cumsum([0, *(int(p.patient[-1]) + 1 if len(p.patient) else 0 for p in parts)])
    return Judged(
        found=np.concatenate([part.found for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        patient=np.concatenate([p.patient + s for p, s in zip(parts, starts, strict=False)]),
    )


def measures(study: StudySpec, judged: Judged, *, draws: int) -> dict[str, Numbers]:
    """Every figure [1 + draws] of what was judged, by name; none where patients are too few."""
    weights = bootstrap_weights(judged.patient, draws=draws)
    data = study.data
    if isinstance(data, ImageMasks):
        return _overlap_measures(data, judged, weights)
    if not isinstance(data, Classed):
        return {}
    positive = positives(study, judged.labels)
    names = getattr(data.label, "names", ("",))
    measured = is_measured(judged.labels, answers=len(names))
    each = [
        class_measures(
            judged.found[measured[:, k], k], positive[measured[:, k], k], weights[:, measured[:, k]]
        )
        for k in range(len(names))
    ]
    if names == ("",):
        return each[0]
    named = {
        f"{figure}: {name}": rows
        for name, found in zip(names, each, strict=True)
        for figure, rows in found.items()
    }
    macro = {
        figure: np.mean([found[figure] for found in each], axis=0)
        for figure in (each[0] if all(each) else ())
    }
    right = (
        judged.found.argmax(axis=1) == judged.labels
        if isinstance(data.label, ClassLabel | RelationLabel)
        else np.average((judged.found > 0.5) == positive, axis=1, weights=_shares(measured))
    )
    own = _relations(judged, weights) if isinstance(data.label, RelationLabel) else {}
    return {"accuracy": mean_measure(right.astype(np.float64), weights), **own, **macro, **named}


def _relations(judged: Judged, weights: Numbers) -> dict[str, Numbers]:
    """F1 over relations; empty where fewer than 10 patients have one."""
    classes = judged.found.shape[1]
    true, said = judged.labels.astype(np.int64), judged.found.argmax(axis=1)
    if weights[0, true > 0].sum() < SMALLEST_CLASS:
        return {}
    cells = np.zeros((len(true), classes * classes))
    cells[np.arange(len(true)), true * classes + said] = 1.0
    return relation_f1((weights @ cells).reshape(-1, classes, classes))


def positives(study: StudySpec, labels: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Which classes each record has, [records, classes]."""
    objective = objective_of(study)
    if isinstance(objective, AnswersObjective):
        return labels > 0.5
    if isinstance(objective, ClassesObjective):
        return np.array([objective.positive(int(code)) for code in labels], dtype=bool).reshape(
            len(labels), -1
        )
    return (labels > 0.5)[:, None]


def is_measured(labels: npt.NDArray[np.float32], *, answers: int) -> npt.NDArray[np.bool_]:
    """Which answers each record has, [records, answers]: all, unless a label below 0 says none."""
    if labels.ndim == 1:
        return np.ones((len(labels), answers), dtype=bool)
    return labels > -0.5


def _shares(measured: npt.NDArray[np.bool_]) -> Numbers:
    """The weight of each answer of a record; equal ones where nothing was measured."""
    return np.where(measured.any(axis=1, keepdims=True), measured, True).astype(np.float64)


def image_intervals(study: StudySpec, judged: Judged, *, draws: int) -> Mapping[str, object]:
    """The bootstrap interval of each figure of what was judged."""
    return intervals(measures(study, judged, draws=draws))


def is_judged_here(study: StudySpec) -> bool:
    """Whether figures of the study's model come from this module."""
    data = study.data
    named = isinstance(data, LabelledRows | NotesData) and bool(data.names)
    several = isinstance(data, Genotypes | MultimodalData) and isinstance(data.label, ClassLabel)
    learned = not isinstance(study.task, Generation)
    return learned and (isinstance(data, Pictures) or named or several)


def _overlap_row(data: ImageMasks, found: npt.NDArray[np.int64], label: Numbers) -> Numbers:
    pairs = overlaps(
        found,
        label.reshape(data.size).astype(np.int64),
        structures=len(data.structures),
        spacing_mm=data.spacing_mm,
    )
    return np.array([[x for one in pairs for x in (one.dice, one.iou, one.distance_mm)]])


def _overlap_measures(data: ImageMasks, judged: Judged, weights: Numbers) -> dict[str, Numbers]:
    named = {}
    for number, structure in enumerate(data.structures):
        for place, figure in enumerate(("dice", "iou", "hausdorff95_mm")):
            rows = mean_measure(judged.found[:, 3 * number + place], weights)
            named[f"{figure}: {structure}"] = rows
    means = {
        figure: np.mean([named[f"{figure}: {one}"] for one in data.structures], axis=0)
        for figure in ("dice", "iou")
    }
    return means | named
