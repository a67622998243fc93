"""PhysioNet 2012, death in hospital from the first 48 hours, sites = type of ICU.

    python -m benchmarks.ehr_physionet --data ../shared/data/physionet2012
    python -m benchmarks.ehr_physionet --data ../shared/data/physionet2012 --epsilon 8

Set C (set A says no ICU type). Of every measurement its first and last value, least, greatest and
mean, how often it was taken, its change, and whether it was taken at all, as columns of a study
with public ranges; what is missing takes a normal value. Five-fold cross-validation within the
sites; every round is one step of Adam on the gradient over all sites' patients (what a study with
distributed noise does), with a penalty. Logistic regression; nothing is tuned on what is left out:
the penalty was chosen by cross-validation on set A.

With `--epsilon` the same in distributed noise, the sites' trainer and the coordinator's steps in
this process: clipped sums per patient, no penalty, a plan that nothing was tuned for.
"""

import argparse
import csv
import io
import json
import lzma
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.ehr import outputs, parsed
from benchmarks.ehr_pooled import pooled_steps
from benchmarks.omics_runs import distributed, privacy
from benchmarks.study import environment
from fedward_common.ids import SiteId
from fedward_common.study.encoding import PatientRecords, encode_table
from fedward_common.study.tabular import TabularData

RANGES: Final = {
    # Each with its lower limit, its upper one, and what stands for a missing value.
    "Albumin": (1.0, 5.0, 4.0), "ALP": (20.0, 400.0, 80.0), "ALT": (0.0, 300.0, 30.0),
    "AST": (0.0, 400.0, 30.0), "Bilirubin": (0.0, 15.0, 0.8), "BUN": (0.0, 120.0, 15.0),
    "Cholesterol": (50.0, 300.0, 160.0), "Creatinine": (0.0, 8.0, 1.0),
    "DiasABP": (20.0, 120.0, 60.0), "FiO2": (0.21, 1.0, 0.4), "GCS": (3.0, 15.0, 15.0),
    "Glucose": (30.0, 500.0, 120.0), "HCO3": (5.0, 45.0, 24.0), "HCT": (15.0, 60.0, 35.0),
    "HR": (30.0, 200.0, 85.0), "K": (2.0, 8.0, 4.1), "Lactate": (0.0, 15.0, 1.5),
    "Mg": (1.0, 4.0, 2.0), "MAP": (30.0, 180.0, 78.0), "MechVent": (0.0, 1.0, 0.0),
    "Na": (120.0, 165.0, 139.0), "NIDiasABP": (20.0, 120.0, 58.0), "NIMAP": (30.0, 180.0, 77.0),
    "NISysABP": (50.0, 220.0, 118.0), "PaCO2": (15.0, 90.0, 40.0), "PaO2": (30.0, 400.0, 110.0),
    "pH": (6.9, 7.7, 7.4), "Platelets": (0.0, 600.0, 200.0), "RespRate": (5.0, 60.0, 18.0),
    "SaO2": (70.0, 100.0, 97.0), "SysABP": (50.0, 220.0, 118.0), "Temp": (33.0, 41.0, 37.0),
    "TroponinI": (0.0, 30.0, 0.1), "TroponinT": (0.0, 5.0, 0.05), "Urine": (0.0, 500.0, 80.0),
    "WBC": (0.0, 40.0, 10.0), "Weight": (30.0, 200.0, 80.0),
}  # fmt: skip
PLAUSIBLE: Final = {"Temp": (25.0, 45.0), "pH": (6.5, 8.0), "Height": (100.0, 230.0)}
PARTS: Final = ("first", "last", "least", "greatest", "mean")
SITES: Final = {1: "coronary", 2: "cardiac-surgery", 3: "medical", 4: "surgical"}
FOLDS: Final = 5
STEPS: Final = 60


def main() -> None:
    parser = argparse.ArgumentParser(description="PhysioNet 2012, death in hospital.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epsilon", type=float, help="none: without privacy")
    parser.add_argument("--folds", type=int, default=FOLDS, help="how many of the 5 are judged")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(options.data, epsilon=options.epsilon, folds=options.folds)
    text = json.dumps(found, indent=2)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def measure(data: Path, *, epsilon: float | None, folds: int = FOLDS) -> dict[str, Any]:
    rows = stays(data)
    sites = list(SITES.values())
    study = parsed(_text(sites, epsilon=epsilon), sites)
    if not isinstance(study.data, TabularData):
        raise SystemExit("expected a table")
    everyone = encode_table(study.data, rows, part="train")
    where = np.array([row["site"] for row in rows])
    fold = np.random.default_rng(1).permutation(len(rows)) % FOLDS
    predicted = np.zeros(len(rows))
    for number in range(folds):
        out = np.flatnonzero(fold == number)
        training = {
            SiteId(site): _some(everyone, np.flatnonzero((fold != number) & (where == site)))
            for site in sites
        }
        private = epsilon is not None
        model = distributed(study, training) if private else pooled_steps(study, training)
        predicted[out] = outputs(study, model, _some(everyone, out)).numpy()
    judged = fold < folds
    labels, predicted, where = everyone.labels[judged], predicted[judged], where[judged]
    draws = np.random.default_rng(2)
    resampled = []
    for _ in range(1000):
        chosen = draws.integers(0, len(labels), len(labels))
        resampled.append(roc_auc_score(labels[chosen], predicted[chosen]))
    return {
        "patients": len(rows),
        "judged": len(labels),
        "privacy": None if epsilon is None else privacy(study),
        "deaths": int(labels.sum()),
        "auc": float(roc_auc_score(labels, predicted)),
        "interval_95": [float(np.quantile(resampled, q)) for q in (0.025, 0.975)],
        "auc_of_sites": {
            site: float(roc_auc_score(labels[where == site], predicted[where == site]))
            for site in sites
        },
        "inputs": int(everyone.features.shape[1]),
        "environment": environment(),
    }


def stays(data: Path) -> list[dict[str, str]]:
    """Every stay of set C as a row of the study's table."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with lzma.open(data / "set-c.csv.xz") as file:
        for row in csv.DictReader(io.TextIOWrapper(file, encoding="utf-8")):
            value = float(row["Value"])
            low, high = PLAUSIBLE.get(row["Parameter"], (0.0, 1e9))
            if low <= value <= high:
                found[row["RecordID"]][row["Parameter"]].append(value)
    with (data / "Outcomes-c.txt").open(encoding="utf-8") as file:
        died = {row["RecordID"]: row["In-hospital_death"] for row in csv.DictReader(file)}
    return [_row(stay, values, died[stay]) for stay, values in found.items() if stay in died]


def _row(stay: str, values: dict[str, list[float]], died: str) -> dict[str, str]:
    kind = SITES[int(values["ICUType"][0])]
    row = {"stay": stay, "died": died, "site": kind, "split": "train", "icu": kind}
    for name in ("Age", "Gender", "Height"):
        row[name] = f"{values[name][0]:g}" if values.get(name) else ""
    for name in RANGES:
        series = values.get(name, [])
        numbers = (
            (series[0], series[-1], min(series), max(series), sum(series) / len(series))
            if series
            else ()
        )
        for place, part in enumerate(PARTS):
            row[f"{name} {part}"] = repr(numbers[place]) if numbers else ""
        row[f"{name} change"] = repr(series[-1] - series[0]) if series else ""
        row[f"{name} count"] = str(len(series))
        row[f"{name} taken"] = str(int(bool(series)))
    return row


def _text(sites: list[str], *, epsilon: float | None) -> str:
    noise = "noise_multiplier = 4.0" if epsilon is None else f"epsilon = {epsilon}"
    placed, steps = "local" if epsilon is None else "distributed", 1 if epsilon is None else STEPS
    columns = _number("Age", 16.0, 90.0, 65.0) + _number("Height", 130.0, 200.0, 168.0)
    columns += _category("Gender", ("0", "1")) + _category("icu", tuple(sites))
    for name, (low, high, fill) in RANGES.items():
        columns += "".join(_number(f"{name} {part}", low, high, fill) for part in PARTS)
        columns += _number(f"{name} change", low - high, high - low, 0.0)
        columns += _number(f"{name} count", 0.0, 50.0, 0.0) + _category(f"{name} taken", ("0", "1"))
    listed = "".join(f'[[sites]]\nid = "{site}"\npatients = 700\n' for site in sites)
    return f"""id = "physionet"
title = "Death in hospital, PhysioNet 2012"
rounds = {steps}
local_steps = 1
quorum = 3
deadline_seconds = 60
[task]
kind = "tabular-classification"
[model]
name = "logistic-regression"
[dp]
kind = "dp-sgd"
{noise}
noise = "{placed}"
delta = 1e-5
clip_norm = 1.0
sampling_probability = 0.25
max_records_per_patient = 1
[training]
learning_rate = 1.0
momentum = 0.9
[aggregation]
name = "fedavg"
{listed}
[data]
kind = "tabular"
patient_key = "stay"
missing = "fill"
missing_codes = [""]
[data.label]
column = "died"
low = 0
high = 1
positive_from = 1
[data.split]
kind = "column"
column = "split"
{columns}"""


def _number(name: str, low: float, high: float, fill: float) -> str:
    return (
        f'[[data.columns]]\nname = "{name}"\ntype = "number"\nunit = "1"\nlow = {low}\n'
        f"high = {high}\nfill = {fill}\n"
    )


def _category(name: str, values: tuple[str, ...]) -> str:
    listed = ", ".join(f'"{value}"' for value in values)
    return (
        f'[[data.columns]]\nname = "{name}"\ntype = "category"\nvalues = [{listed}]\n'
        f'fill = "{values[0]}"\n'
    )


def _some(records: PatientRecords, chosen: np.ndarray) -> PatientRecords:
    return PatientRecords(
        features=records.features[chosen],
        labels=records.labels[chosen],
        patient=np.arange(len(chosen)),
    )


if __name__ == "__main__":
    main()
