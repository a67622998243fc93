"""The two example data sets: dealt by the documented rule, split exactly as FLamby does."""

import csv
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from fedward_client.data.tabular import CsvSource
from fedward_client.data_entries import CsvFile
from fedward_common.errors import DataError
from fedward_common.ids import SiteId
from fedward_common.study.encoding import PatientRecords, TablePart
from fedward_server.sandbox.datasets import deal_breast_cancer, import_fed_heart
from tests.support.studies import load_example

HEART = Path(__file__).parents[4] / "shared" / "data" / "fed_heart_disease"
needs_heart = pytest.mark.skipif(
    not HEART.is_dir(), reason="the UCI heart-disease files are not at ../shared/data"
)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def records_of(name: str, path: Path, part: TablePart) -> PatientRecords:
    study = load_example(name, noise_multiplier=5.0)
    return CsvSource([CsvFile(path=path)]).records(study, part=part)


def test_all_569_patients_are_dealt_once(tmp_path: Path) -> None:
    paths = deal_breast_cancer(tmp_path)

    ids = [row["patient_id"] for path in paths.values() for row in rows_of(path)]
    assert len(ids) == len(set(ids)) == 569


def test_the_deal_is_the_same_every_time(tmp_path: Path) -> None:
    first, second = deal_breast_cancer(tmp_path / "a"), deal_breast_cancer(tmp_path / "b")

    assert [path.read_bytes() for path in first.values()] == [
        path.read_bytes() for path in second.values()
    ]


def test_the_four_hospitals_are_unequal_and_differently_mixed(tmp_path: Path) -> None:
    tables = {site: rows_of(path) for site, path in deal_breast_cancer(tmp_path).items()}

    sizes = {site: len(rows) for site, rows in tables.items()}
    malignant = {
        site: np.mean([row["diagnosis"] == "1" for row in rows]) for site, rows in tables.items()
    }
    assert sizes == {"university": 232, "city": 146, "screening": 118, "district": 73}
    assert malignant[SiteId("university")] > 0.5
    assert malignant[SiteId("screening")] < 0.1


def test_the_public_sizes_of_the_study_are_near_the_training_patients(tmp_path: Path) -> None:
    study = load_example("breast-cancer", noise_multiplier=5.0)
    paths = deal_breast_cancer(tmp_path)

    assert {site.id for site in study.sites} == set(paths)
    for site in study.sites:
        found = records_of("breast-cancer", paths[SiteId(site.id)], "train").patients
        assert found == pytest.approx(site.patients, abs=3)


def test_no_limit_of_the_study_is_a_minimum_or_maximum_of_the_patients(tmp_path: Path) -> None:
    """Rules 6: limits are public constants, not fitted; 0 is the smallest possible value."""
    study = load_example("breast-cancer", noise_multiplier=5.0)
    rows = [row for path in deal_breast_cancer(tmp_path).values() for row in rows_of(path)]

    columns = study.data.model_dump()["columns"]
    for column in columns:
        values = [float(row[column["name"]]) for row in rows]
        assert column["high"] != max(values)
        assert column["low"] == 0.0 or column["low"] != min(values)


@needs_heart
def test_the_heart_split_is_flamby_s(tmp_path: Path) -> None:
    paths = import_fed_heart(HEART, tmp_path)

    sizes = {
        site: tuple(records_of("heart", path, part).patients for part in ("train", "test"))
        for site, path in paths.items()
    }
    zurich = records_of("heart", paths[SiteId("zurich-basel")], "test")
    assert sizes == {
        "cleveland": (199, 104),
        "budapest": (172, 89),
        "zurich-basel": (30, 16),
        "long-beach": (85, 45),
    }
    assert zurich.labels.tolist().count(0.0) == 1


@needs_heart
def test_every_heart_patient_and_cell_is_kept_as_text(tmp_path: Path) -> None:
    paths = import_fed_heart(HEART, tmp_path)

    rows = rows_of(paths[SiteId("budapest")])
    raw = (HEART / "processed.hungarian.data").read_text(encoding="utf-8").splitlines()
    assert [",".join(list(row.values())[1:-1]) for row in rows] == raw
    assert sum(len(rows_of(path)) for path in paths.values()) == 920


@needs_heart
def test_plain_logistic_regression_reaches_the_published_accuracy_on_this_split(
    tmp_path: Path,
) -> None:
    """0.795 to 0.803: FLamby's columns, standardised on the pooled training patients."""
    tables = [rows_of(path) for path in import_fed_heart(HEART, tmp_path).values()]
    names = [
        "age",
        "sex",
        "cp",
        "trestbps",
        "chol",
        "fbs",
        "restecg",
        "thalach",
        "exang",
        "oldpeak",
    ]
    complete = [[row for row in rows if "?" not in [row[n] for n in names]] for rows in tables]
    raw = [np.array([[float(row[n]) for n in names] for row in rows]) for rows in complete]
    labels = [np.array([float(row["num"]) > 0 for row in rows]) for rows in complete]
    train = [np.array([row["split"] == "train" for row in rows]) for rows in complete]
    codes = OneHotEncoder(drop="first", sparse_output=False).fit(np.concatenate(raw)[:, [2, 6]])
    features = [
        np.hstack([np.delete(table, [2, 6], axis=1), codes.transform(table[:, [2, 6]])])
        for table in raw
    ]
    pooled = np.concatenate([table[kept] for table, kept in zip(features, train, strict=True)])
    scaler = StandardScaler().fit(pooled)
    pooled_labels = np.concatenate([row[kept] for row, kept in zip(labels, train, strict=True)])
    model = LogisticRegression(max_iter=1000).fit(scaler.transform(pooled), pooled_labels)

    accuracies = [
        model.score(scaler.transform(table[~kept]), row[~kept])
        for table, row, kept in zip(features, labels, train, strict=True)
    ]

    assert 0.795 <= float(np.mean(accuracies)) <= 0.8035


def test_a_missing_heart_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected the UCI file processed\.cleveland\.data"):
        import_fed_heart(tmp_path / "nowhere", tmp_path / "out")


def test_a_heart_file_with_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "processed.cleveland.data").write_text("63,1,1\n", encoding="utf-8")

    with pytest.raises(DataError, match="expected 14 columns"):
        import_fed_heart(tmp_path, tmp_path / "out")
