"""Made-up whole patients of a study of several modalities, for the audit.

Each modality's own made-up patients under common names, each modality missing of some.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final

from fedward_client.audit.source_rows import (
    ModalityRow,
    OwnRow,
    cells_of,
    training_names,
    with_cells,
)
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.multimodal import MultimodalData

_EVERY: Final = 4
"""Of so many patients one lacks a modality; not the one with the label."""


def whole_patients(
    data: MultimodalData, made: Mapping[str, Sequence[Sequence[OwnRow]]]
) -> list[list[ModalityRow]]:
    """Whole patients out of each modality's own, `made`; they come round again."""
    most = max(len(patients) for patients in made.values())
    return [
        [
            ModalityRow(modality=modality, row=_named(data, modality, row, name))
            for place, (modality, patients) in enumerate(made.items())
            if modality == data.label_from or number % _EVERY != place % _EVERY
            for row in patients[number % len(patients)]
        ]
        for number, name in enumerate(islice(training_names(data.split), most))
    ]


def _named(data: MultimodalData, modality: str, row: OwnRow, name: str) -> OwnRow:
    """The row as one of the patient `name`, whose sample is nobody else's."""
    part = data.parts[modality]
    cells = {getattr(part, "patient_key", "patient_id"): name}
    if isinstance(part, Genotypes):
        sample = cells_of(row)[part.sample_key]
        cells[part.sample_key] = f"{name}-{sample}" if sample else ""
    return with_cells(row, cells)
