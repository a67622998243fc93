"""Survival on omics over the hospitals of TCGA: clinical columns, RNA, copy number, and all fused.

    python -m benchmarks.genomics_tcga --data FOLDER --out runs/bench-tcga.json

The six hospitals with most patients are sites; the set does not say where the others are, so they
are two groups by a public hash of their code. Cox's model (piecewise-constant hazards, linear) by
steps of the pooled data, without noise and within epsilon 8 with distributed noise; five folds by a
public hash, the mean of Harrell's C of each fold's held-out patients. Steps, rates and the weight
of layers were chosen by looking at these same folds: no other patients are there, so the figures
without noise are a little too good. A fold is a study of its own.

Within epsilon 8 the rate is chosen in each fold on two thirds and one third of its training
patients (not charged), before the held-out ones are read. Genes are not: to choose them on these
patients would be a release of its own. The arms of few genes take those that went with survival in
the other cancer, whose patients count as public there.
"""

import argparse
import csv
import json
import lzma
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.facts import facts
from benchmarks.genomics_omics import EPSILON, Plan, Rows, share, study_of
from benchmarks.omics_runs import Tables, distributed, pooled, privacy, rehearsed
from fedward_common.ids import SiteId
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.profile_encoding import LayerFile
from fedward_common.study.row_encoding import encode_rows
from fedward_common.study.row_readers import readers_of
from fedward_common.study.spec import StudySpec
from fedward_server.sandbox.figures import model_figures

FOLDS: Final = 5
LARGEST: Final = 6
DAYS_A_MONTH: Final = 30.4375
CUTS: Final = (183.0, 365.0, 548.0, 730.0, 1096.0, 1461.0, 1826.0, 3652.0)
MODEL: Final = {"name": "proportional-hazards", "outputs": len(CUTS)}
WEIGHT: Final = 0.1
"""Of thousands of genes beside two clinical columns."""
PRIVATE: Final = {"rounds": 30, "q": 0.5, "clip": 0.5, "rate": 0.01}
RATES: Final = (0.003, 0.01, 0.03, 0.1)
"""Among which each fold's training patients choose, within epsilon 8."""
FEW: Final = 16
CLINICAL: Final = [
    {"name": "age", "type": "number", "unit": "years", "low": 20.0, "high": 90.0, "fill": 65.0},
    {"name": "is_female", "type": "category", "values": ["0", "1"], "fill": "0"},
]
ARMS: Final[Mapping[str, tuple[bool, Mapping[str, float], Plan]]] = {
    "clinical": (True, {}, Plan(model=MODEL, rounds=300, rate=0.02, decay=0.0, private=PRIVATE)),
    "RNA": (
        False,
        {"rna": 1.0},
        Plan(model=MODEL, rounds=100, rate=1e-3, decay=0.1, private=PRIVATE),
    ),
    "copy number": (False, {"cn": 1.0}, Plan(model=MODEL, rounds=100, rate=1e-3, decay=0.1)),
    "fusion": (
        True,
        {"rna": WEIGHT, "cn": WEIGHT},
        Plan(model=MODEL, rounds=200, rate=3e-3, decay=0.1, private=PRIVATE),
    ),
    "RNA, few genes": (
        False,
        {"rna": 1.0},
        Plan(model=MODEL, rounds=300, rate=0.02, decay=0.1, private=PRIVATE),
    ),
    "clinical and few genes": (
        True,
        {"rna": 1.0},
        Plan(model=MODEL, rounds=300, rate=0.02, decay=0.1, private=PRIVATE),
    ),
}
"""Whether with clinical columns, the layers with their weights, and the plan."""
SUFFIXES: Final = {"rna": ("_rnaseq", "z-score"), "cn": ("_cnv", "copy-number")}


def read(data: Path, cancer: str) -> list[dict[str, str]]:
    """The patients of a cohort."""
    with lzma.open(data / f"tcga_{cancer}.csv.xz", "rt") as file:
        return list(csv.DictReader(file))


def dealt(patients: Sequence[Mapping[str, str]]) -> Rows:
    """The patients over sites, with the columns of a study."""
    sizes = Counter(row["tss"] for row in patients)
    largest = [code for code, _ in sorted(sizes.items(), key=lambda one: (-one[1], one[0]))]
    sites: dict[SiteId, list[dict[str, str]]] = {}
    for row in patients:
        code = row["tss"]
        name = f"tss-{code.lower()}"
        if code not in largest[:LARGEST]:
            name = f"others-{int(2 * share(code, salt='tcga/groups/v1'))}"
        sites.setdefault(SiteId(name), []).append(
            {
                "patient_id": row["case_id"],
                "age": row["age"],
                "is_female": str(int(float(row["is_female"]))),
                "days": f"{float(row['survival_months']) * DAYS_A_MONTH:.1f}",
                "dead": str(int(float(row["censorship"]) == 0)),
                "split": "train",
            }
        )
    return sites


def matrix_files(patients: Sequence[Mapping[str, str]], folder: Path) -> list[LayerFile]:
    """The layers' matrices as files, as a site has them."""
    found = []
    for layer, (suffix, scale) in SUFFIXES.items():
        columns = genes(patients, layer)
        path = folder / f"{layer}.csv"
        with path.open("w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["id", *columns])
            for row in patients:
                lines.writerow([row["case_id"], *(row[f"{gene}{suffix}"] for gene in columns)])
        found.append(
            LayerFile(layer=layer, path=path, scale=scale, identifiers="hgnc")  # type: ignore[arg-type]
        )
    return found


def genes(patients: Sequence[Mapping[str, str]], layer: str) -> list[str]:
    """The genes of a layer."""
    suffix = SUFFIXES[layer][0]
    return [name.removesuffix(suffix) for name in patients[0] if name.endswith(suffix)]


def few_genes(others: Sequence[Mapping[str, str]], known: Sequence[str]) -> list[str]:
    """The genes of `known` whose expression went most with survival among `others` (Cox's score of
    each gene by itself, in units of its SD).
    """
    names = sorted(set(genes(others, "rna")) & set(known))
    values = np.array([[float(row[f"{name}_rnaseq"]) for name in names] for row in others])
    values = np.clip(values, -4.0, 4.0)
    order = np.argsort([-float(row["survival_months"]) for row in others], kind="stable")
    values, dead = values[order], np.array([float(others[k]["censorship"]) == 0 for k in order])
    at_risk = np.arange(1, len(values) + 1)[:, None]  # the longest first: all before are at risk
    mean = np.cumsum(values, axis=0) / at_risk
    spread = np.cumsum(values**2, axis=0) / at_risk - mean**2
    score = (values - mean)[dead].sum(axis=0) / np.sqrt(spread[dead].sum(axis=0) + 1e-9)
    return [names[k] for k in np.argsort(-np.abs(score), kind="stable")[:FEW]]


def study(
    rows: Rows,
    arm: str,
    patients: Sequence[Mapping[str, str]],
    *,
    few: Sequence[str] = (),
    rate: float | None = None,
) -> StudySpec:
    """The study of one arm, with `rate` within epsilon 8 where it is given."""
    clinical, layers, plan = ARMS[arm]
    if rate is not None:
        plan = replace(plan, private={**(plan.private or {}), "rate": rate})
    data = {
        "kind": "profiles",
        "missing": "fill",
        "clinical": CLINICAL if clinical else [],
        "layers": [
            {
                "name": name,
                "scale": SUFFIXES[name][1],
                "genes": list(few) if "few" in arm else genes(patients, name),
                "weight": weight,
            }
            for name, weight in layers.items()
        ],
        "label": {"column": "days", "event_column": "dead", "longest_days": CUTS[-1]},
        "split": {"kind": "column", "column": "split"},
    }
    return study_of(
        "tcga",
        rows,
        plan,
        task={
            "kind": "survival",
            "likelihood": "proportional-hazards",
            "cuts": list(CUTS),
            "horizon_days": 1096.0,
        },
        data=data,
        unit="patient",
        genomic=True,
    )


def encoded(spec: StudySpec, rows: Rows, layers: Sequence[LayerFile]) -> Tables:
    """Every patient of every site."""
    schema = spec.data
    if not isinstance(schema, LabelledRows):
        raise TypeError("expected labelled rows")
    readers = readers_of(schema, layers=layers)
    found = {}
    for site, own in rows.items():
        found[site], absent = encode_rows(schema, own, readers.features, part="train")
        if absent:
            raise ValueError("expected every patient to fit")
    return found


def folded(tables: Tables, rows: Rows, fold: int) -> tuple[Tables, Tables]:
    """Training and held-out patients of a fold."""
    training, held_out = {}, {}
    for site, records in tables.items():
        place = [int(FOLDS * share(row["patient_id"], salt="tcga/folds/v1")) for row in rows[site]]
        chosen = np.array(place) == fold
        training[site], held_out[site] = some(records, ~chosen), some(records, chosen)
    return training, held_out


def some(records: PatientRecords, chosen: Any) -> PatientRecords:
    """The records of some patients, one each."""
    return PatientRecords(
        features=records.features[chosen],
        labels=records.labels[chosen],
        patient=np.arange(int(chosen.sum()), dtype=np.int64),
    )


def rated(specs: Mapping[float, StudySpec], training: Tables) -> StudySpec:
    """The study whose rate is the best for a third of the training patients."""
    part = {site: np.arange(one.patients) % 3 == 0 for site, one in training.items()}
    learned = {site: some(one, ~part[site]) for site, one in training.items()}
    judged = {site: some(one, part[site]) for site, one in training.items()}
    worth = {rate: c_index(spec, rehearsed(spec, learned), judged) for rate, spec in specs.items()}
    return specs[max(worth, key=lambda rate: worth[rate])]


def bench(cancer: str, *, data: Path, draws: int, only: str | None) -> dict[str, Any]:
    """The C-indices of every arm."""
    patients = read(data, cancer)
    rows = dealt(patients)
    other = read(data, {"luad": "blca", "blca": "luad"}[cancer])
    few = few_genes(other, genes(patients, "rna"))
    found: dict[str, Any] = {
        "sites": {site: len(own) for site, own in rows.items()},
        "deaths": sum(row["dead"] == "1" for own in rows.values() for row in own),
        "few_genes": few,
        "arms": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        layers = matrix_files(patients, Path(folder))
        for arm, (_, _, plan) in ARMS.items():
            if only is not None and only not in arm:
                continue
            spec = study(rows, arm, patients, few=few)
            rates = {rate: study(rows, arm, patients, few=few, rate=rate) for rate in RATES}
            tables = encoded(spec, rows, layers)
            plain, noised = [], []
            for fold in range(FOLDS):
                training, held_out = folded(tables, rows, fold)
                model = pooled(spec, training, steps=plan.rounds, rate=plan.rate, decay=plan.decay)
                plain.append(c_index(spec, model, held_out))
                if plan.private is not None and draws:
                    private = rated(rates, training)
                    noised += [
                        c_index(private, distributed(private, training), held_out)
                        for _ in range(draws)
                    ]
            one: dict[str, Any] = {"without_noise": spread(plain), "inputs": spec.data.input_size}  # type: ignore[attr-defined]
            if noised:
                one["epsilon_8"] = spread(noised) | privacy(spec)
            found["arms"][arm] = one
            print(cancer, arm, json.dumps(one), flush=True)
    return found


def c_index(spec: StudySpec, model: Any, held_out: Tables) -> float:
    """Harrell's C over all sites' held-out patients together."""
    return float(model_figures(spec, model, held_out).pooled.more["c_index"])


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and SD over the folds (and draws)."""
    return {"c_index": float(np.mean(values)), "sd": float(np.std(values, ddof=1))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=1, help="in each fold, within epsilon 8")
    parser.add_argument("--cancer", choices=("luad", "blca"))
    parser.add_argument("--only", help="arms whose name holds this")
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
            cancer, data=options.data, draws=options.draws, only=options.only
        )
        result["seconds"] = time.perf_counter() - start
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
