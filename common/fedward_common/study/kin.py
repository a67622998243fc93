"""Who is kin in a study of several modalities: whole patients become whole families.

A hospital's table of the people with genotypes says who is of one family. Every modality is read
per person and joined by the patient's id; only then are a family's patients put together, so that
all records of all its members are drawn, clipped and held out as one privacy unit.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from fedward_common.errors import DataError
from fedward_common.study.encoding import (
    PatientRecords,
    TablePart,
    code_text,
    code_texts,
    hash_part,
)
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.multimodal import MultimodalData

Row = Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kin:
    """Which patients of a hospital are of one family, as its table says; private, never leaves.

    `families`: of each patient with a family, its name. `torn`: patients whom the table puts in
    several families. They belong to none and are not in the study: in two units they would move
    both, and whoever left one of these families with all its patients would change the other.
    """

    families: Mapping[str, str] = field(default_factory=dict, repr=False)
    torn: frozenset[str] = field(default=frozenset(), repr=False)

    def unit(self, patient: str) -> tuple[str, str] | None:
        """The privacy unit of a patient: the family, or the patient alone; None where torn.

        The two kinds of name cannot meet.
        """
        if patient in self.torn:
            return None
        family = self.families.get(patient)
        return ("patient", patient) if family is None else ("family", family)

    def part(self, schema: MultimodalData, patient: str) -> TablePart | None:
        """The side of the split of a patient's unit, by the name of the unit; None where torn."""
        unit = self.unit(patient)
        return None if unit is None else hash_part(schema.split, unit[1])


def person_key(schema: Genotypes, row: Row) -> tuple[str, str]:
    """Family and patient of a row; no family where its cell is a missing code."""
    family = schema.family_key
    own = "" if family is None else (row.get(family) or "").strip()
    if code_text(own) in code_texts(schema.missing_codes):
        own = ""
    return own, (row.get(schema.patient_key) or "").strip()


def kin_of(schema: Genotypes, rows: Iterable[Row]) -> Kin:
    """Who is kin by a table of people. Every row counts, also of who has no genotypes or label."""
    found: dict[str, set[str]] = {}
    for row in rows:
        family, patient = person_key(schema, row)
        if family and patient:
            found.setdefault(patient, set()).add(family)
    return Kin(
        families={patient: min(own) for patient, own in found.items() if len(own) == 1},
        torn=frozenset(patient for patient, own in found.items() if len(own) > 1),
    )


def per_person(schema: MultimodalData) -> MultimodalData:
    """`schema` as its modalities are read before families are known.

    Each patient alone, and nobody held out: by a patient's own id kin would straddle the split.
    """
    everybody = schema.split.model_copy(update={"held_out": 0.0})
    modalities = []
    for modality in schema.modalities:
        changes: dict[str, object] = {"split": everybody}
        if isinstance(modality.data, Genotypes):
            changes["family_key"] = None
        data = modality.data.model_copy(update=changes)
        modalities.append(modality.model_copy(update={"data": data}))
    return schema.model_copy(update={"modalities": tuple(modalities), "split": everybody})


def by_family(
    schema: MultimodalData,
    patients: PatientRecords,
    kin: Kin,
    *,
    part: TablePart,
    strict: bool = False,
) -> PatientRecords:
    """The records of the families in `part`, in the order in which their patients first appear.

    `patients`: everybody, joined by `per_person`. A family's records are those of its patients, one
    after another; a patient without declared kin is a family alone. Which family a patient is in,
    and on which side it is, depends on no other family's rows.

    Raises:
        DataError: with `strict`, a patient whom the table puts in several families.
    """
    if strict and not kin.torn.isdisjoint(patients.ids):
        raise DataError("family_key: expected every patient in one family, found one in several")
    units: dict[tuple[str, str], list[int]] = {}
    for number, patient in enumerate(patients.ids):
        unit = kin.unit(patient)
        if unit is not None and kin.part(schema, patient) == part:
            units.setdefault(unit, []).append(number)
    bounds = np.searchsorted(patients.patient, np.arange(len(patients.ids) + 1))
    rows = [
        [row for member in members for row in range(bounds[member], bounds[member + 1])]
        for members in units.values()
    ]
    order = np.array([row for own in rows for row in own], dtype=np.int64)
    return PatientRecords(
        features=patients.features[order],
        labels=patients.labels[order],
        patient=np.repeat(np.arange(len(rows), dtype=np.int64), [len(own) for own in rows]),
        ids=tuple(name for _, name in units),
    )
