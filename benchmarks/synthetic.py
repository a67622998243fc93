"""Synthetic patients of the four heart-disease hospitals: train on them, test on real ones.

    python -m benchmarks.synthetic --data FOLDER --draws 5 --out runs/bench-synthetic.json

A variational autoencoder and a GAN of the heart study's ten columns and its outcome, by the sites'
trainer and the coordinator's steps (distributed noise) at epsilon 4 and 8, and without noise. From
each model as many rows are drawn as there are training patients; logistic regression is fitted on
them and judged on all real held-out patients. Beside it: the same on real training patients, on
rows whose columns were drawn each by itself from the pooled training patients (what a table without
any relation gives), and each hospital's own check for copies. The plan was chosen among three by
what its rows are worth on training patients.
"""

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from benchmarks.facts import facts
from benchmarks.omics_runs import distributed, pooled, privacy
from fedward_client.synthetic_check import check_json, check_synthetic
from fedward_common.arrays import Tensors
from fedward_common.ids import SiteId
from fedward_common.models.autoencoder import Autoencoder
from fedward_common.models.gan import Gan
from fedward_common.models.registry import build_model, load_tensors
from fedward_common.privacy.accounting import calibrate_noise_multiplier
from fedward_common.privacy.randomness import Csprng
from fedward_common.study.encoding import PatientRecords, encode_table
from fedward_common.study.files import read_toml
from fedward_common.study.inputs import inputs_of
from fedward_common.study.spec import StudySpec
from fedward_common.study.table_decoding import drawn_rows
from fedward_common.study.tabular import TabularData
from fedward_server.sandbox.baselines import pool
from fedward_server.sandbox.datasets import import_fed_heart
from fedward_server.sandbox.made_up_rows import fit_generator

STUDY: Final = Path(__file__).parents[1] / "deploy" / "studies" / "heart.toml"
OUTCOME: Final = "num"
EPSILONS: Final = (4.0, 8.0)
PLANS: Final[Mapping[str, Mapping[str, Any]]] = {
    "autoencoder": {
        "rounds": 200,
        "q": 0.5,
        "clip": 0.3,
        "hidden": [16],
        "code": 2,
        "task": {"kind": "autoencoder", "spread": 0.15, "beta": 0.2},
        "model": "variational-autoencoder",
        "training": {"learning_rate": 0.03, "optimizer": "adam"},
        "average_last": 20,
    },
    "gan": {
        "rounds": 200,
        "q": 0.5,
        "clip": 0.5,
        "hidden": [32],
        "code": 4,
        "task": {"kind": "generation", "generator_rate": 0.005},
        "model": "gan",
        "training": {"learning_rate": 1.0},
        "average_last": 50,
    },
}
PACKAGES: Final = ("numpy", "torch", "scikit-learn", "opacus")
Rows = Sequence[Mapping[str, str]]


def study(
    patients: Mapping[SiteId, int], *, epsilon: float, kind: str = "autoencoder"
) -> StudySpec:
    """The generator's study: the heart study's columns, and its outcome as one more."""
    plan = PLANS[kind]
    data = dict(read_toml(STUDY)["data"])
    del data["label"]
    outcome = {"name": OUTCOME, "type": "category", "values": ["0", "1", "2", "3", "4"]}
    data["columns"] = [*data["columns"], outcome]
    delta = 1e-4
    return StudySpec.model_validate(
        {
            "id": "synthetic-heart",
            "title": "Synthetic heart patients",
            "task": plan["task"],
            "model": {
                "name": plan["model"],
                "hidden": plan["hidden"],
                "shape": [plan["code"]],
                "initial_seed": 1,
            }
            | ({"categories": _categories(data)} if kind == "gan" else {}),
            "data": data,
            "dp": {
                "kind": "dp-sgd",
                "epsilon": epsilon,
                "delta": delta,
                "noise_multiplier": calibrate_noise_multiplier(
                    epsilon=epsilon,
                    epsilon_is="admission",
                    delta=delta,
                    sampling_probability=plan["q"],
                    steps=plan["rounds"],
                ),
                "clip_norm": plan["clip"],
                "sampling_probability": plan["q"],
                "steps": plan["rounds"],
                "max_records_per_patient": 1,
                "placement": "distributed",
            },
            "training": plan["training"],
            "aggregation": {"name": "fedavg", "average_last": plan["average_last"]},
            "rounds": plan["rounds"],
            "local_steps": 1,
            "quorum": len(patients),
            "secure_sum": True,
            "deadline_seconds": 60,
            "sites": [
                {
                    "id": site,
                    "patients": count,
                    "key_sha256": f"{number:064x}",
                    "node_key_sha256": f"{number + 100:064x}",
                }
                for number, (site, count) in enumerate(patients.items(), start=1)
            ],
            "lead_key_sha256": "f" * 64,
        }
    )


def _categories(data: Mapping[str, Any]) -> list[list[int]]:
    found = inputs_of(TabularData.model_validate(data)).categories
    return [list(places) for places in found]


def raw_tables(data: Path, folder: Path) -> dict[SiteId, list[dict[str, str]]]:
    """Every hospital's rows as text."""
    found = {}
    for site, path in import_fed_heart(data, folder).items():
        with path.open(encoding="utf-8", newline="") as file:
            found[site] = list(csv.DictReader(file))
    return found


def rows_of(spec: StudySpec, weights: Tensors, count: int) -> Rows:
    """Synthetic rows, as `fedward-server synthesize` draws them."""
    data = spec.data
    if not isinstance(data, TabularData):
        raise TypeError("expected a table")
    model = build_model(spec.model, data.input_size).eval()
    if not isinstance(model, Autoencoder | Gan):
        raise TypeError("expected a generator")
    load_tensors(model, weights)
    source = Csprng()
    codes = torch.from_numpy(source.normal(count * model.latent)).float()
    with torch.inference_mode():
        made = model.decode(codes.reshape(count, -1)).numpy()
    return drawn_rows(data, made, spread=getattr(spec.task, "spread", 0.0), source=source)


def shuffled(rows: Rows) -> Rows:
    """Rows whose columns are those of `rows`, each shuffled by itself."""
    draws = np.random.default_rng()
    columns = {name: draws.permutation([row[name] for row in rows]) for name in rows[0]}
    return [
        {name: str(column[number]) for name, column in columns.items()}
        for number in range(len(rows))
    ]


def judged(schema: TabularData, rows: Rows, held_out: PatientRecords) -> float:
    """The AUC on real held-out patients of logistic regression that was fitted on `rows`."""
    named = [{**row, "patient_id": f"p{n}", "split": "train"} for n, row in enumerate(rows)]
    seen = encode_table(schema, named, part="train")
    if len(set(seen.labels)) < 2:
        return 0.5
    fitted = LogisticRegression(max_iter=2000).fit(seen.features, seen.labels)
    chances = fitted.predict_proba(held_out.features)[:, 1]
    return float(roc_auc_score(held_out.labels, chances))


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, SD and least."""
    return {
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "min": min(values),
        "runs": len(values),
    }


def checked(
    spec: StudySpec, rows: Rows, tables: Mapping[SiteId, Mapping[str, PatientRecords]]
) -> dict[str, Any]:
    """What each hospital's own check says."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "synthetic.csv"
        names = list(rows[0])
        lines = [",".join(names), *(",".join(row[name] for name in names) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return {
            site: check_json(
                check_synthetic(spec, path, training=one["train"], held_out=one["test"], least=10)
            )
            for site, one in tables.items()
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--only", help="arms whose name holds this")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    start = time.perf_counter()
    document = read_toml(STUDY)
    labelled = TabularData.model_validate(document["data"])
    with tempfile.TemporaryDirectory() as folder:
        tables = raw_tables(options.data, Path(folder))
    planned = {SiteId(one["id"]): int(one["patients"]) for one in document["sites"]}
    specs = {
        (kind, epsilon): study(planned, epsilon=epsilon, kind=kind)
        for kind in PLANS
        for epsilon in EPSILONS
    }
    schema = specs["autoencoder", EPSILONS[0]].data
    if not isinstance(schema, TabularData):
        raise TypeError("expected a table")
    own = {
        site: {part: encode_table(schema, rows, part=part) for part in ("train", "test")}  # type: ignore[arg-type]
        for site, rows in tables.items()
    }
    training = {site: one["train"] for site, one in own.items()}
    everyone = [
        {**row, "patient_id": f"{site}{row['patient_id']}"}
        for site, rows in tables.items()
        for row in rows
    ]
    held_out = encode_table(labelled, everyone, part="test")
    names = [column.name for column in schema.columns]
    real = [
        {name: row[name] for name in names}
        for row in everyone
        if row["split"] == "train" and not {row[name] for name in names} & {"", "?"}
    ]
    found: dict[str, Any] = {
        "real": spread([judged(labelled, real, held_out)]),
        "columns by themselves": spread(
            [judged(labelled, shuffled(real), held_out) for _ in range(options.draws)]
        ),
    }
    arms = [
        (f"{kind}, {'no noise' if epsilon is None else f'epsilon {epsilon:g}'}", kind, epsilon)
        for kind in PLANS
        for epsilon in (None, *EPSILONS)
    ]
    for name, kind, epsilon in arms:
        if options.only and options.only not in name:
            continue
        aucs = []
        for _ in range(options.draws):
            spec = specs[kind, epsilon or EPSILONS[0]]
            if epsilon is not None:
                weights = distributed(spec, training)
            elif kind == "gan":
                weights = fit_generator(spec, pool(list(training.values())))
            else:
                weights = pooled(spec, training, steps=600, rate=1e-2, decay=0.0)
            rows = rows_of(spec, weights, len(real))
            aucs.append(judged(labelled, rows, held_out))
        found[name] = spread(aucs) | {"check": checked(spec, rows, own)}
        if epsilon is not None:
            found[name] |= privacy(spec)
        print(name, json.dumps(found[name]), flush=True)
    result = {
        **facts(PACKAGES),
        "patients": {"training": len(real), "held_out": held_out.patients},
        "auc": found,
        "seconds": time.perf_counter() - start,
    }
    print(json.dumps({name: found[name]["mean"] for name in found}))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
