"""Made-up whole patients of a study of several modalities, for the audit.

Each modality's own made-up patients under common names, each modality missing of some; modalities
of a kind that is not audited are missing of everybody.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Final

from fedward_common.errors import ConfigError
from fedward_common.study.clinical import ClinicalData
from fedward_common.study.encoding import Row, hash_part
from fedward_common.study.image_encoding import ImageRow
from fedward_common.study.imaging import Pictures
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.tabular import TabularData

AUDITED: Final = (TabularData, ClinicalData, Pictures)
"""Kinds of modality that the audit makes up."""
_EVERY: Final = 4
"""Of so many patients one lacks a modality; not the one with the label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModalityRow:
    """A row of one modality."""

    modality: str
    row: Row | ImageRow


def whole_patients(
    data: MultimodalData, made: Mapping[str, Sequence[Sequence[Row | ImageRow]]]
) -> list[list[ModalityRow]]:
    """Whole patients out of each modality's own, `made`; they come round again.

    Raises:
        ConfigError: the modality with the label is of a kind that is not audited.
    """
    if data.label_from not in made:
        raise ConfigError(
            "audit: expected a label in a table, in clinical events or in images, found another"
        )
    most = max(len(patients) for patients in made.values())
    numbers = (f"{number:06d}" for number in count())
    names = (name for name in numbers if hash_part(data.split, name) == "train")
    return [
        [
            ModalityRow(modality=modality, row=_named(data, modality, row, name))
            for place, (modality, patients) in enumerate(made.items())
            if modality == data.label_from or number % _EVERY != place
            for row in patients[number % len(patients)]
        ]
        for number, name in zip(range(most), names, strict=False)
    ]


def _named(data: MultimodalData, modality: str, row: Row | ImageRow, name: str) -> Row | ImageRow:
    """The row as one of the patient `name`."""
    key = getattr(data.parts[modality], "patient_key", "patient_id")
    if isinstance(row, ImageRow):
        return replace(row, cells={**row.cells, key: name})
    return {**row, key: name}
