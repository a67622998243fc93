"""The data of the two example studies, written as one patients.csv per hospital.

Only the sandbox uses these: at a real hospital the table is its own export.
"""

import csv
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from fedward_common.errors import DataError
from fedward_common.ids import SiteId

TABLE: Final = "patients.csv"

DEAL: Final[Mapping[str, Mapping[str, float]]] = {
    "small": {"university": 0.24, "city": 0.22, "screening": 0.40, "district": 0.14},
    "medium": {"university": 0.36, "city": 0.36, "screening": 0.12, "district": 0.16},
    "large": {"university": 0.66, "city": 0.19, "screening": 0.02, "district": 0.13},
}
"""Share of the patients with small, medium and large nuclei that comes to each hospital."""

BREAST_CANCER_SITES: Final = tuple(map(SiteId, ("university", "city", "screening", "district")))
DEAL_SALT: Final = "fedward/deal/breast-cancer/v1"
MEDIUM_FROM: Final = 12.0
LARGE_FROM: Final = 15.0

HEART_COLUMNS: Final = (
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg"),
    *("thalach", "exang", "oldpeak", "slope", "ca", "thal", "num"),
)
HEART_USED: Final = (*range(10), 13)
"""FLamby drops columns 10, 11 and 12 before it looks for missing values."""
HEART_FILES: Final[Mapping[SiteId, str]] = {
    SiteId("cleveland"): "processed.cleveland.data",
    SiteId("budapest"): "processed.hungarian.data",
    SiteId("zurich-basel"): "processed.switzerland.data",
    SiteId("long-beach"): "processed.va.data",
}
FLAMBY_SEED: Final = 43
FLAMBY_TRAIN_FRACTION: Final = 0.66


def deal_breast_cancer(folder: Path) -> dict[SiteId, Path]:
    """One table for each of four hospitals under `folder`, from scikit-learn's 569 real patients.

    The rule: patients are sorted into small (mean radius below 12), medium (below 15) and large
    nuclei. A hash of the patient's number, uniform on [0, 1), picks the hospital by the shares of
    `DEAL`, as patients are referred: the university hospital (41 % of all patients) sees most large
    tumours, the screening centre (21 %) hardly a malignant one, the city hospital (26 %) and the
    district clinic (13 %) a mixture. Whether a tumour is malignant decides nothing by itself.

    These patients are easy to tell apart: a hospital with a few of both kinds ranks them alone
    almost as well as all hospitals together.

    The held-out patients follow from the study's hash of the patient id, not from a column.
    """
    data = load_breast_cancer()
    header = ["patient_id", *map(str, data.feature_names), "diagnosis"]
    tables: dict[SiteId, list[list[str]]] = {site: [] for site in BREAST_CANCER_SITES}
    for number, (features, target) in enumerate(zip(data.data, data.target, strict=True)):
        site = _dealt_to(number, radius=float(features[0]))
        # scikit-learn codes benign as 1; the study's positive class is malignant.
        diagnosis = str(1 - int(target))
        cells = [np.format_float_positional(value, trim="-") for value in features]
        tables[site].append([f"bc-{number + 1:03d}", *cells, diagnosis])
    return {site: _write(folder, site, header, rows) for site, rows in tables.items()}


def import_fed_heart(source: Path, folder: Path) -> dict[SiteId, Path]:
    """One table for each of the four hospitals, from the UCI files `processed.*.data` in `source`.

    Every row and column is kept as text, with `?` where a value is missing. Added are `patient_id`
    and `split`: FLamby's own training and held-out patients, hospital by hospital. A row that
    FLamby drops for a missing value stays in the table as `train`; a study that drops such rows,
    too, has exactly FLamby's sets, and any other study has exactly its held-out patients.

    Raises:
        DataError: a file is missing or not 14 columns of text.

    Source: du Terrail et al. 2022 (FLamby), Fed-Heart-Disease: a share of 0.66 to train on, random
    state 43, stratified by the binary label where each class has more than two patients.
    """
    header = ["patient_id", *HEART_COLUMNS, "split"]
    paths = {}
    for site, name in HEART_FILES.items():
        rows = _heart_rows(source / name)
        held_out = _flamby_held_out(rows)
        table = [
            [f"{site}-{number + 1:03d}", *row, "test" if number in held_out else "train"]
            for number, row in enumerate(rows)
        ]
        paths[site] = _write(folder, site, header, table)
    return paths


def _dealt_to(number: int, *, radius: float) -> SiteId:
    size = "small" if radius < MEDIUM_FROM else "medium" if radius < LARGE_FROM else "large"
    digest = hashlib.sha256(f"{DEAL_SALT}|{number}".encode()).digest()
    rest = int.from_bytes(digest[:8], "big") / 2**64
    shares = DEAL[size]
    for name, share in shares.items():
        rest -= share
        if rest < 0:
            return SiteId(name)
    return SiteId(list(shares)[-1])  # the shares add up to 1 only within rounding


def _heart_rows(path: Path) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"heart disease: expected the UCI file {path.name} in the data folder, found none that "
            "can be read; see the README of that folder for where it comes from"
        ) from error
    if not rows or any(len(row) != len(HEART_COLUMNS) for row in rows):
        raise DataError(
            f"heart disease: expected {len(HEART_COLUMNS)} columns in every row of {path.name}"
        )
    return rows


def _flamby_held_out(rows: Sequence[Sequence[str]]) -> frozenset[int]:
    """The numbers of the rows in FLamby's test set."""
    complete = [
        number
        for number, row in enumerate(rows)
        if "?" not in [row[column] for column in HEART_USED]
    ]
    labels = np.array([int(float(rows[number][-1]) > 0) for number in complete])
    _, sizes = np.unique(labels, return_counts=True)
    _, test = train_test_split(
        np.arange(len(complete)),
        # FLamby writes 1 - 0.66 and not 0.34; the last bit decides nothing here but costs nothing.
        test_size=1.0 - FLAMBY_TRAIN_FRACTION,
        train_size=FLAMBY_TRAIN_FRACTION,
        random_state=FLAMBY_SEED,
        shuffle=True,
        stratify=labels if len(sizes) > 1 and min(sizes) > 2 else None,
    )
    return frozenset(complete[number] for number in test)


def _write(
    folder: Path, site: SiteId, header: Sequence[str], rows: Iterable[Sequence[str]]
) -> Path:
    path = folder / site / TABLE
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    return path
