"""A model's answers about patients whose data a hospital has: tables, records, profiles, genomes,
or several modalities of each.

The inputs are read by the sources that training reads by, with the constants of the signed study
and of nothing else; only the label is not looked for.
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from pydantic import Field, ValidationError

from fedward_client.data.site import SiteSource
from fedward_client.data_entries import FOLDER, DataEntry, GenotypeFiles
from fedward_client.exclusions import excluded_patients
from fedward_client.models import OpenedModel
from fedward_client.predict.package import Origin
from fedward_client.settings import SiteSettings
from fedward_client.tasks.registry import task_of
from fedward_client.training.weights import load_weights
from fedward_common.errors import ConfigError, DataError
from fedward_common.models.registry import build_model
from fedward_common.study.clinical import ClinicalData, NoOutcome
from fedward_common.study.encoding import PatientRecords, TablePart
from fedward_common.study.files import explain, read_toml
from fedward_common.study.fusion import ModalityName
from fedward_common.study.genotypes import GenotypeClassification, GenotypeRegression, Genotypes
from fedward_common.study.harmonisation import harmonisation_of
from fedward_common.study.imaging import ImageData, PlainImages
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.molecule import MoleculeProperty
from fedward_common.study.multimodal import MultimodalClassification, MultimodalData
from fedward_common.study.profiles import ExpressionClassification
from fedward_common.study.registry import DataSpec, Strict
from fedward_common.study.sequence import SequenceClassification
from fedward_common.study.spec import StudySpec
from fedward_common.study.survival import Survival
from fedward_common.study.tabular import HashSplit, TabularClassification, TabularData
from fedward_common.study.tasks import (
    TabularRegression,
    TimeseriesClassification,
    is_regression,
    value_range,
)
from fedward_common.trust.private_files import write_private

SCORES: Final = "scores.csv"
FACTS: Final = "answer.json"
_EVERYBODY: Final = HashSplit(salt="fedward/predict", held_out=0.5)
"""Both sides of it are read: a patient who is asked about has no side of the study's split."""
_PARTS: Final[tuple[TablePart, ...]] = ("train", "test")


class PatientFiles(Strict):
    """What INPUT holds: `[[data]]` as in site.toml, of the patients who are asked about.

    A modality that no entry is for is absent; `absent_modalities` may say so, too.
    """

    data: tuple[DataEntry, ...] = Field(min_length=1, strict=False)
    absent_modalities: tuple[ModalityName, ...] = Field(default=(), max_length=64, strict=False)

    @classmethod
    def read(cls, path: Path) -> "PatientFiles":
        """The entries of the file `path`, their paths relative to its folder.

        Raises:
            ConfigError: no such file, not TOML, or something else than `[[data]]`.
        """
        source = path.absolute()
        try:
            values = read_toml(source)
        except ConfigError as error:
            raise ConfigError(
                f"predict: expected a TOML file of the patients' [[data]], as in site.toml: {error}"
            ) from error
        try:
            return cls.model_validate(values, context={FOLDER: str(source.parent)})
        except ValidationError as error:
            raise explain(error, source=str(source), document=values) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class PatientAnswer:
    """What was made: `facts` for machines (nothing of a patient), `text` for people."""

    facts: dict[str, Any]
    text: str


def answer_patients(
    opened: OpenedModel, settings: SiteSettings, *, patients: Path, out: Path
) -> PatientAnswer:
    """The scores of every patient of `patients`, in `out`: scores.csv and answer.json (0600).

    A score is in [0, 1], of regression a value in the label's unit; of a patient with several
    records it is their mean. Whoever objects by the site's exclusions is left out. What does not
    fit the study is an error, so that nobody is left out in silence.

    Raises:
        ConfigError: a study whose model does not answer about patients, or `patients` is no
            file of `[[data]]`.
        DataError: data that do not fit, or nobody in them. Nothing is written then.
    """
    study = opened.study
    names = _names(study)
    _check(study)
    unlabelled = study.model_copy(update={"data": _without_label(study.data)})
    files = PatientFiles.read(patients)
    absent = _absent(study.data, files)
    entries = tuple(map(_per_person, files.data))
    source = SiteSource(
        settings.model_copy(update={"data": entries, "absent_modalities": absent}),
        excluded=partial(excluded_patients, settings),
    )
    try:
        parts = [_read(source, unlabelled, part) for part in _PARTS]
    except DataError as error:
        raise DataError(f"{patients}: {error}") from error
    rows = sorted(row for part in parts for row in _scored(opened, part))
    if not rows:
        raise DataError(
            f"predict: expected at least one patient of study {study.id} in {patients}, found none"
        )
    origin = Origin.of(opened)
    facts = {
        **origin.facts,
        "patients": len(rows),
        "scores": list(names),
        "absent_modalities": list(absent),
        "files": [FACTS, SCORES],
    }
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(out / SCORES, _table(names, rows, origin))
    write_private(out / FACTS, json.dumps(facts, indent=1).encode() + b"\n")
    said = f"{len(rows)} patients, {', '.join(names)}: {out / SCORES}"
    return PatientAnswer(facts=facts, text=f"{said}\n{origin.words}")


def _per_person(entry: DataEntry) -> DataEntry:
    """The entry without its families: who is asked about is answered one by one."""
    if isinstance(entry, GenotypeFiles):
        return entry.model_copy(update={"family_key": None})
    return entry


def _read(source: SiteSource, study: StudySpec, part: TablePart) -> PatientRecords:
    if not isinstance(study.data, MultimodalData):
        return source.checked_records(study, part=part)
    return source.whole.everybody(
        study, lambda name, one: source.of_modality(name).checked_records(one, part=part)
    )


def _check(study: StudySpec) -> None:
    """Returns when the scores of a record are all that the model has to say of a patient."""
    if getattr(study.data, "no_patient_key", False):
        raise ConfigError(
            "predict: expected a study whose records say whose they are, found no_patient_key"
        )
    if harmonisation_of(study) is not None:
        raise ConfigError(
            "predict: expected a study without site-harmonisation, found one: its inputs need the "
            "constants of the site that the patients are of"
        )
    task_of(study)


def _without_label(data: DataSpec) -> DataSpec:
    """`data` as it is read for somebody whose label nobody knows. Raises ConfigError."""
    match data:
        case MultimodalData():
            parts = [
                one.model_copy(update={"data": _without_label(one.data)}) for one in data.modalities
            ]
            return data.model_copy(update={"modalities": tuple(parts), "split": _EVERYBODY})
        case TabularData():
            return data.model_copy(
                update={"label": None, "split": _EVERYBODY, "unlabelled": "drop"}
            )
        case LabelledRows():
            return data.model_copy(update={"label": None, "split": _EVERYBODY})
        case Genotypes():
            return data.model_copy(update={"label": None, "split": _EVERYBODY, "family_key": None})
        case ClinicalData():
            return data.model_copy(update={"outcome": NoOutcome(), "split": _EVERYBODY})
        case ImageData() | PlainImages():
            shared = {name: getattr(data, name) for name in PlainImages.model_fields}
            return PlainImages(**{**shared, "kind": "plain-image", "split": _EVERYBODY})
    raise ConfigError(
        "predict: expected a study of tables, clinical records, profiles, sequences, molecules, "
        f"genotypes, images or several of these, found {data.kind}"
    )


def _absent(data: DataSpec, files: PatientFiles) -> tuple[str, ...]:
    """The modalities that INPUT does not have.

    Raises:
        ConfigError: it names one that the study does not have, or one both here and absent.
    """
    if not isinstance(data, MultimodalData):
        return ()
    named = {one.modality for one in files.data}
    said = set(files.absent_modalities)
    here = {name for name in named if name is not None}
    for key, names in (("data.modality", here), ("absent_modalities", said)):
        unknown = sorted(names - data.parts.keys())
        if unknown:
            raise ConfigError(
                f"{key}: expected {', '.join(data.parts)}, found {', '.join(unknown)}"
            )
    both = ", ".join(sorted(here & said))
    if both:
        raise ConfigError(f"absent_modalities: expected none that has [[data]], found {both}")
    missing = set() if None in named else set(data.parts) - here
    return tuple(name for name in data.parts if name in missing | said)


_ANSWERS: Final = (
    TabularClassification,
    TabularRegression,
    TimeseriesClassification,
    Survival,
    GenotypeClassification,
    GenotypeRegression,
    ExpressionClassification,
    SequenceClassification,
    MoleculeProperty,
    MultimodalClassification,
)
"""Tasks that say something of a patient from one record's scores; of another nothing is known."""


def _names(study: StudySpec) -> tuple[str, ...]:
    """What the scores are of. Raises ConfigError where the task has no scores of a patient."""
    data = study.data
    if not isinstance(study.task, _ANSWERS):
        raise ConfigError(
            f"predict: expected a study that learns a label of patients, found {study.task.kind}"
        )
    if isinstance(study.task, Survival):
        return (f"event by day {study.task.horizon_days:g}",)
    label = data.outcome if isinstance(data, ClinicalData) else getattr(data, "label", None)
    if label is None:
        raise ConfigError(
            f"predict: expected a study that learns a label, found task {study.task.kind}"
        )
    several = getattr(label, "names", ())
    return tuple(several) or (getattr(label, "column", "event"),)


def _scored(opened: OpenedModel, records: PatientRecords) -> Iterator[tuple[str, list[float]]]:
    """The id and the scores of each patient; each record goes through the model alone."""
    study = opened.study
    task = task_of(study)
    model = build_model(study.model, task.inputs).eval()
    load_weights(model, opened.weights)
    in_unit = _unit(study)
    alone: list[list[np.ndarray]] = [[] for _ in records.ids]
    with torch.inference_mode():
        for patient, row in zip(records.patient.tolist(), records.features, strict=True):
            scores = task.scores(model(torch.tensor(row[None])))
            alone[patient].append(scores.numpy().astype(np.float64).reshape(-1))
    for name, found in zip(records.ids, alone, strict=True):
        yield name, [in_unit(score) for score in np.mean(found, axis=0).tolist()]


def _unit(study: StudySpec) -> Callable[[float], float]:
    """From a score to a value in the label's unit, where one is learned."""
    if not is_regression(study):
        return lambda score: score
    low, high = value_range(study.data)
    return lambda score: low + score * (high - low)


def _table(names: tuple[str, ...], rows: list[tuple[str, list[float]]], origin: Origin) -> bytes:
    """A line a patient; each says where it comes from, as lines are cut out of tables."""
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["patient", *names, *origin.facts])
    for name, scores in rows:
        said = [f"{score:.6g}" for _, score in zip(names, scores, strict=True)]
        writer.writerow([name, *said, *origin.facts.values()])
    return text.getvalue().encode()
