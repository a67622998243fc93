"""Autoencoders on RNA profiles over the hospitals of TCGA, and a head that begins with the encoder.

    python -m benchmarks.genomics_autoencoder --data FOLDER --out runs/bench-autoencoder.json

Sites, folds and genes as in `genomics_tcga`. Each model makes profiles again from eight numbers:
how much of the held-out patients' variance that explains, without noise (steps of the pooled data)
and within epsilon 8 (distributed noise), beside principal components of the pooled training
patients. Then Cox's model on the frozen encoder (`model.start`, `training.frozen`), without noise,
beside the same head on an encoder that learned nothing. One plan, nothing tuned.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.facts import facts
from benchmarks.genomics_omics import EPSILON, Plan, study_of
from benchmarks.genomics_tcga import (
    CUTS,
    FOLDS,
    MODEL,
    SUFFIXES,
    c_index,
    dealt,
    encoded,
    folded,
    genes,
    matrix_files,
    read,
)
from benchmarks.omics_runs import Tables, distributed, pooled, privacy
from fedward_common.arrays import Array
from fedward_common.models.registry import initial_tensors
from fedward_common.study.inputs import input_size
from fedward_common.study.spec import StudySpec
from fedward_server.sandbox.figures import model_figures

CODE: Final = 8
PRIVATE: Final = {"rounds": 100, "q": 0.5, "clip": 0.5, "rate": 0.003}
PLANS: Final = {
    "plain": Plan(
        model={"name": "autoencoder", "hidden": [CODE]},
        rounds=300,
        rate=0.01,
        decay=0.01,
        private=PRIVATE,
    ),
    "variational": Plan(
        model={"name": "variational-autoencoder", "hidden": [32], "shape": [CODE]},
        rounds=300,
        rate=0.01,
        decay=0.01,
        private=PRIVATE,
    ),
}
HEAD: Final = Plan(
    model=MODEL | {"hidden": [CODE]}, rounds=200, rate=0.02, decay=0.0, private=PRIVATE
)
LAYER: Final = "rna"


def study(rows: Any, patients: Any, plan: Plan, *, head: bool) -> StudySpec:
    """A study of RNA profiles: an autoencoder's, without a label, or a head's on survival."""
    data = {
        "kind": "profiles",
        "layers": [
            {"name": LAYER, "scale": SUFFIXES[LAYER][1], "genes": genes(patients, LAYER)},
        ],
        "split": {"kind": "column", "column": "split"},
    }
    task: dict[str, Any] = {"kind": "autoencoder"}
    if head:
        data["label"] = {"column": "days", "event_column": "dead", "longest_days": CUTS[-1]}
        task = {
            "kind": "survival",
            "likelihood": "proportional-hazards",
            "cuts": list(CUTS),
            "horizon_days": 1096.0,
        }
    return study_of("tcga", rows, plan, task=task, data=data, unit="patient", genomic=True)


def components(training: Tables, held_out: Tables) -> float:
    """The part of held-out variance that as many principal components explain, pooled."""
    seen = np.concatenate([one.features for one in training.values()]).astype(np.float64)
    new = np.concatenate([one.features for one in held_out.values()]).astype(np.float64)
    mean = seen.mean(axis=0)
    _, _, axes = np.linalg.svd(seen - mean, full_matrices=False)
    apart = new - mean
    left = apart - apart @ axes[:CODE].T @ axes[:CODE]
    return 1.0 - float((left**2).sum() / ((new - new.mean(axis=0)) ** 2).sum())


def explained(spec: StudySpec, model: Any, held_out: Tables) -> float:
    """The part of held-out variance that the model's reconstructions explain."""
    return float(model_figures(spec, model, held_out).pooled.more["explained"])


def headed(
    spec: StudySpec, encoder: Mapping[str, Array], training: Tables, held_out: Tables
) -> float:
    """Harrell's C of a head on the frozen encoder."""
    start = {**initial_tensors(spec.model, input_size(spec.data))}
    start |= {f"risk.{name}": array for name, array in encoder.items() if "hidden." in name}
    model = pooled(
        spec,
        training,
        steps=HEAD.rounds,
        rate=HEAD.rate,
        decay=HEAD.decay,
        start=start,
        frozen=("risk.hidden.",),
    )
    return c_index(spec, model, held_out)


def bench(cancer: str, *, data: Path, folds: int, noise: bool) -> dict[str, Any]:
    """The figures of every fold."""
    patients = read(data, cancer)
    rows = dealt(patients)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        layers = matrix_files(patients, Path(folder))
        head = study(rows, patients, HEAD, head=True)
        labelled = encoded(head, rows, layers)
        for fold in range(folds):
            training, held_out = folded(labelled, rows, fold)
            one = {"principal components": components(training, held_out)}
            untrained = initial_tensors(head.model, input_size(head.data))
            encoder = {name.removeprefix("risk."): array for name, array in untrained.items()}
            one["head, untrained encoder"] = headed(head, encoder, training, held_out)
            for name, plan in PLANS.items():
                spec = study(rows, patients, plan, head=False)
                model = pooled(spec, training, steps=plan.rounds, rate=plan.rate, decay=plan.decay)
                one[f"{name}, no noise"] = explained(spec, model, held_out)
                if noise:
                    private = distributed(spec, training)
                    one[f"{name}, epsilon 8"] = explained(spec, private, held_out)
                if name == "plain":
                    one["head, encoder"] = headed(head, model, training, held_out)
            for name, value in one.items():
                found.setdefault(name, []).append(value)
            print(cancer, fold, json.dumps(one), flush=True)
    return {
        name: {
            "mean": float(np.mean(each)),
            "sd": float(np.std(each, ddof=1)) if len(each) > 1 else None,
        }
        for name, each in found.items()
    } | {"privacy": privacy(study(rows, patients, PLANS["plain"], head=False))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cancer", choices=("luad", "blca"))
    parser.add_argument("--folds", type=int, default=FOLDS)
    parser.add_argument("--no-noise", action="store_true", help="without the runs in epsilon 8")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    start = time.perf_counter()
    result: dict[str, Any] = {
        **facts(("torch", "numpy", "opacus")),
        "epsilon": EPSILON,
        "cancers": {},
    }
    for cancer in (options.cancer,) if options.cancer else ("luad", "blca"):
        result["cancers"][cancer] = bench(
            cancer, data=options.data, folds=options.folds, noise=not options.no_noise
        )
        result["seconds"] = time.perf_counter() - start
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
