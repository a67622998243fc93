"""Synthetic rows from a released model: what they look like, cost and may be drawn from."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fedward_client.synthetic_check import check_json, check_synthetic, check_text
from fedward_common.arrays import tensors_from_bytes
from fedward_common.canonical import sha256_hex
from fedward_common.errors import ConfigError, DataError, SignatureRefused
from fedward_common.models.registry import initial_tensors
from fedward_common.privacy.accounting import epsilon_admission
from fedward_common.privacy.mechanism import study_event
from fedward_common.privacy.randomness import Csprng
from fedward_common.study.encoding import PatientRecords, encode_table
from fedward_common.study.inputs import input_size
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import StudySpec
from fedward_common.study.table_decoding import drawn_rows
from fedward_common.study.tabular import TabularData
from fedward_common.trust.signing import SigningKey, key_sha256
from fedward_server.adapters.model_package import MODEL, Origin, write_package
from fedward_server.cli import app
from fedward_server.synthesize import STATEMENT, TABLE, Released, encoder_tensors, synthesize
from tests.support.studies import make_data, make_rows, make_spec, write_table

KEY = SigningKey.generate()


def study(**changes: Any) -> StudySpec:
    settings: dict[str, Any] = {
        "task": {"kind": "autoencoder"},
        "model": {"name": "variational-autoencoder", "hidden": [8], "shape": [2]},
        "data": make_data(label=None),
        "releases": [],
    }
    spec = make_spec(**(settings | changes))
    return spec.model_copy(update={"lead_key_sha256": key_sha256(KEY.public_hex)})


def package(folder: Path, spec: StudySpec, *, signed: bool = True) -> Path:
    write_package(
        folder,
        study=spec,
        model=initial_tensors(spec.model, input_size(spec.data)),
        card="# A model\n",
        epsilon={"north": 1.5},
        key=KEY,
        origin=Origin(signed_study=SignedStudy.sign(spec, KEY).canonical) if signed else None,
    )
    return folder


def test_rows_have_the_study_s_columns_limits_and_values(tmp_path: Path) -> None:
    folder = package(tmp_path / "model", study())

    statement = synthesize(folder, rows=40, out=tmp_path / "out", public_key=KEY.public_hex)

    with (tmp_path / "out" / TABLE).open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    assert set(rows[0]) == {"age", "pain"}
    assert all(20.0 <= float(row["age"]) <= 100.0 and row["pain"] in "123" for row in rows)
    assert len({row["age"] for row in rows}) > 20
    assert json.loads((tmp_path / "out" / STATEMENT).read_text()) == statement


def test_the_statement_says_what_the_study_cost_and_that_rows_add_nothing(tmp_path: Path) -> None:
    spec = study()
    released = Released.open(package(tmp_path / "model", spec))

    one, many = released.statement(rows=1), released.statement(rows=100_000)

    cost = epsilon_admission([study_event(spec)], delta=1e-4)
    assert one["privacy"]["epsilon_admission"] == pytest.approx(cost)
    assert one["privacy"] == many["privacy"]
    assert (one["privacy"]["delta"], one["privacy"]["unit"]) == (1e-4, "one patient of one site")
    assert one["study"]["digest"] == spec.digest


def test_two_draws_differ_and_no_option_seeds_them(tmp_path: Path) -> None:
    released = Released.open(package(tmp_path / "model", study()))

    assert released.rows(20, source=Csprng()) != released.rows(20, source=Csprng())
    assert "seed" not in CliRunner().invoke(app, ["synthesize", "--help"]).stdout


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "autoencoder", "hidden": [8]}},
        {
            "task": {"kind": "tabular-classification"},
            "model": {"name": "logistic-regression"},
            "data": make_data(),
        },
    ],
)
def test_no_rows_come_from_another_model(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="variational"):
        Released.open(package(tmp_path / "model", study(**changes)))


def test_no_rows_come_from_a_package_without_study_or_with_a_changed_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"study\.json"):
        Released.open(package(tmp_path / "bare", study(), signed=False))
    folder = package(tmp_path / "model", study())
    (folder / MODEL).write_bytes((folder / MODEL).read_bytes() + b" ")
    with pytest.raises(SignatureRefused):
        Released.open(folder)


@pytest.mark.parametrize("count", [0, 2_000_000])
def test_a_count_of_rows_that_makes_no_sense_is_refused(count: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rows"):
        Released.open(package(tmp_path / "model", study())).rows(count, source=Csprng())


def test_the_encoder_is_written_for_another_study_under_another_name(tmp_path: Path) -> None:
    folder, target = package(tmp_path / "model", study()), tmp_path / "encoder.safetensors"

    found = CliRunner().invoke(
        app,
        ["model", "start-weights", str(folder), str(target), "--as", "risk.hidden.", "--json"],
    )

    facts = json.loads(found.stdout)
    assert facts == {"sha256": sha256_hex(target.read_bytes()), "tensors": ["risk.hidden."]}
    assert all(name.startswith("risk.hidden.") for name in tensors_from_bytes(target.read_bytes()))
    with pytest.raises(ConfigError, match="--begin"):
        encoder_tensors(folder, beginning="nothing.", named=None)


def test_drawn_values_follow_their_chances() -> None:
    """Logits of 0, log 2 and log 5: an eighth, a quarter and five eighths."""
    schema = study().data
    assert isinstance(schema, TabularData)
    made = np.tile([0.0, np.log(2.0), np.log(5.0)], (8000, 1))

    rows = drawn_rows(schema, made, spread=0.1, source=Csprng())

    shares = [sum(row["pain"] == value for row in rows) / 8000 for value in "123"]
    assert shares == pytest.approx([0.125, 0.25, 0.625], abs=0.04)
    ages = np.array([float(row["age"]) for row in rows])
    assert (ages.mean(), ages.std()) == pytest.approx((60.0, 4.0), abs=0.4)


def records(part: Any, *, patients: int = 120) -> PatientRecords:
    draws = np.random.default_rng(4)
    rows = [
        row | {"age": f"{draws.uniform(20, 100):.3f}"} for row in make_rows(patients, prefix="real")
    ]
    schema = study().data
    assert isinstance(schema, TabularData)
    return encode_table(schema, rows, part=part)


def checked(path: Path, rows: list[dict[str, str]], **changes: Any) -> Any:
    write_table(path, rows)
    patients = {"training": records("train"), "held_out": records("test"), "least": 10}
    return check_synthetic(study(), path, **(patients | changes))


def cells(features: Any) -> list[dict[str, str]]:
    return [
        {
            "age": f"{20.0 + 40.0 * (row[0] + 1.0):.6f}",
            "pain": str(1 + (0 if not row[1:].any() else 1 + int(row[1:].argmax()))),
        }
        for row in features
    ]


def test_copied_patients_are_found_and_independent_rows_are_not(tmp_path: Path) -> None:
    copied = checked(tmp_path / "copied.csv", cells(records("train").features))
    draws = np.random.default_rng(9)
    fresh = [
        {"age": f"{draws.uniform(20, 100):.3f}", "pain": str(draws.integers(1, 4))}
        for _ in range(400)
    ]
    independent = checked(tmp_path / "fresh.csv", fresh)

    assert copied.suspect
    assert copied.nearest_training == 1.0
    assert not independent.suspect
    assert independent.expected == pytest.approx(2 / 3, abs=0.03)
    assert "MORE LIKE" in check_text(copied)


def test_a_check_says_rounded_shares_only_and_nothing_of_few_patients(tmp_path: Path) -> None:
    rows = cells(records("train").features)

    shares = check_json(checked(tmp_path / "rows.csv", rows))
    few = checked(tmp_path / "rows.csv", rows, held_out=records("test", patients=12))

    numbers = [shares[name] for name in ("nearest_training", "expected", "same_training")]
    assert all(round(20 * share, 9) == round(20 * share) for share in numbers)
    assert (few.nearest_training, few.expected, few.suspect) == (None, None, None)
    assert "too few" in check_text(few)


def test_a_table_that_does_not_fit_is_refused_without_a_value_of_it(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        checked(tmp_path / "rows.csv", [{"age": "secret-7", "pain": "1"}])

    assert "secret-7" not in str(refused.value)
    with pytest.raises(DataError, match="every column"):
        checked(tmp_path / "rows.csv", [{"age": "50"}])
