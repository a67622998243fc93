"""From records of each modality to records of whole patients, each patient by itself (rules 6)."""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from fedward_common.errors import DataError
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.multimodal import MultimodalData

Floats = npt.NDArray[np.float32]


def join(schema: MultimodalData, parts: Mapping[str, PatientRecords | None]) -> PatientRecords:
    """The records of the patients in the modality with the label, in its order.

    `parts`: each modality's records, None where a hospital does not have it. Inputs: for each
    modality 1 where it is there and 0 where not, then each modality's own inputs, 0 where it is
    not. A patient with several records of a modality has as many records as of the modality with
    the most; those of another come round again. What a patient becomes depends on nobody else.

    Raises:
        DataError: the modality with the label is not there.
    """
    labelled = parts.get(schema.label_from)
    if labelled is None:
        raise DataError(
            f"data: expected modality {schema.label_from!r}, which has the label, at every site"
        )
    firsts = np.searchsorted(labelled.patient, np.arange(len(labelled.ids)))
    return _joined(schema, parts, ids=labelled.ids, labels=labelled.labels[firsts])


def join_everybody(
    schema: MultimodalData, parts: Mapping[str, PatientRecords | None]
) -> PatientRecords:
    """The records of whoever is in any modality, with 0 for a label: nobody's is looked for.

    Inputs as of `join`. The order is that of the modalities, and in each that of its patients.
    """
    everybody = [patient for found in parts.values() if found is not None for patient in found.ids]
    ids = tuple(dict.fromkeys(everybody))
    return _joined(schema, parts, ids=ids, labels=np.zeros(len(ids), dtype=np.float32))


def _joined(
    schema: MultimodalData,
    parts: Mapping[str, PatientRecords | None],
    *,
    ids: tuple[str, ...],
    labels: Floats,
) -> PatientRecords:
    """The records of the patients `ids`, each with its label of `labels` [patients, ...]."""
    rows = {name: _rows(found) for name, found in parts.items() if found is not None}
    groups = [
        _patient(schema, {name: own[patient] for name, own in rows.items() if patient in own})
        for patient in ids
    ]
    sizes = [len(group) for group in groups]
    return PatientRecords(
        features=np.concatenate([np.zeros((0, schema.input_size), np.float32), *groups]),
        labels=np.repeat(labels, sizes, axis=0),
        patient=np.repeat(np.arange(len(groups), dtype=np.int64), sizes),
        ids=ids,
    )


def without_label(schema: MultimodalData, parts: Mapping[str, PatientRecords | None]) -> int:
    """How many patients are in some modality and not in the one with the label."""
    known = {patient for found in parts.values() if found is not None for patient in found.ids}
    labelled = parts.get(schema.label_from)
    return len(known - set(() if labelled is None else labelled.ids))


def _rows(records: PatientRecords) -> dict[str, Floats]:
    """The inputs of each patient's records."""
    return dict(zip(records.ids, _split(records), strict=True))


def _split(records: PatientRecords) -> Iterator[Floats]:
    ends = np.searchsorted(records.patient, np.arange(len(records.ids)), side="right")
    start = 0
    for end in ends.tolist():
        yield records.features[start:end]
        start = end


def _patient(schema: MultimodalData, own: Mapping[str, Floats]) -> Floats:
    """The inputs [records, inputs] of one patient."""
    count = max(len(rows) for rows in own.values())
    inputs = np.zeros((count, schema.input_size), dtype=np.float32)
    start = len(schema.modalities)
    for place, (name, part) in enumerate(schema.parts.items()):
        rows = own.get(name)
        if rows is not None:
            inputs[:, place] = 1.0
            inputs[:, start : start + part.input_size] = rows[np.arange(count) % len(rows)]
        start += part.input_size
    return inputs
