"""Studies of genotypes from the study file and VCF files to the result, through real processes."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedward_server.sandbox.run import run_sandbox
from tests.support.genotype_sandbox import COUNT, LEARN, inputs

pytestmark = [pytest.mark.federation, pytest.mark.slow]


def run(folder: Path, text: str) -> dict[str, Any]:
    return run_sandbox(inputs(folder, text), out=folder / "out", quiet=True)


def test_a_class_is_learned_from_vcf_files_per_family(tmp_path: Path) -> None:
    result = run(tmp_path, LEARN)

    assert result["unit"] == "family"
    assert all(facts["rounds_charged"] == 2 for facts in result["per_site"].values())
    assert "per family of one site" in (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


def test_association_and_components_come_out_of_a_secret_sum(tmp_path: Path) -> None:
    result = run(tmp_path, "secure_sum = true\n" + COUNT)

    assert [one["sites_answered"] for one in result["releases"]] == [4, 4, 4]
    assert all(0 < epsilon <= 8.0 for epsilon in result["privacy"]["charged"].values())
    assert [len(one["variants"]) for one in result["releases"]] == [1, 1, 3]
    disclosed = json.loads((tmp_path / "out" / "disclosure.json").read_text())
    assert "one family" in json.dumps(disclosed)
