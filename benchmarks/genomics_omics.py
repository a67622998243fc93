"""Sequences, molecules and omics over hospitals, with and without noise.

    python -m benchmarks.genomics_omics splice --data FOLDER --out runs/bench-splice.json
    python -m benchmarks.genomics_omics tox21 --data FOLDER --out runs/bench-tox21.json

Real data, each site's own encoding, the sites' trainer and the coordinator's steps in this process
(`omics_runs`). Sites and held-out records are dealt by public hashes. First trials read
held-out records of other random splits of the same data; the LSTM's plan at epsilon 8 is the best
of 25 on training windows of which a quarter was held apart. Without noise plans are one pass of
Adam a round. Epsilon is of the whole training; splice windows and molecules are nobody's, so there
it is per record.
"""

import argparse
import csv
import gzip
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.facts import facts
from benchmarks.omics_runs import Tables, averaged, distributed, privacy
from fedward_common.ids import SiteId
from fedward_common.privacy.accounting import calibrate_noise_multiplier
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.profile_encoding import LayerFile
from fedward_common.study.row_encoding import encode_rows
from fedward_common.study.row_readers import readers_of
from fedward_common.study.spec import StudySpec
from fedward_server.sandbox.figures import model_figures

Rows = Mapping[SiteId, Sequence[Mapping[str, str]]]
EPSILON: Final = 8.0
PACKAGES: Final = ("torch", "numpy", "rdkit", "opacus")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A model with what was fixed for it: without noise, and within epsilon 8."""

    model: Mapping[str, Any]
    rounds: int
    rate: float
    decay: float
    private: Mapping[str, Any] | None = None
    data: Mapping[str, Any] | None = None


SPLICE: Final = {
    "logistic regression": Plan(
        model={"name": "linear", "outputs": 3},
        rounds=30,
        rate=1e-2,
        decay=1e-2,
        private={"rounds": 100, "q": 0.25, "clip": 1.0, "rate": 0.05},
    ),
    "LSTM": Plan(
        model={"name": "lstm", "hidden": [32], "steps": 10, "outputs": 3},
        rounds=40,
        rate=5e-3,
        decay=1e-2,
        private={
            "rounds": 200, "q": 0.25, "clip": 0.1, "rate": 0.03, "hidden": [16], "steps": 2,
        },
    ),
    "1-D CNN": Plan(
        model={"name": "cnn1d", "hidden": [32, 32], "shape": [4, 60], "outputs": 3},
        rounds=40,
        rate=3e-3,
        decay=1e-2,
        private={"rounds": 100, "q": 0.25, "clip": 1.0, "rate": 0.01},
    ),
    "transformer of 3-mers": Plan(
        model={
            "name": "sequence-transformer", "hidden": [32, 64], "shape": [1, 66], "outputs": 3,
        },
        rounds=60,
        rate=5e-3,
        decay=1e-2,
        private={
            "rounds": 200,
            "q": 0.25,
            "clip": 0.3,
            "rate": 0.06,
            "hidden": [32, 16],
            "backend": "opacus",
        },
        data={"encoding": {"kind": "k-mers", "k": 3}, "ambiguous": "unknown"},
    ),
}  # fmt: skip
TOX21: Final = {
    "fingerprint MLP": Plan(
        model={"name": "mlp", "hidden": [256], "outputs": 12},
        rounds=8,
        rate=1e-3,
        decay=0.1,
        private={"rounds": 600, "q": 0.2, "clip": 0.1, "rate": 5e-3, "hidden": [32]},
    ),
    "graph network": Plan(
        model={"name": "graph-network", "hidden": [64, 64, 128], "shape": [24, 60], "outputs": 12},
        rounds=30,
        rate=2e-3,
        decay=1e-2,
        private={"rounds": 100, "q": 0.1, "clip": 0.5, "rate": 0.01},
        data={"encoding": {"kind": "graph", "atoms": 60}},
    ),
}


def share(text: str, *, salt: str) -> float:
    """A public number in [0, 1) of a text."""
    digest = hashlib.sha256(f"{salt}|{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def splice_rows(data: Path) -> Rows:
    """The windows over three sites; equal windows stay together, a quarter is held out."""
    sites: dict[SiteId, list[dict[str, str]]] = {SiteId(f"site-{k}"): [] for k in range(3)}
    names = {"EI": "donor", "IE": "acceptor", "N": "neither"}
    with gzip.open(data / "splice.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            letters = row["sequence"].strip()
            place = int(3 * share(letters, salt="splice/sites/v1"))
            held_out = share(letters, salt="splice/held-out/v1") < 0.25
            sites[SiteId(f"site-{place}")].append(
                {
                    "sequence": letters,
                    "site": names[row["label"].strip()],
                    "split": "test" if held_out else "train",
                }
            )
    return sites


def splice_study(rows: Rows, plan: Plan) -> StudySpec:
    """The study of one model of splice junctions."""
    data = {
        "kind": "sequence",
        "no_patient_key": True,
        "alphabet": "dna",
        "length": 60,
        "encoding": {"kind": "one-hot"},
        "label": {"column": "site", "classes": ["donor", "acceptor", "neither"]},
        "split": {"kind": "column", "column": "split"},
    }
    return study_of("splice", rows, plan, task="sequence-classification", data=data, genomic=True)


def tox_rows(data: Path) -> Rows:
    """Tox21 over four sites by scaffold: each has its own chemistry; every fifth is held out."""
    from rdkit import Chem, rdBase  # noqa: PLC0415 - an extra

    from fedward_common.study.molecule_encoding import scaffold  # noqa: PLC0415

    sites: dict[SiteId, list[dict[str, str]]] = {SiteId(f"site-{k}"): [] for k in range(4)}
    with gzip.open(data / "tox21.csv.gz", "rt") as file, rdBase.BlockLogs():
        for row in csv.DictReader(file):
            molecule = Chem.MolFromSmiles(row["smiles"])
            group = scaffold(molecule) if molecule is not None else ""
            place = int(4 * share(group, salt="tox21/sites/v1"))
            held_out = share(row["mol_id"], salt="tox21/held-out/v1") < 0.2
            split = "test" if held_out else "train"
            sites[SiteId(f"site-{place}")].append({**row, "split": split})
    return sites


def tox_study(rows: Rows, plan: Plan) -> StudySpec:
    """The study of one model of Tox21."""
    first = next(iter(rows.values()))[0]
    data = {
        "kind": "molecule",
        "no_patient_key": True,
        "encoding": {"kind": "morgan", "radius": 2, "bits": 1024},
        "label": {"answers": [name for name in first if name.startswith(("NR-", "SR-"))]},
        "split": {"kind": "column", "column": "split"},
    }
    return study_of("tox21", rows, plan, task="molecule-property", data=data)


def study_of(
    name: str,
    rows: Rows,
    plan: Plan,
    *,
    task: str | Mapping[str, Any],
    data: Mapping[str, Any],
    unit: str = "record",
    **more: Any,
) -> StudySpec:
    """A study over the sites of `rows`, with the noise of epsilon 8 by admission."""
    patients = {site: sum(row["split"] == "train" for row in own) for site, own in rows.items()}
    private = {"rounds": 10, "q": 0.2, "clip": 1.0, "rate": 0.01} | dict(plan.private or {})
    model = dict(plan.model)
    delta = float(f"{1 / (10 * sum(patients.values())) * 0.99:.3g}")
    noise = calibrate_noise_multiplier(
        epsilon=EPSILON,
        epsilon_is="admission",
        delta=delta,
        sampling_probability=private["q"],
        steps=private["rounds"],
    )
    return StudySpec.model_validate(
        {
            "id": name,
            "title": name,
            "task": {"kind": task} if isinstance(task, str) else task,
            "model": model | {"initial_seed": 1},
            "data": {**data, **(plan.data or {})},
            "dp": {
                "kind": "dp-sgd",
                "unit": unit,
                "epsilon": EPSILON,
                "delta": delta,
                "noise_multiplier": noise,
                "clip_norm": private["clip"],
                "sampling_probability": private["q"],
                "steps": private["rounds"],
                "max_records_per_patient": 1,
                "placement": "distributed",
            },
            "training": {"learning_rate": private["rate"], "optimizer": "adam"},
            "aggregation": {"name": "fedavg", "average_last": max(1, private["rounds"] // 5)},
            "rounds": private["rounds"],
            "local_steps": 1,
            "quorum": len(rows),
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
            **more,
        }
    )


def encoded(study: StudySpec, rows: Rows, part: Any, *, layers: Sequence[LayerFile] = ()) -> Tables:
    """What every site's source gives."""
    schema = study.data
    if not isinstance(schema, LabelledRows):
        raise TypeError("expected labelled rows")
    readers = readers_of(schema, layers=layers)
    return {
        site: encode_rows(schema, own, readers.features, part=part, part_of=readers.part_of)[0]
        for site, own in rows.items()
    }


def figures(study: StudySpec, model: Any, held_out: Tables) -> dict[str, float]:
    """The exact figures over all held-out records."""
    pooled = model_figures(study, model, held_out).pooled
    found = {"accuracy": pooled.accuracy, "auc": pooled.auc, "majority": pooled.majority}
    found |= {name: value for name, value in pooled.more.items() if name == "c_index"}
    return {name: float(value) for name, value in found.items() if value is not None}


def spread(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Mean, SD and least of every figure."""
    return {
        name: {
            "mean": float(np.mean([run[name] for run in runs])),
            "sd": float(np.std([run[name] for run in runs], ddof=1)) if len(runs) > 1 else None,
            "min": float(min(run[name] for run in runs)),
        }
        for name in runs[0]
    } | {"runs": len(runs)}


def smaller(plan: Plan) -> Plan:
    """The plan with the network that is trained within epsilon 8, where that is another one."""
    own = {name: one for name, one in (plan.private or {}).items() if name in {"hidden", "steps"}}
    if not own:
        return plan
    model = {**plan.model, **own}
    return Plan(
        model=model,
        rounds=plan.rounds,
        rate=plan.rate,
        decay=plan.decay,
        private=plan.private,
        data=plan.data,
    )


def bench(
    plans: Mapping[str, Plan],
    rows: Rows,
    make: Callable[[Rows, Plan], StudySpec],
    *,
    options: argparse.Namespace,
    layers: Sequence[LayerFile] = (),
) -> None:
    """Every plan without noise over seeds and within epsilon 8 over draws, written as it goes."""
    result: dict[str, Any] = {
        **facts(PACKAGES),
        "sites": {
            site: {
                part: sum(row["split"] == part for row in own) for part in ("train", "test")
            }
            for site, own in rows.items()
        },
        "models": {},
    }  # fmt: skip
    for name, plan in plans.items():
        if options.only and options.only not in name:
            continue
        study = make(rows, plan)
        training = encoded(study, rows, "train", layers=layers)
        held_out = encoded(study, rows, "test", layers=layers)
        start = time.perf_counter()
        runs = [
            figures(
                study,
                averaged(
                    study,
                    training,
                    rounds=plan.rounds,
                    rate=plan.rate,
                    decay=plan.decay,
                    seed=seed,
                ),
                held_out,
            )
            for seed in range(1, options.seeds + 1)
        ]
        found: dict[str, Any] = {}
        if runs:
            found["without_noise"] = spread(runs)
            print(name, json.dumps(found["without_noise"]), flush=True)
        if plan.private is not None and options.draws:
            own = make(rows, smaller(plan))
            backend = plan.private.get("backend", "bookkeeping")
            drawn = [
                figures(own, distributed(own, training, backend=backend), held_out)
                for _ in range(options.draws)
            ]
            found["epsilon_8"] = spread(drawn) | privacy(own)
            print(name, json.dumps(found["epsilon_8"]), flush=True)
        result["models"][name] = found | {"seconds": time.perf_counter() - start}
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", choices=("splice", "tox21"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5, help="runs without noise")
    parser.add_argument("--draws", type=int, default=3, help="runs within epsilon 8")
    parser.add_argument("--only", help="models whose name holds this")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.set == "splice":
        bench(SPLICE, splice_rows(options.data), splice_study, options=options)
    else:
        bench(TOX21, tox_rows(options.data), tox_study, options=options)


if __name__ == "__main__":
    main()
