"""eICU demo: death in hospital from the first day, sites = region x bed class, without privacy.

    python -m benchmarks.ehr_eicu --data ../shared/data/eicu_demo

Five-fold cross-validation with whole hospitals held out, repeated with other folds; the AUC is over
all held-out patients of a repeat. First stay of each patient that has APACHE variables. What is
missing takes APACHE's normal value. Twice: physiology and history alone, and with the reason for
admission, which APACHE IV has too. Nothing is tuned: the settings are those of `benchmarks.ehr`,
and for one step of everybody's data a round (`steps`) those of `benchmarks.ehr_pooled`.
"""

import argparse
import csv
import gzip
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.ehr import outputs, parsed, without_noise
from benchmarks.ehr_pooled import pooled_steps
from fedward_common.ids import SiteId
from fedward_common.study.encoding import PatientRecords, encode_table
from fedward_common.study.tabular import TabularData

NUMBERS: Final = {
    # Each with its lower limit, its upper one, and what stands for a missing value.
    "age": (18.0, 90.0, 60.0),
    "gcs": (3.0, 15.0, 15.0),
    "wbc": (0.0, 40.0, 11.0),
    "temperature": (32.0, 41.0, 37.0),
    "respiratoryrate": (5.0, 60.0, 20.0),
    "sodium": (120.0, 165.0, 140.0),
    "heartrate": (30.0, 200.0, 90.0),
    "meanbp": (30.0, 180.0, 90.0),
    "ph": (6.9, 7.7, 7.4),
    "hematocrit": (15.0, 60.0, 40.0),
    "creatinine": (0.0, 8.0, 1.0),
    "albumin": (1.0, 5.0, 4.0),
    "bun": (0.0, 120.0, 15.0),
    "glucose": (30.0, 500.0, 120.0),
    "bilirubin": (0.0, 15.0, 1.0),
    "pao2": (30.0, 300.0, 90.0),
    "fio2": (21.0, 100.0, 21.0),
    "urine": (0.0, 5000.0, 2000.0),
}
FLAGS: Final = (
    "intubated", "vent", "dialysis", "aids", "hepaticfailure", "lymphoma", "metastaticcancer",
    "leukemia", "immunosuppression", "cirrhosis", "electivesurgery", "readmit", "diabetes",
)  # fmt: skip
DIAGNOSIS: Final = "admitdiagnosis"
OTHER: Final = "other"
REPEATS: Final = 5
FOLDS: Final = 5


def main() -> None:
    parser = argparse.ArgumentParser(description="eICU demo, death in hospital.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        "physiology": measure(options.data),
        "with admission diagnosis": measure(options.data, diagnosis=True),
    }
    text = json.dumps(found, indent=2)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def measure(data: Path, *, diagnosis: bool = False) -> dict[str, Any]:
    """AUC of federated, pooled and stepwise training; `diagnosis`: APACHE's reason for admission
    as one more column, every code that the data set has.
    """
    rows = stays(data)
    hospitals = sorted({row["hospital"] for row in rows})
    sites = sorted({row["site"] for row in rows})
    codes = sorted({row[DIAGNOSIS] for row in rows} - {OTHER}) if diagnosis else []
    study = parsed(_text(sites, codes=codes), sites)
    if not isinstance(study.data, TabularData):
        raise SystemExit("expected a table")
    everyone = encode_table(study.data, rows, part="train")
    where = np.array([row["site"] for row in rows])
    hospital = np.array([row["hospital"] for row in rows])
    draws, found = np.random.default_rng(1), {"federated": [], "pooled": [], "steps": []}
    for _ in range(REPEATS):
        fold_of = dict(
            zip(draws.permutation(hospitals), np.arange(len(hospitals)) % FOLDS, strict=True)
        )
        fold = np.array([fold_of[one] for one in hospital])
        predicted = {kind: np.zeros(len(rows)) for kind in found}
        for number in range(FOLDS):
            out = np.flatnonzero(fold == number)
            training = {
                SiteId(site): _some(everyone, np.flatnonzero((fold != number) & (where == site)))
                for site in sites
                if ((fold != number) & (where == site)).any()
            }
            pooled = {SiteId(sites[0]): _some(everyone, np.flatnonzero(fold != number))}
            for kind, tables in (("federated", training), ("pooled", pooled)):
                model = without_noise(study, tables, rounds=10)
                predicted[kind][out] = outputs(study, model, _some(everyone, out)).numpy()
            model = pooled_steps(study, training)
            predicted["steps"][out] = outputs(study, model, _some(everyone, out)).numpy()
        for kind, values in predicted.items():
            found[kind].append(float(roc_auc_score(everyone.labels, values)))
    intervals = {}
    for kind in ("federated", "steps"):
        resampled = [_resampled(everyone.labels, predicted[kind], draws) for _ in range(1000)]
        intervals[kind] = [float(np.quantile(resampled, q)) for q in (0.025, 0.975)]
    return {
        "patients": len(rows),
        "deaths": int(everyone.labels.sum()),
        "hospitals": len(hospitals),
        "sites": len(sites),
        "auc": {kind: {"mean": float(np.mean(v)), "sd": float(np.std(v, ddof=1))}
                for kind, v in found.items()},
        "interval_95": intervals,
    }  # fmt: skip


def stays(data: Path) -> list[dict[str, str]]:
    """The first stay with APACHE variables of every patient, as a row of the study's table."""
    tables = {
        name: {row["patientunitstayid"]: row for row in _rows(data / f"{name}.csv.gz")}
        for name in ("apacheApsVar", "apachePredVar", "patient")
    }
    places = {row["hospitalid"]: row for row in _rows(data / "hospital.csv.gz")}
    seen: set[str] = set()
    rows = []
    for number, stay in sorted(tables["patient"].items(), key=lambda one: _order(one[1])):
        both = [tables[name].get(number) for name in ("apacheApsVar", "apachePredVar")]
        status = stay["hospitaldischargestatus"]
        if None in both or stay["uniquepid"] in seen or status not in ("Alive", "Expired"):
            continue
        seen.add(stay["uniquepid"])
        values = {**both[1], **both[0]}  # type: ignore[dict-item]
        eyes = [values[part] for part in ("eyes", "motor", "verbal")]
        place = places[stay["hospitalid"]]
        row = {name: values.get(name) or "-1" for name in (*NUMBERS, *FLAGS)}
        row[DIAGNOSIS] = values.get(DIAGNOSIS) or OTHER
        row["gcs"] = "-1" if "-1" in eyes else str(sum(map(int, eyes)))
        row["age"] = "90" if stay["age"] == "> 89" else stay["age"] or "-1"
        bed = {"": "x", "<100": "s", "100 - 249": "m", "250 - 499": "l", ">= 500": "xl"}
        rows.append(row | {
            "patient_id": stay["uniquepid"], "died": str(int(status == "Expired")),
            "hospital": stay["hospitalid"], "split": "train",
            "site": f"{(place['region'] or 'none').lower()}-{bed[place['numbedscategory']]}",
        })  # fmt: skip
    return rows


def _order(stay: dict[str, str]) -> tuple[str, str, int]:
    return stay["uniquepid"], stay["hospitaldischargeyear"], int(stay["unitvisitnumber"])


def _text(sites: list[str], *, codes: list[str]) -> str:
    columns = "".join(
        f'[[data.columns]]\nname = "{name}"\ntype = "number"\nunit = "1"\nlow = {low}\n'
        f"high = {high}\nfill = {fill}\n"
        for name, (low, high, fill) in NUMBERS.items()
    ) + "".join(
        f'[[data.columns]]\nname = "{name}"\ntype = "category"\nvalues = ["0", "1"]\nfill = "0"\n'
        for name in FLAGS
    )
    if codes:
        values = json.dumps([*codes, OTHER])
        columns += (
            f'[[data.columns]]\nname = "{DIAGNOSIS}"\ntype = "category"\nvalues = {values}\n'
            f'fill = "{OTHER}"\n'
        )
    listed = "".join(f'[[sites]]\nid = "{site}"\npatients = 60\n' for site in sites)
    return f"""id = "eicu"
title = "Death in hospital, eICU demo"
rounds = 1
local_steps = 1
quorum = 1
deadline_seconds = 60
[task]
kind = "tabular-classification"
[model]
name = "logistic-regression"
[dp]
kind = "dp-sgd"
noise_multiplier = 4.0
delta = 1e-5
clip_norm = 1.0
sampling_probability = 0.5
max_records_per_patient = 1
[training]
learning_rate = 0.1
[aggregation]
name = "fedavg"
{listed}
[data]
kind = "tabular"
patient_key = "patient_id"
missing = "fill"
missing_codes = ["", "-1"]
[data.label]
column = "died"
low = 0
high = 1
positive_from = 1
[data.split]
kind = "column"
column = "split"
{columns}"""


def _resampled(labels: np.ndarray, scores: np.ndarray, draws: np.random.Generator) -> float:
    chosen = draws.integers(0, len(labels), len(labels))
    return float(roc_auc_score(labels[chosen], scores[chosen]))


def _some(records: PatientRecords, chosen: np.ndarray) -> PatientRecords:
    return PatientRecords(
        features=records.features[chosen],
        labels=records.labels[chosen],
        patient=np.arange(len(chosen)),
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
