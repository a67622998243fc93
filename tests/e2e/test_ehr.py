"""Studies of clinical data from the study file to the signed model, through real processes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward_server.sandbox.federation import Federation
from fedward_server.sandbox.result import assemble_result
from fedward_server.sandbox.run import Inputs, prepare, publish, run_study
from fedward_server.synthesize import synthesize
from tests.support.ehr_studies import SITES, STUDIES, other_sources, write_study

pytestmark = [pytest.mark.federation, pytest.mark.slow]


def run(folder: Path, name: str, *, settings: dict[str, str] | None = None) -> dict[str, Any]:
    """The result of a study over the sites' folders in `folder`; `settings` replace [[data]]."""
    text, make_sites = STUDIES[name]
    make_sites(folder)
    folders = [f"{site}={folder / site}" for site in SITES]
    inputs = Inputs.parse(study=write_study(folder, text), sites=folders, data=None)
    prepared = prepare(inputs, out=folder / "out")
    for site in prepared.layout.sites.values():
        if settings and site.site in settings:
            before, _, after = site.settings_file.read_text().partition("[[data]]\n")
            rest = after[after.index("[ports]") :]
            site.settings_file.write_text(f"{before}[[data]]\n{settings[site.site]}\n{rest}")
    with Federation(prepared.layout) as federation:
        outcome = run_study(federation, prepared, view=None)
    result = assemble_result(prepared.study, prepared.copy, outcome, seconds=1.0)
    publish(result, prepared, outcome, out=folder / "out")
    assert (folder / "out" / "model" / "model.safetensors").is_file()
    return json.loads((folder / "out" / "result.json").read_text())


def test_a_measured_value_is_learned_and_reported_in_its_unit(tmp_path: Path) -> None:
    result = run(tmp_path, "regression")

    assert result["auc"]["federated"] is None
    assert set(result["figures"]) == {"rmse", "mae", "r2"}
    assert 0 < result["figures"]["mae"]["pooled_no_privacy"] < 6.0  # of 100 points; the noise is 5
    assert all(0 < epsilon <= 8.0 for epsilon in result["epsilon"].values())
    mae = result["figures"]["mae"]
    low, high = mae["federated_private_interval"]
    assert low <= mae["federated_private"] <= high  # of ninety patients the bins say little
    assert "root mean squared error" in (tmp_path / "out" / "report.html").read_text()


def test_survival_is_learned_and_evaluated_at_its_horizon(tmp_path: Path) -> None:
    result = run(tmp_path, "survival")

    assert result["figures"]["c_index"]["pooled_no_privacy"] > 0.65
    assert {facts["held_out"] for facts in result["per_site"].values()} == {30}
    assert np.isfinite(result["auc"]["federated"])
    groups = [row["group"] for row in result["clinical"]["groups"]]
    assert groups == ["below 60", "60 and above", *sorted(SITES)]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "For clinicians" in page
    assert "C-index" in page


def test_sites_are_made_alike_and_patients_without_a_label_take_part(tmp_path: Path) -> None:
    result = run(tmp_path, "alike")

    assert np.isfinite(result["auc"]["federated"])
    assert all(facts["rounds_charged"] == 2 for facts in result["per_site"].values())
    assert all(0 < epsilon <= 8.0 for epsilon in result["epsilon"].values())


@pytest.mark.parametrize("name", ["series", "gru-d"])
def test_time_series_come_from_tables_fhir_and_omop_in_one_study(name: str, tmp_path: Path) -> None:
    result = run(tmp_path, name, settings=other_sources(tmp_path))

    assert result["study"]["task"] == "timeseries-classification"
    assert np.isfinite(result["auc"]["federated"])
    assert all(facts["rounds_charged"] == 2 for facts in result["per_site"].values())
    assert result["auc"]["pooled_no_privacy"] > 0.65


def test_entities_in_notes_are_learned_per_record(tmp_path: Path) -> None:
    result = run(tmp_path, "tags")

    assert result["unit"] == "record"
    assert set(result["figures"]) == {"entity_f1", "entity_precision", "entity_recall"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "entity F1" in page
    assert "per record; NOT per patient" in page


def test_relations_of_marked_pairs_are_learned_per_patient(tmp_path: Path) -> None:
    result = run(tmp_path, "relations")

    assert result["unit"] == "patient"
    assert result["figures"]["relation_f1_micro"]["pooled_no_privacy"] > 0.9
    assert all(0 < epsilon <= 8.0 for epsilon in result["epsilon"].values())
    assert all(facts["rounds_charged"] == 2 for facts in result["per_site"].values())


def test_classes_of_sequences_are_learned_per_record(tmp_path: Path) -> None:
    result = run(tmp_path, "sequences")

    assert result["unit"] == "record"
    assert result["figures"]["auc: donor"]["pooled_no_privacy"] > 0.9
    assert all(0 < epsilon <= 8.0 for epsilon in result["epsilon"].values())


def test_answers_about_molecules_are_learned_per_record(tmp_path: Path) -> None:
    result = run(tmp_path, "molecules")

    assert result["unit"] == "record"
    assert result["figures"]["auc: acid"]["pooled_no_privacy"] > 0.9


def test_affinities_of_pairs_are_learned_per_record(tmp_path: Path) -> None:
    result = run(tmp_path, "drug-targets")

    assert result["unit"] == "record"
    assert result["figures"]["c_index"]["pooled_no_privacy"] > 0.75
    assert all(0 < epsilon <= 8.0 for epsilon in result["epsilon"].values())


def test_survival_is_learned_from_profiles(tmp_path: Path) -> None:
    result = run(tmp_path, "profiles")

    assert result["figures"]["c_index"]["pooled_no_privacy"] > 0.65
    assert all(0 < epsilon <= 8.0 for epsilon in result["epsilon"].values())


def test_survival_of_whole_patients_is_learned_though_one_hospital_lacks_a_modality(
    tmp_path: Path,
) -> None:
    result = run(tmp_path, "whole-survival")

    assert result["figures"]["c_index"]["pooled_no_privacy"] > 0.65
    assert np.isfinite(result["auc"]["federated"])
    assert all(0 < epsilon <= 8.0 for epsilon in result["epsilon"].values())
    assert all(facts["rounds_charged"] == 2 for facts in result["per_site"].values())
    last = (tmp_path / "out" / "sites" / SITES[-1] / "site.toml").read_text()
    assert 'absent_modalities = ["tissue"]' in last


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("autoencoder", {"reconstruction_error", "explained"}),
        ("generation", {"told_apart"}),
    ],
)
def test_synthetic_rows_come_out_of_a_table_s_generators(
    name: str, figures: set[str], tmp_path: Path
) -> None:
    result = run(tmp_path, name)

    assert set(result["figures"]) == figures
    assert all(facts["rounds_charged"] == 2 for facts in result["per_site"].values())
    statement = synthesize(tmp_path / "out" / "model", rows=50, out=tmp_path / "rows")
    assert statement["privacy"]["epsilon_admission"] <= 8.0
    assert len((tmp_path / "rows" / "synthetic.csv").read_text().splitlines()) == 51
