"""The variants about whole patients: images, tables, genomes and the like, joined per patient.

Each modality is data of a kind that there is, read as in a study of its own and joined by the
patient's id at the site. Whoever is in the modality that has the label is in the study; what else
is missing, for one patient or for a whole hospital, is missing and no reason to leave anybody out.
All of a patient's modalities are one privacy unit; where the genotypes' table says who is kin, all
of a family's patients are.
"""

from typing import Any, Final, Literal

from pydantic import Field, model_validator

from fedward_common.study.clinical import ClinicalData, EventOutcome, TimeOutcome
from fedward_common.study.fusion import MOST_MODALITIES, ModalityName
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.imaging import (
    MAX_LABELS,
    ClassLabel,
    ImageData,
    PlainImages,
    Weight,
)
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.notes import NotesData, RelationLabel
from fedward_common.study.registry import AnyData, DataSpec, Strict, TaskSpec, register
from fedward_common.study.tabular import HashSplit, LabelRule, TabularData, TimeLabel

Joinable = (
    TabularData | ClinicalData | ImageData | PlainImages | NotesData | LabelledRows | Genotypes
)
"""Data that can be a modality."""
OutcomeLabel = LabelRule | ClassLabel | EventOutcome | TimeLabel | TimeOutcome
_OUTCOMES: Final = (LabelRule, ClassLabel, EventOutcome, TimeLabel, TimeOutcome)


@register
class MultimodalClassification(TaskSpec):
    """One of two or of several classes of a patient from several modalities.

    Cross-entropy, each class with its weight of `class_weights`, public constants. None: 1 each.
    """

    kind: Literal["multimodal"] = "multimodal"
    class_weights: tuple[Weight, ...] = Field(default=(), max_length=MAX_LABELS, strict=False)


class Modality(Strict):
    """One modality by a name that sites know it by."""

    name: ModalityName
    data: AnyData


@register
class MultimodalData(DataSpec):
    """Several modalities of the same patients; `label_from` names the one whose label is learned.

    A label of another modality is not looked at beyond its own rules. One split by a hash of the
    patient's id for all of them: a study file gives it once.

    One modality of genotypes may have `family_key`: the privacy unit is then the family, of every
    modality, as that table knows it, and the split is by a hash of the family's name. Who is not in
    the table, or there without a family, is a family alone.
    """

    kind: Literal["multimodal"] = "multimodal"
    modalities: tuple[Modality, ...] = Field(min_length=2, max_length=MOST_MODALITIES, strict=False)
    label_from: ModalityName
    split: HashSplit

    @property
    def is_genomic(self) -> bool:
        """Whether any modality is."""
        return any(modality.data.is_genomic for modality in self.modalities)

    @property
    def parts(self) -> dict[str, Joinable]:
        """The data of each modality by its name, in the order of the inputs."""
        return {
            modality.name: modality.data
            for modality in self.modalities
            if isinstance(modality.data, Joinable)
        }

    @property
    def kin_from(self) -> str | None:
        """The modality whose table says who is kin; None where the unit is a patient."""
        return next((name for name, _ in self._family_keys), None)

    @property
    def family_key(self) -> str | None:
        """The column that says who is kin, in the table of `kin_from`."""
        return next((key for _, key in self._family_keys), None)

    @property
    def _family_keys(self) -> list[tuple[str, str]]:
        return [
            (name, data.family_key)
            for name, data in self.parts.items()
            if isinstance(data, Genotypes) and data.family_key is not None
        ]

    @property
    def input_size(self) -> int:
        """The inputs of a model: one presence a modality, then the inputs of each."""
        return len(self.modalities) + sum(part.input_size for part in self.parts.values())

    @property
    def label(self) -> OutcomeLabel:
        """The label that is learned."""
        found = _label(self.parts[self.label_from])
        if not isinstance(found, OutcomeLabel):
            raise TypeError("label_from: expected a modality with a label")
        return found

    @property
    def is_timed(self) -> bool:
        """Whether the time until an event is learned."""
        return isinstance(self.label, TimeLabel | TimeOutcome)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, where there are more than two."""
        return self.label.names if isinstance(self.label, ClassLabel) else ()

    @property
    def outputs(self) -> int:
        """How many numbers a model of classes puts out."""
        return len(self.names) or 1

    @model_validator(mode="before")
    @classmethod
    def _one_split(cls, value: Any) -> Any:
        """Gives each modality the split of all, where a study file does not repeat it."""
        modalities = value.get("modalities") if isinstance(value, dict) else None
        if not isinstance(modalities, list | tuple) or "split" not in value:
            return value
        return {**value, "modalities": [_with_split(one, value["split"]) for one in modalities]}

    @model_validator(mode="after")
    def _joined(self) -> "MultimodalData":
        names = [modality.name for modality in self.modalities]
        if len(set(names)) != len(names):
            raise ValueError("modalities: expected every name once")
        for modality in self.modalities:
            data = modality.data
            if not isinstance(data, Joinable):
                raise ValueError(
                    f"modalities: expected data that can be joined per patient, found {data.kind!r}"
                )
            if getattr(data, "no_patient_key", False):
                raise ValueError(f"{modality.name}: expected data that say whose they are")
            if isinstance(data, NotesData) and isinstance(data.label, RelationLabel):
                raise ValueError(f"{modality.name}: expected notes without relations of pairs")
            if data.split != self.split:
                raise ValueError(f"{modality.name}: expected the split of all modalities")
        if len(self._family_keys) > 1:
            raise ValueError("modalities: expected family_key in one of them, found it in several")
        if self.label_from not in names:
            raise ValueError(f"label_from: expected one of {', '.join(names)}")
        if not isinstance(_label(self.parts[self.label_from]), _OUTCOMES):
            raise ValueError(
                "label_from: expected a modality with an event, a class or a time as its label"
            )
        return self


def _label(data: Joinable) -> object:
    if isinstance(data, ClinicalData):
        return data.outcome
    return None if isinstance(data, PlainImages) else data.label


def _with_split(modality: Any, split: Any) -> Any:
    data = modality.get("data") if isinstance(modality, dict) else None
    if not isinstance(data, dict) or "split" in data:
        return modality
    return {**modality, "data": {**data, "split": split}}


def parts_of(data: DataSpec) -> tuple[DataSpec, ...]:
    """`data` itself, or the data of each of its modalities: what a site's rules look at."""
    return tuple(data.parts.values()) if isinstance(data, MultimodalData) else (data,)
