"""Whole patients from DICOM, FHIR and VCF folders to a model, through real processes.

Three made-up hospitals, one of which has no images.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from fedward_server.cohort.make import make_cohort
from fedward_server.sandbox.run import Inputs, run_sandbox

pytestmark = [pytest.mark.federation, pytest.mark.slow]
ROUNDS = 4


def run(folder: Path, *, how: str, patients: int, families: bool = False) -> dict[str, Any]:
    make_cohort(folder / "cohort", sites=3, patients=patients, seed=1, families=families)
    study = folder / "cohort" / "study.toml"
    text = study.read_text()
    for old, new in (
        ("rounds = 60", f"rounds = {ROUNDS}"),
        ("average_last = 30", "average_last = 2"),
        ('how = "concatenation"', f'how = "{how}"'),
    ):
        assert old in text
        text = text.replace(old, new)
    study.write_text(text)
    inputs = Inputs.parse(study=None, sites=[], data=folder / "cohort")
    return run_sandbox(inputs, out=folder / "out", quiet=True)


@pytest.mark.parametrize("how", ["gated", "concatenation", "attention"])
def test_three_hospitals_learn_from_whole_patients_though_one_has_no_images(
    how: str, tmp_path: Path
) -> None:
    result = run(tmp_path, how=how, patients=40)

    assert result["rounds"] == {"committed": ROUNDS, "abandoned": 0}
    assert set(result["per_site"]) == {"made-up-01", "made-up-02", "made-up-03"}
    assert all(facts["rounds_charged"] == ROUNDS for facts in result["per_site"].values())
    assert result["unit"] == "patient"
    assert result["study"]["model"]["name"] == "multimodal"
    last = (tmp_path / "out" / "sites" / "made-up-03" / "site.toml").read_text()
    assert 'absent_modalities = ["image"]' in last
    # No name of a patient, of a file or of a modality's [[data]] leaves a site.
    assert "made-up-01-0001" not in json.dumps(result)
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


def test_three_hospitals_learn_from_whole_families(tmp_path: Path) -> None:
    result = run(tmp_path, how="concatenation", patients=40, families=True)

    assert result["rounds"] == {"committed": ROUNDS, "abandoned": 0}
    assert result["unit"] == "family"
    assert all(facts["rounds_charged"] == ROUNDS for facts in result["per_site"].values())
    site = (tmp_path / "out" / "sites" / "made-up-01" / "site.toml").read_text()
    assert 'family_key = "family"' in site
    disclosed = json.loads((tmp_path / "out" / "disclosure.json").read_text())
    assert disclosed["claim"]["unit"]["value"] == "family"
    assert "of modality 'variants'" in disclosed["claim"]["adjacency"]["value"]
    assert "per family of one site" in (tmp_path / "out" / "report.html").read_text()
    assert "made-up-01-family-1" not in json.dumps(result)
