"""The UCI heart-disease study of four real hospitals, from their original files."""

import json
from pathlib import Path

import pytest

from tests.support.live import program

pytestmark = [pytest.mark.federation, pytest.mark.slow]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, heart_data: Path) -> dict:
    out = tmp_path_factory.mktemp("heart") / "out"
    done = program(
        "fedward-server", "sandbox", "--data", heart_data, "--out", out, "--json", timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "result.json").read_text()) == json.loads(done.stdout)
    return json.loads(done.stdout)


def test_the_mean_accuracy_over_the_hospitals_is_above_its_floor(result: dict) -> None:
    """Mean 0.813, SD 0.010 over 20 noise draws (make bench-heart); the floor is 4 SD below."""
    accuracy = result["accuracy"]

    assert accuracy["federated_site_mean"] >= 0.772
    assert accuracy["federated_site_mean"] > accuracy["majority_site_mean"]


def test_the_sets_are_flambys(result: dict) -> None:
    held_out = {site: facts["held_out"] for site, facts in result["per_site"].items()}

    assert held_out == {"cleveland": 104, "budapest": 89, "zurich-basel": 16, "long-beach": 45}


def test_a_hospital_with_one_negative_patient_has_no_auc(result: dict) -> None:
    assert result["per_site"]["zurich-basel"]["auc"] is None
    assert result["per_site"]["cleveland"]["auc"] is not None


def test_no_patient_is_charged_more_than_four_at_delta_1e_4(result: dict) -> None:
    assert result["delta"] == 1e-4
    assert all(0 < epsilon <= 4.0 for epsilon in result["epsilon"].values())
