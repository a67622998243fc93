"""Whole patients: each modality alone and fused, by patient-grouped folds.

    python -m benchmarks.multimodal hannover --data FOLDER --out runs/bench-multimodal-hannover.json
    python -m benchmarks.multimodal tcga --data FOLDER --out runs/bench-multimodal-tcga.json

Real data through the encoders of sites and the model `multimodal`, in one place and without noise
(steps of Adam on the sum of all patients' gradients, as in `genomics_tcga`); with `--epsilon-8 N`
also N runs by the trainers of three sites (patients by a public hash) with distributed noise. An
arm is the same study where all hospitals lack the modalities that it does not name. A run deals all
patients anew into folds by a public hash and starts from other weights; its figure is of every
patient's score from the fold that held them out. One plan a data set: Hannover's was written down
before its first run; TCGA's is that of `genomics_tcga`, after one run of another (60 steps, rate
1e-3, weight 1). Within epsilon 8 it is one plan for both, written down before its first run.
"""

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from benchmarks.facts import facts
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
from benchmarks.omics_runs import distributed, pooled, privacy
from fedward_client.tasks.registry import task_of
from fedward_client.training.weights import load_weights
from fedward_common.ids import SiteId
from fedward_common.models.registry import build_model
from fedward_common.privacy.accounting import calibrate_noise_multiplier
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
MODELS: Final = {
    "discrete-hazard": "multimodal",
    "proportional-hazards": "proportional-hazards",
}
PRIVATE: Final = {"rounds": 30, "q": 0.5, "clip": 0.5, "rate": 0.01, "most_records": 4}
PRIVATE_SITES: Final = 3
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
                    "missing_codes": ["", "inf", "-inf"],
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


def tcga(data: Path, how: str, *, cancer: str, likelihood: str = "discrete-hazard") -> Cohort:
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
        model={"name": MODELS[likelihood], "outputs": len(CUTS)},
        genomic=True,
        task={
            "kind": "survival",
            "likelihood": likelihood,
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


def private_study(study: StudySpec, patients: int) -> StudySpec:
    """The study over three sites with distributed noise, within epsilon 8 for its training."""
    document = study.model_dump(mode="json")
    delta = float(f"{0.99 / (10 * patients):.3g}")
    rounds, q = int(PRIVATE["rounds"]), PRIVATE["q"]
    document["dp"] |= {
        "delta": delta,
        "noise_multiplier": calibrate_noise_multiplier(
            epsilon=8.0, epsilon_is="admission", delta=delta, sampling_probability=q, steps=rounds
        ),
        "clip_norm": PRIVATE["clip"],
        "sampling_probability": q,
        "steps": rounds,
        "max_records_per_patient": PRIVATE["most_records"],
        "placement": "distributed",
    }
    document["training"] = {"learning_rate": PRIVATE["rate"], "optimizer": "adam"}
    document["aggregation"] = {"name": "fedavg", "average_last": rounds // 5}
    names = [f"site-{number}" for number in range(PRIVATE_SITES)]
    document["sites"] = [
        {
            "id": name,
            "patients": patients // PRIVATE_SITES,
            "key_sha256": f"{number:064x}",
            "node_key_sha256": f"{number + 100:064x}",
        }
        for number, name in enumerate(names)
    ]
    document |= {"rounds": rounds, "quorum": PRIVATE_SITES, "secure_sum": True}
    return StudySpec.model_validate(document)


def out_of_fold(
    study: StudySpec, records: PatientRecords, plan: Plan, *, run: int, private: bool = False
) -> np.ndarray:
    """Each patient's mean score from the model of the folds that they are not in."""
    fold = np.array([int(FOLDS * share(one, salt=f"multimodal/{run}")) for one in records.ids])
    spec: ModelSpec = study.model.model_copy(update={"initial_seed": run})
    own = study.model_copy(update={"model": spec})
    scores = np.zeros(records.patients)
    task = task_of(own)
    for number in range(FOLDS):
        held_out = (fold == number)[records.patient]
        if private:
            tensors = _within_epsilon_8(own, records, held_out)
        else:
            training = {HERE: _some(records, ~held_out)}
            tensors = pooled(own, training, steps=plan.steps, rate=plan.rate, decay=plan.decay)
        model = build_model(spec, task.inputs).eval()
        load_weights(model, tensors)
        with torch.inference_mode():
            found = task.scores(model(torch.from_numpy(records.features[held_out]))).numpy()
        owner = records.patient[held_out]
        for patient in np.unique(owner):
            scores[patient] = found[owner == patient].mean()
    return scores


def _within_epsilon_8(study: StudySpec, records: PatientRecords, held_out: np.ndarray) -> Any:
    """The model of the records that are not held out, by three sites with distributed noise."""
    site_of = np.array([int(PRIVATE_SITES * share(one, salt="multimodal/sites/v1"))
                        for one in records.ids])  # fmt: skip
    own = private_study(study, records.patients)
    training = {
        site: _some(records, ~held_out & (site_of == number)[records.patient])
        for number, site in enumerate(SiteId(one.id) for one in own.sites)
    }
    return distributed(own, training, backend="auto")


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


def bench(make: Callable[[str], Cohort], plan: Plan, *, runs: int, private: int) -> dict[str, Any]:
    """Mean and SD over the runs of every arm; fusion by each of the three ways, and within epsilon
    8 (`private` runs) by concatenation.
    """
    study, records = make("concatenation")
    found: dict[str, Any] = {"patients": records.patients, "records": len(records.labels)}
    arms = {f"{arm}": ("concatenation", kept) for arm, kept in plan.arms.items()}
    whole = plan.arms["fusion"]
    arms |= {f"fusion, {how}": (how, whole) for how in ("gated", "attention")}
    for arm, (how, kept) in arms.items():
        fused = {**study.model.model_dump()["fusion"], "how": how}
        model = ModelSpec.model_validate({**study.model.model_dump(), "fusion": fused})
        own, some = study.model_copy(update={"model": model}), lacking(study, records, kept)
        found[arm] = {}
        for name, count in (("no noise", runs), ("epsilon 8", private if arm in plan.arms else 0)):
            scores = [
                out_of_fold(own, some, plan, run=run, private=name == "epsilon 8")
                for run in range(1, count + 1)
            ]
            if scores:
                found[arm][name] = _spread([figure(own, some, each) for each in scores])
                print(arm, name, json.dumps(found[arm][name]), flush=True)
    if private:
        found["privacy"] = privacy(private_study(study, records.patients))
    return found


def _spread(values: Sequence[float]) -> dict[str, Any]:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": deviation, "min": min(values)}


def quick(plan: Plan) -> Plan:
    """The least of a plan: fusion alone, three steps."""
    return replace(plan, arms={"fusion": plan.arms["fusion"]}, steps=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", choices=("hannover", "tcga"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=10, help="without noise")
    parser.add_argument("--epsilon-8", type=int, default=1, metavar="RUNS", dest="private")
    parser.add_argument("--quick", action="store_true", help="three steps of fusion: no figure")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    runs, private = (1, 0) if options.quick else (options.runs, options.private)
    plans = {"hannover": HANNOVER, "tcga": TCGA}
    plan = quick(plans[options.set]) if options.quick else plans[options.set]
    start = time.perf_counter()
    result: dict[str, Any] = {
        **facts(("torch", "numpy")),
        "runs": runs,
    }
    if options.set == "hannover":
        result["hannover"] = bench(
            lambda how: hannover(options.data, how),
            plan,
            runs=runs,
            private=private,
        )
    else:
        for cancer in ("luad", "blca"):
            print(cancer, flush=True)
            result[cancer] = bench(
                lambda how, name=cancer: tcga(options.data, how, cancer=name),
                plan,
                runs=runs,
                private=private,
            )
            # The same fusions with the other likelihood; within epsilon 8: `multimodal_hazards`.
            print(cancer, "proportional hazards", flush=True)
            result[f"{cancer}, proportional hazards"] = bench(
                lambda how, name=cancer: tcga(
                    options.data, how, cancer=name, likelihood="proportional-hazards"
                ),
                replace(plan, arms={"fusion": plan.arms["fusion"]}),
                runs=runs,
                private=0,
            )
    result["seconds"] = time.perf_counter() - start
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
