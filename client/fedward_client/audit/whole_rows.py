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
_FAMILY: Final = 2
"""Patients of a family."""


def whole_patients(
    data: MultimodalData, made: Mapping[str, Sequence[Sequence[OwnRow]]]
) -> list[list[ModalityRow]]:
    """Whole patients out of each modality's own, `made`; they come round again.

    With families each unit is a family of two, but for those without genotypes: who is not in the
    table of people has no family there.
    """
    most = max(len(patients) for patients in made.values())
    names = islice(training_names(data.split), most)
    return [_unit(data, made, number, name) for number, name in enumerate(names)]


def _unit(
    data: MultimodalData,
    made: Mapping[str, Sequence[Sequence[OwnRow]]],
    number: int,
    name: str,
) -> list[ModalityRow]:
    """The rows of the privacy unit `name`: of one patient, or of the members of one family."""
    there = [
        modality
        for place, modality in enumerate(made)
        if modality == data.label_from or number % _EVERY != place % _EVERY
    ]
    members = [f"{name}-{member}" for member in range(_FAMILY)]
    return [
        ModalityRow(modality=modality, row=_named(data, modality, row, patient, family=name))
        for member, patient in enumerate(members if data.kin_from in there else [name])
        for modality in there
        for row in made[modality][(number + member) % len(made[modality])]
    ]


def _named(
    data: MultimodalData, modality: str, row: OwnRow, patient: str, *, family: str
) -> OwnRow:
    """The row as one of `patient`, whose sample is nobody else's."""
    part = data.parts[modality]
    cells = {getattr(part, "patient_key", "patient_id"): patient}
    if isinstance(part, Genotypes):
        sample = cells_of(row)[part.sample_key]
        cells[part.sample_key] = f"{patient}-{sample}" if sample else ""
        if part.family_key is not None:
            cells[part.family_key] = family
    return with_cells(row, cells)
