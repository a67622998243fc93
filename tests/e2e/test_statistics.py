"""Federated statistics from a short study.toml to its result, on the four heart hospitals."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedward_common.privacy.disclosure import Disclosure
from fedward_common.study.signed import SignedStudy
from fedward_common.study.statistics import Table
from tests.support.live import program
from tests.support.studies import STUDY_FILES

pytestmark = pytest.mark.federation


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, heart_data: Path) -> Path:
    folder = tmp_path_factory.mktemp("statistics") / "out"
    done = program(
        "fedward-server",
        "sandbox",
        STUDY_FILES / "heart-statistics.toml",
        *("--data", heart_data, "--out", folder, "--json"),
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((folder / "statistics.json").read_text())
    return folder


@pytest.fixture(scope="module")
def result(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "statistics.json").read_text())
    return found


def column(result: dict[str, Any], name: str, *, release: int = 0) -> dict[str, Any]:
    (found,) = [c for c in result["releases"][release]["columns"] if c["name"] == name]
    return found


def test_every_release_was_answered_by_all_four_hospitals(result: dict[str, Any]) -> None:
    assert [release["sites_answered"] for release in result["releases"]] == [4, 4]
    assert result["refusals"] == {}


def test_the_noised_figures_are_those_of_the_patients_within_twelve_standard_errors(
    result: dict[str, Any],
) -> None:
    """920 patients of a mean age of 53.51 years, from the UCI files themselves."""
    age = column(result, "age")

    assert abs(age["count"]["value"] - 920) < 12 * age["count"]["standard_error"]
    assert abs(age["mean"]["value"] - 53.51) < 12 * age["mean"]["standard_error"]
    # Noise is in it: one number in 1,024 would come out exact.
    assert age["count"]["standard_error"] > 5


def test_no_number_of_patients_below_ten_per_site_is_shown(result: dict[str, Any]) -> None:
    for release in result["releases"]:
        for found in release["columns"]:
            counts = [found[p] for p in ("count", "missing") if p in found]
            for figure in [*counts, *found.get("histogram", ())]:
                shown = 4 - figure["withheld_by"]
                assert (figure["value"] is None) == (shown == 0)
                assert figure["value"] is None or figure["value"] >= 10 * shown


def test_every_site_charged_the_study_once_and_no_more_than_it_declares(
    result: dict[str, Any],
) -> None:
    privacy = result["privacy"]

    assert (privacy["delta"], privacy["unit"]) == (1e-4, "patient")
    assert set(privacy["charged"]) == {"cleveland", "budapest", "zurich-basel", "long-beach"}
    assert all(1.9 < epsilon <= 2.0 for epsilon in privacy["charged"].values())


def test_the_ledger_holds_the_two_releases_and_verifies(out: Path) -> None:
    config = out / "sites" / "budapest" / "site.toml"

    shown = program("fedward-client", "budget", "show", "--config", config, "--json")
    verified = program("fedward-client", "budget", "verify", "--config", config, "--json")
    explained = program("fedward-client", "budget", "explain", "--config", config)

    (study,) = json.loads(shown.stdout)["studies"]
    assert (study["releases_reserved"], study["releases_charged"]) == (2, 2)
    assert (study["rounds_reserved"], study["rounds_charged"]) == (0, 0)
    assert verified.returncode == 0, verified.stdout
    assert json.loads(verified.stdout)["passed"] is True
    assert "4 times: a number of patients, plus discrete Laplace noise" in explained.stdout


def test_the_constants_fit_into_a_next_study(out: Path) -> None:
    import tomllib

    columns = tomllib.loads((out / "constants.toml").read_text())["data"]["columns"]

    table = Table.model_validate({"kind": "table", "patient_key": "patient_id", "columns": columns})
    age = next(c for c in table.columns if c.name == "age")
    assert 20 <= age.low < age.fill < age.high <= 90  # type: ignore[union-attr,operator]


def test_the_disclosure_beside_it_is_of_this_study(out: Path) -> None:
    study = SignedStudy.parse((out / "study.json").read_bytes()).verify()

    found = Disclosure.model_validate_json((out / "disclosure.json").read_text())

    assert found.study["digest"].value == study.digest
    assert found.claim.charged_by_site.status == "measured"
    assert found.claim.empirical_audit.status == "missing"
    assert (out / "statistics.svg").read_text().count("<svg") == 1
