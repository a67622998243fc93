"""Distant metastasis of breast cancer (GSE7390): clinical columns, 76 genes, and both fused.

    python -m benchmarks.genomics_breast --wheels FOLDER --out runs/bench-breast-genes.json

198 patients (TRANSBIG; Desmedt 2007) over four sites by a public hash: the set does not say which
hospital a patient is of. Cox's model (piecewise-constant hazards, linear) by steps of the pooled
data without noise, and within epsilon 8 with distributed noise. A run deals patients anew into
five folds; its figure is the mean of Harrell's C of the folds. In each fold the plan is
chosen among a few by three inner folds of its training patients (the choice is not charged), then
the held-out patients are read once. The data file comes out of the package scikit-survival (GPL: an
oracle, no part of Fedward); without it nothing runs.
"""

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from scipy.io import arff

from benchmarks.facts import facts
from benchmarks.genomics_omics import EPSILON, Plan, Rows, share, study_of
from benchmarks.genomics_tcga import c_index, encoded, some
from benchmarks.omics_runs import Tables, distributed, pooled, privacy, rehearsed
from benchmarks.wheel_data import packaged, skipped
from fedward_common.ids import SiteId
from fedward_common.study.profile_encoding import LayerFile
from fedward_common.study.spec import StudySpec

PROJECT: Final = "scikit-survival"
MEMBER: Final = "datasets/data/breast_cancer_GSE7390-metastasis.arff"
SITES: Final = 4
FOLDS: Final = 5
INNER: Final = 3
CUTS: Final = (730.0, 1095.0, 1460.0, 1826.0, 2922.0, 3652.0)
MODEL: Final = {"name": "proportional-hazards", "outputs": len(CUTS)}
CLINICAL: Final = [
    {"name": "age", "type": "number", "unit": "years", "low": 20.0, "high": 80.0},
    {"name": "size", "type": "number", "unit": "cm", "low": 0.0, "high": 5.0},
    {"name": "grade", "type": "category", "values": ["unknown", "1", "2", "3"]},
    {"name": "er", "type": "category", "values": ["negative", "positive"]},
]
GRADES: Final = {
    "well differentiated": "1",
    "intermediate": "2",
    "poorly differentiated": "3",
    "unkown": "unknown",  # as the file spells it
}
LIMITS: Final = (2.0, 15.0)
"""Of the logarithms of a microarray's intensities, which no patient decides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Try:
    """A plan that may be chosen: how genes weigh, and how long and fast it learns."""

    weight: float
    steps: int
    rate: float
    decay: float = 0.0


ARMS: Final = {"clinical": (True, False), "genes": (False, True), "fusion": (True, True)}
PLAIN: Final = tuple(
    Try(weight=weight, steps=steps, rate=0.01, decay=decay)
    for weight in (1.0, 0.3)
    for steps, decay in ((100, 0.1), (300, 0.1), (300, 1.0))
)
PRIVATE: Final = tuple(
    Try(weight=weight, steps=30, rate=rate) for weight in (1.0, 0.3) for rate in (0.01, 0.03)
)
Fit = Callable[[StudySpec, Tables, Try], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cohort:
    """The patients over the sites, and their genes as the site's file has them."""

    rows: Rows
    genes: Sequence[str]
    layer: LayerFile


def cohort(content: bytes, folder: Path) -> Cohort:
    """The patients out of the ARFF file."""
    records, about = arff.loadarff(io.StringIO(content.decode("utf-8")))
    genes = [name for name in about.names() if name.startswith("X")]
    sites: dict[SiteId, list[dict[str, str]]] = {SiteId(f"site-{k}"): [] for k in range(SITES)}
    lines = [",".join(["id", *genes])]
    for number, one in enumerate(records):
        patient = f"p{number}"
        site = SiteId(f"site-{int(SITES * share(patient, salt='gse7390/sites/v1'))}")
        sites[site].append(
            {
                "patient_id": patient,
                "age": f"{one['age']:g}",
                "size": f"{one['size']:g}",
                "grade": GRADES[one["grade"].decode()],
                "er": one["er"].decode(),
                "days": f"{one['t.tdm']:g}",
                "metastasis": one["e.tdm"].decode(),
                "split": "train",
            }
        )
        lines.append(",".join([patient, *(f"{one[gene]:.6f}" for gene in genes)]))
    path = folder / "genes.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    layer = LayerFile(layer="genes", path=path, scale="log2-tpm", identifiers="hgnc")
    return Cohort(rows=sites, genes=genes, layer=layer)


def study(one: Cohort, arm: str, chosen: Try) -> StudySpec:
    """The study of an arm with a plan."""
    clinical, genes = ARMS[arm]
    low, high = LIMITS
    # A microarray's logarithms are taken as they are, which is what this scale does.
    layer = {"name": "genes", "scale": "log2-tpm", "genes": one.genes, "weight": chosen.weight}
    data = {
        "kind": "profiles",
        "clinical": CLINICAL if clinical else [],
        "layers": [layer | {"low": low, "high": high}] if genes else [],
        "label": {"column": "days", "event_column": "metastasis", "longest_days": CUTS[-1]},
        "split": {"kind": "column", "column": "split"},
    }
    private = {"rounds": chosen.steps, "q": 0.5, "clip": 0.5, "rate": chosen.rate}
    return study_of(
        "gse7390",
        one.rows,
        Plan(model=MODEL, rounds=1, rate=1.0, decay=0.0, private=private),
        task={
            "kind": "survival",
            "likelihood": "proportional-hazards",
            "cuts": list(CUTS),
            "horizon_days": 1826.0,
        },
        data=data,
        unit="patient",
        genomic=True,
    )


def plain(spec: StudySpec, training: Tables, chosen: Try) -> Any:
    """The model without noise."""
    return pooled(spec, training, steps=chosen.steps, rate=chosen.rate, decay=chosen.decay)


def noised(spec: StudySpec, training: Tables, _: Try) -> Any:
    """The model within epsilon 8."""
    return distributed(spec, training)


def nearly_noised(spec: StudySpec, training: Tables, _: Try) -> Any:
    """The like of it, to choose a plan with."""
    return rehearsed(spec, training)


def parted(tables: Tables, places: Mapping[SiteId, Any], fold: int) -> tuple[Tables, Tables]:
    """Those of other folds, and those of this one; a negative place is in neither."""
    others, own = {}, {}
    for site, records in tables.items():
        others[site] = some(records, (places[site] != fold) & (places[site] >= 0))
        own[site] = some(records, places[site] == fold)
    return others, own


def dealt(one: Cohort, folds: int, salt: str) -> dict[SiteId, Any]:
    """Each patient's fold by a public hash."""
    return {
        site: np.array([int(folds * share(row["patient_id"], salt=salt)) for row in own])
        for site, own in one.rows.items()
    }


def scored(
    arm: Mapping[Try, tuple[StudySpec, Tables]],
    *,
    outer: Mapping[SiteId, Any],
    inner: Mapping[SiteId, Any],
    choose_by: Fit,
    fit: Fit,
) -> tuple[float, list[Try]]:
    """The mean C of the folds, each with the plan that its training patients' inner folds chose."""
    values, plans = [], []
    for fold in range(FOLDS):
        within = {site: np.where(outer[site] == fold, -1, inner[site]) for site in outer}
        worth = {}
        for plan, (spec, tables) in arm.items():
            found = []
            for part in range(INNER):
                training, judged = parted(tables, within, part)
                found.append(c_index(spec, choose_by(spec, training, plan), judged))
            worth[plan] = float(np.mean(found))
        chosen = max(worth, key=lambda plan: worth[plan])
        spec, tables = arm[chosen]
        training, held_out = parted(tables, outer, fold)
        values.append(c_index(spec, fit(spec, training, chosen), held_out))
        plans.append(chosen)
    return float(np.mean(values)), plans


def bench(one: Cohort, *, options: argparse.Namespace, write: Callable[[Any], None]) -> None:
    """Every arm without noise and within epsilon 8, written as it goes."""
    found: dict[str, Any] = {}
    runs = options.runs
    for arm in ARMS:
        if options.only and options.only not in arm:
            continue
        found[arm] = {}
        for name, plans, choose_by, fit in (
            ("without_noise", PLAIN, plain, plain),
            ("epsilon_8", PRIVATE, nearly_noised, noised),
        ):
            if {"without_noise": options.no_plain, "epsilon_8": options.no_noise}[name]:
                continue
            # The weight of genes says nothing where there are none.
            tried = [plan for plan in plans if ARMS[arm][1] or plan.weight == 1.0]
            specs = {plan: study(one, arm, plan) for plan in tried}
            tables = {plan: (spec, encoded(spec, one.rows, [one.layer]))
                      for plan, spec in specs.items()}  # fmt: skip
            values, counts = [], dict.fromkeys(map(str, tried), 0)
            for run in range(1, runs + 1):
                value, plans_of_run = scored(
                    tables,
                    outer=dealt(one, FOLDS, f"gse7390/folds/{run}"),
                    inner=dealt(one, INNER, f"gse7390/inner/{run}"),
                    choose_by=choose_by,
                    fit=fit,
                )
                values.append(value)
                for plan in plans_of_run:
                    counts[str(plan)] += 1
            found[arm][name] = {
                "c_index": float(np.mean(values)),
                "sd": float(np.std(values, ddof=1)) if runs > 1 else None,
                "min": min(values),
                "chosen": counts,
            }
            if name == "epsilon_8":
                found[arm][name] |= privacy(specs[tried[0]])
            print(arm, name, json.dumps(found[arm][name]), flush=True)
            write(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheels", type=Path, help="the folder where the package's wheel lies")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--no-noise", action="store_true", help="without the runs in epsilon 8")
    parser.add_argument("--no-plain", action="store_true", help="only the runs in epsilon 8")
    parser.add_argument("--only", help="arms whose name holds this")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    content = packaged("sksurv", MEMBER, project=PROJECT, wheels=options.wheels)
    if content is None:
        print(skipped(PROJECT, licence="GPL"))
        return
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        one = cohort(content, Path(folder))
        result: dict[str, Any] = {
            **facts(("torch", "numpy", "opacus")),
            "epsilon": EPSILON,
            "runs": options.runs,
            "sites": {site: len(own) for site, own in one.rows.items()},
            "events": sum(row["metastasis"] == "1" for own in one.rows.values() for row in own),
        }

        def write(found: Any) -> None:
            whole = result | {"arms": found, "seconds": time.perf_counter() - start}
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(whole, indent=2) + "\n")

        bench(one, options=options, write=write)


if __name__ == "__main__":
    main()
