"""How well a model finds entities in the sandbox parent's own copy of notes."""

import numpy as np
import torch

from fedward_common.arrays import Tensors
from fedward_common.models.objectives import objective_of
from fedward_common.models.registry import build_model, load_tensors
from fedward_common.models.text_objectives import TaggingObjective, f1_of
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.spec import StudySpec


def entity_figures(study: StudySpec, tensors: Tensors, records: PatientRecords) -> dict[str, float]:
    """`entity_f1`, with precision and recall, of exact spans; empty for another kind of task."""
    objective = objective_of(study)
    if not isinstance(objective, TaggingObjective) or not records.patients:
        return {}
    model = build_model(study.model, records.features.shape[1]).eval()
    load_tensors(model, tensors)
    with torch.inference_mode():
        outputs = model(torch.from_numpy(records.features))
    counts = np.zeros(3)
    for one, labels in zip(outputs, records.labels, strict=True):
        counts += objective.compared(one, labels)
    right, wrong, missed = map(float, counts)
    return {
        "entity_f1": f1_of(right, wrong, missed),
        "entity_precision": right / max(right + wrong, 1.0),
        "entity_recall": right / max(right + missed, 1.0),
    }
