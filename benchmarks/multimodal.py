"""Whole patients: each modality alone and fused, by patient-grouped folds.

    python -m benchmarks.multimodal hannover --data FOLDER --out runs/bench-multimodal-hannover.json
    python -m benchmarks.multimodal tcga --data FOLDER --out runs/bench-multimodal-tcga.json

Real data through the encoders of sites and the model `multimodal`, in one place and without noise
(steps of Adam on the sum of all patients' gradients, as in `genomics_tcga`). An arm is the same
study where all hospitals lack the modalities that it does not name. A run deals all patients anew
into folds by a public hash and starts from other weights; its figure is of every patient's score
from the fold that held them out. One plan a data set: Hannover's was written down before its first
run; TCGA's is that of `genomics_tcga`, after one run of another (60 steps, rate 1e-3, weight 1).
"""

import argparse
import csv
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from benchmarks.genomics_omics import share
from benchmarks.genomics_tcga import (
    CLINICAL,
    CUTS,
    SUFFIXES,
    WEIGHT,
    dealt,
    genes,
    matrix_files,
    read,
)
from benchmarks.omics_runs import pooled
from fedward_client.tasks.registry import task_of
from fedward_client.training.weights import load_weights
from fedward_common.ids import SiteId
from fedward_common.models.registry import build_model
from fedward_common.study.encoding import PatientRecords, encode_present
from fedward_common.study.image_encoding import ImageRow, encode_images
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.multimodal_encoding import join
from fedward_common.study.row_encoding import encode_rows
from fedward_common.study.row_readers import readers_of
from fedward_common.study.spec import ModelSpec, StudySpec
from fedward_server.sandbox.figures import concordance

SIDE: Final = 32
FOLDS: Final = 5
HERE: Final = SiteId("here")
NOBODY_HELD_OUT: Final = {"kind": "hash", "salt": "none", "held_out": 1e-12}
LABS: Final[Mapping[str, tuple[float, float, float]]] = {
    "crp_val": (0.0, 300.0, 5.0),
    "d-dimer_val": (0.0, 10.0, 0.5),
    "ldh_val": (100.0, 800.0, 220.0),
    "lymphocytes_val": (0.0, 4.0, 2.0),
    "neutrophils_val": (0.0, 20.0, 4.5),
    "pco2_val": (20.0, 80.0, 40.0),
    "po2_val": (20.0, 120.0, 90.0),
}
"""Public limits of each laboratory value, and a healthy one for what was not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What was fixed for a data set."""

    arms: Mapping[str, tuple[str, ...]]
    steps: int
    rate: float
    decay: float


HANNOVER: Final = Plan(
    arms={
        "image": ("image",),
        "laboratory": ("laboratory",),
        "fusion": ("image", "laboratory"),
    },
    steps=100,
    rate=5e-3,
    decay=0.1,
)
TCGA: Final = Plan(
    arms={
        "clinical": ("clinical",),
        "RNA": ("rna",),
        "copy number": ("cn",),
        "fusion": ("clinical", "rna", "cn"),
    },
    steps=200,
    rate=3e-3,
    decay=0.1,
)
"""Steps, rate, decay and the weight of genes are those of the linear fusion (`genomics_tcga`)."""
Cohort = tuple[StudySpec, PatientRecords]


def study_of(
    modalities: Sequence[Mapping[str, Any]],
    encoders: Sequence[Mapping[str, Any]],
    *,
    label_from: str,
    how: str,
    **changes: Any,
) -> StudySpec:
    """A study of these modalities; only its data, model and task are used here."""
    data = {
        "kind": "multimodal",
        "modalities": [
            {"name": one["name"], "data": {**one["data"], "split": NOBODY_HELD_OUT}}
            for one in modalities
        ],
        "label_from": label_from,
        "split": NOBODY_HELD_OUT,
    }
    sizes = {
        name: part.input_size for name, part in MultimodalData.model_validate(data).parts.items()
    }
    document: dict[str, Any] = {
        "id": "bench-multimodal",
        "title": "Each modality alone and fused",
        "task": {"kind": "multimodal"},
        "model": {
            "name": "multimodal",
            "fusion": {
                "how": how,
                "width": 8,
                "encoders": [{**one, "inputs": sizes[str(one["modality"])]} for one in encoders],
            },
        },
        "data": data,
        "dp": {
            "kind": "dp-sgd",
            "epsilon": 8.0,
            "delta": 1e-3,
            "noise_multiplier": 1.0,
            "clip_norm": 1.0,
            "sampling_probability": 0.5,
            "steps": 1,
            "max_records_per_patient": 1,
        },
        "training": {"learning_rate": 1.0},
        "aggregation": {"name": "fedavg"},
        "rounds": 1,
        "local_steps": 1,
        "quorum": 1,
        "deadline_seconds": 60.0,
        "sites": [
            {"id": HERE, "patients": 50, "key_sha256": "0" * 64, "node_key_sha256": "1" * 64}
        ],
        "lead_key_sha256": "f" * 64,
    }
    model = {**document["model"], **changes.pop("model", {})}
    return StudySpec.model_validate({**document, **changes, "model": model})


def hannover(data: Path, how: str) -> Cohort:
    """Radiographs and laboratory values of 71 people; whether they ever came to intensive care."""
    with (data / "hannover_metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    severe = {row["patient_id"] for row in rows if row["icu_admission_offset"]}
    arrays = np.load(data / "hannover224.npz")
    pixels = dict(zip(map(str, arrays["image_id"]), arrays["images"], strict=True))
    study = study_of(
        [
            {"name": "image", "data": {"kind": "plain-image", "height": SIDE, "width": SIDE}},
            {
                "name": "laboratory",
                "data": {
                    "kind": "tabular",
                    "patient_key": "patient_id",
                    "missing": "fill",
                    "missing_codes": ["", "inf"],
                    "columns": [
                        {"name": name, "type": "number", "unit": "as recorded", "low": low,
                         "high": high, "fill": fill}
                        for name, (low, high, fill) in LABS.items()
                    ],
                    "label": {"column": "severe", "low": 0, "high": 1, "positive_from": 1},
                },
            },
        ],
        [
            {"modality": "image", "name": "cnn", "hidden": [8, 16], "shape": [1, SIDE, SIDE]},
            {"modality": "laboratory", "name": "mlp", "hidden": [16]},
        ],
        label_from="laboratory",
        how=how,
    )  # fmt: skip
    schema = study.data
    if not isinstance(schema, MultimodalData):
        raise TypeError("expected several modalities")
    parts = schema.parts
    table = [{**row, "severe": str(int(row["patient_id"] in severe))} for row in rows]
    shown = [
        ImageRow(cells=row, pixels=lambda image=pixels[row["image_id"]]: _small(image))
        for row in rows
    ]
    image, laboratory = parts["image"], parts["laboratory"]
    found = {
        "image": encode_images(image, shown, part="train", strict=True)[0],  # type: ignore[arg-type]
        "laboratory": encode_present(laboratory, table, part="train")[0],  # type: ignore[arg-type]
    }
    return study, join(schema, found)


def tcga(data: Path, how: str, *, cancer: str) -> Cohort:
    """Age and sex, RNA and copy number; the time until death."""
    patients = read(data, cancer)
    rows = [row for own in dealt(patients).values() for row in own]
    label = {"column": "days", "event_column": "dead", "longest_days": CUTS[-1]}
    layers = {
        name: {"kind": "profiles", "label": label, "layers": [
            {"name": name, "scale": scale, "genes": genes(patients, name), "weight": WEIGHT}
        ]}
        for name, (_, scale) in SUFFIXES.items()
    }  # fmt: skip
    clinical = {"kind": "profiles", "missing": "fill", "clinical": CLINICAL, "label": label}
    study = study_of(
        [{"name": name, "data": one} for name, one in {"clinical": clinical, **layers}.items()],
        [{"modality": name, "name": "linear"} for name in ("clinical", "rna", "cn")],
        label_from="clinical",
        how=how,
        model={"outputs": len(CUTS)},
        genomic=True,
        task={
            "kind": "survival",
            "likelihood": "discrete-hazard",
            "cuts": list(CUTS),
            "horizon_days": 1096.0,
        },
    )
    schema = study.data
    if not isinstance(schema, MultimodalData):
        raise TypeError("expected several modalities")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        files = matrix_files(patients, Path(folder))
        for name, part in schema.parts.items():
            if not isinstance(part, LabelledRows):
                raise TypeError("expected profiles")
            readers = readers_of(part, layers=[one for one in files if one.layer == name])
            found[name], _ = encode_rows(part, rows, readers.features, part="train")
    return study, join(schema, found)


def _small(image: np.ndarray) -> np.ndarray:
    tensor = torch.from_numpy(image.astype(np.float32) / 255.0)[None, None]
    small = functional.interpolate(tensor, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    return np.asarray(small[0, 0].clamp(0.0, 1.0).numpy())


def lacking(study: StudySpec, records: PatientRecords, kept: Sequence[str]) -> PatientRecords:
    """The records where only `kept` modalities are there."""
    schema = study.data
    if not isinstance(schema, MultimodalData):
        raise TypeError("expected several modalities")
    features, start = records.features.copy(), len(schema.parts)
    for place, (name, part) in enumerate(schema.parts.items()):
        if name not in kept:
            features[:, place] = 0.0
            features[:, start : start + part.input_size] = 0.0
        start += part.input_size
    return replace(records, features=features)


def out_of_fold(study: StudySpec, records: PatientRecords, plan: Plan, *, run: int) -> np.ndarray:
    """Each patient's mean score from the model of the folds that they are not in."""
    fold = np.array([int(FOLDS * share(one, salt=f"multimodal/{run}")) for one in records.ids])
    spec: ModelSpec = study.model.model_copy(update={"initial_seed": run})
    own = study.model_copy(update={"model": spec})
    scores = np.zeros(records.patients)
    task = task_of(own)
    for number in range(FOLDS):
        held_out = (fold == number)[records.patient]
        training = _some(records, ~held_out)
        tensors = pooled(own, {HERE: training}, steps=plan.steps, rate=plan.rate, decay=plan.decay)
        model = build_model(spec, task.inputs).eval()
        load_weights(model, tensors)
        with torch.inference_mode():
            found = task.scores(model(torch.from_numpy(records.features[held_out]))).numpy()
        owner = records.patient[held_out]
        for patient in np.unique(owner):
            scores[patient] = found[owner == patient].mean()
    return scores


def _some(records: PatientRecords, chosen: np.ndarray) -> PatientRecords:
    _, patient = np.unique(records.patient[chosen], return_inverse=True)
    return PatientRecords(
        features=records.features[chosen],
        labels=records.labels[chosen],
        patient=patient.astype(np.int64),
    )


def figure(study: StudySpec, records: PatientRecords, scores: np.ndarray) -> float:
    """Harrell's C of a time, AUC of an event, over patients."""
    labels = np.array([records.labels[records.patient == n][0] for n in range(records.patients)])
    if study.task.kind == "survival":
        concordant, comparable = concordance(scores, labels)
        return concordant / comparable
    return float(roc_auc_score(labels, scores))


def bench(make: Callable[[str], Cohort], plan: Plan, *, runs: int) -> dict[str, Any]:
    """Mean and SD over the runs of every arm; fusion by each of the three ways."""
    study, records = make("concatenation")
    found: dict[str, Any] = {"patients": records.patients, "records": len(records.labels)}
    arms = {f"{arm}": ("concatenation", kept) for arm, kept in plan.arms.items()}
    whole = plan.arms["fusion"]
    arms |= {f"fusion, {how}": (how, whole) for how in ("gated", "attention")}
    for arm, (how, kept) in arms.items():
        fused = {**study.model.model_dump()["fusion"], "how": how}
        model = ModelSpec.model_validate({**study.model.model_dump(), "fusion": fused})
        own, some = study.model_copy(update={"model": model}), lacking(study, records, kept)
        values = [
            figure(own, some, out_of_fold(own, some, plan, run=run)) for run in range(1, runs + 1)
        ]
        spread = float(np.std(values, ddof=1)) if runs > 1 else None
        found[arm] = {"mean": float(np.mean(values)), "sd": spread, "min": min(values)}
        print(arm, json.dumps(found[arm]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", choices=("hannover", "tcga"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    start = time.perf_counter()
    result: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "versions": {name: version(name) for name in ("torch", "numpy")},
        "runs": options.runs,
    }
    if options.set == "hannover":
        result["hannover"] = bench(
            lambda how: hannover(options.data, how), HANNOVER, runs=options.runs
        )
    else:
        for cancer in ("luad", "blca"):
            print(cancer, flush=True)
            result[cancer] = bench(
                lambda how, name=cancer: tcga(options.data, how, cancer=name),
                TCGA,
                runs=options.runs,
            )
    result["seconds"] = time.perf_counter() - start
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
