"""The sandbox parent's own copy of a site's notes, and how well entities are found in them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch

from fedward_common.arrays import Tensors
from fedward_common.errors import DataError
from fedward_common.ids import SiteId
from fedward_common.models.objectives import objective_of
from fedward_common.models.registry import build_model, load_tensors
from fedward_common.models.text_objectives import TaggingObjective, f1_of
from fedward_common.notes.encoding import encode_notes
from fedward_common.notes.tokens import read_vocabulary
from fedward_common.study.encoding import PatientRecords, TablePart
from fedward_common.study.notes import NotesData
from fedward_common.study.spec import StudySpec

Rows = Sequence[Mapping[str, str]]

VOCABULARY: Final = "vocabulary.txt"
"""Beside patients.csv, where the study has word pieces."""


def read_notes(
    schema: NotesData, site: SiteId, path: Path, rows: Rows, part: TablePart
) -> PatientRecords:
    """The records of a site's notes as the site encodes them. Raises DataError naming the site."""
    absent = [name for name in schema.columns if rows and name not in rows[0]]
    if absent:
        raise DataError(f"{site}: expected the columns {', '.join(absent)} in {path.name}")
    try:
        vocabulary = read_vocabulary(schema.tokeniser, path.with_name(VOCABULARY))
        return encode_notes(schema, rows, part=part, vocabulary=vocabulary, strict=True)
    except DataError as error:
        raise DataError(f"{site}: {error}") from error


def all_notes(
    schema: NotesData, files: Mapping[SiteId, Path], tables: Mapping[SiteId, Rows], part: TablePart
) -> dict[SiteId, PatientRecords]:
    """`read_notes` of every site."""
    return {
        site: read_notes(schema, site, files[site], rows, part) for site, rows in tables.items()
    }


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
