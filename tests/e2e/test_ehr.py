"""Studies of clinical data from the study file to the signed model, through real processes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward_server.sandbox.federation import Federation
from fedward_server.sandbox.result import assemble_result
from fedward_server.sandbox.run import Inputs, prepare, publish, run_study
from tests.support import synthea
from tests.support.ehr_cohorts import bundles, table
from tests.support.studies import write_table

pytestmark = pytest.mark.federation

SITES = ("north", "east", "south")
STUDY = """
id = "ehr"
title = "Made-up records of three hospitals"
rounds = 2
local_steps = 4
quorum = 3
deadline_seconds = 120

[dp]
kind = "dp-sgd"
epsilon = 8.0
delta = 1e-4
clip_norm = 1.0
sampling_probability = 0.5
max_records_per_patient = 1

[training]
learning_rate = 0.5

[aggregation]
name = "fedavg"
"""
TABLE = """
[data]
kind = "tabular"
patient_key = "patient_id"
[[data.columns]]
name = "age"
type = "number"
unit = "years"
low = 20.0
high = 100.0
[[data.columns]]
name = "marker"
type = "number"
unit = "1"
low = -1.0
high = 1.0
[data.split]
kind = "column"
column = "split"
"""
EVALUATION = """
[[releases]]
kind = "binned-scores"
bins = 4
noise_multiplier = 4.0
"""
REGRESSION = (
    STUDY
    + TABLE
    + """
[data.label]
column = "score"
unit = "points"
low = 0.0
high = 100.0
[task]
kind = "tabular-regression"
[model]
name = "linear"
[[releases]]
kind = "value-scores"
bins = 10
noise_multiplier = 2.0
"""
)
SURVIVAL = (
    STUDY
    + TABLE
    + EVALUATION
    + """
[data.label]
column = "days"
event_column = "dead"
longest_days = 3000.0
[task]
kind = "survival"
likelihood = "discrete-hazard"
cuts = [365.0, 730.0, 1460.0, 3000.0]
horizon_days = 730.0
[model]
name = "mlp"
hidden = [4]
outputs = 4
"""
)
SERIES = (
    STUDY.replace("local_steps = 4", "local_steps = 2")
    + EVALUATION
    + """
[task]
kind = "timeseries-classification"
[model]
name = "gru"
hidden = [4]
steps = 4
[data]
kind = "clinical"
[data.cohort.index]
concepts = ["LOINC:11450-4"]
[data.grid]
step_hours = 2.0
steps = 4
[[data.features]]
type = "measured"
name = "pulse"
concepts = ["LOINC:8867-4"]
unit = "/min"
aggregation = "sequence"
low = 30.0
high = 200.0
missing = "fill"
fill = 80.0
[[data.features]]
type = "measured"
name = "systolic"
concepts = ["LOINC:8480-6"]
unit = "mm[Hg]"
aggregation = "sequence"
low = 50.0
high = 250.0
missing = "fill"
fill = 120.0
[[data.features]]
type = "sex"
[data.outcome]
kind = "event"
concepts = ["SNOMED:91302008"]
window = { to_days = 30.0 }
[data.split]
kind = "hash"
salt = "e2e"
held_out = 0.5
"""
)

TAGS = (
    STUDY.replace("max_records_per_patient", 'unit = "record"\nmax_records_per_patient')
    + """
[[releases]]
kind = "entity-scores"
bins = 4
noise_multiplier = 4.0
[task]
kind = "text-ner"
[model]
name = "bilstm"
hidden = [8, 8]
outputs = 3
shape = [4, 257]
[data]
kind = "notes"
no_patient_key = true
[data.tokeniser]
kind = "hashed-words"
max_tokens = 8
buckets = 256
[data.label]
column = "tags"
types = ["Disease"]
[data.split]
kind = "column"
column = "split"
"""
)


def tagged_texts(seed: int, *, texts: int = 60) -> list[dict[str, str]]:
    """Texts in which `lung cancer` and `asthma` are diseases."""
    draws = np.random.default_rng(seed)
    rows = []
    for number in range(texts):
        filler = draws.choice(["has", "seen", "for", "with", "known", "today"], 5).tolist()
        tags, place = ["O"] * 5, int(draws.integers(0, 4))
        if number % 2:
            filler[place : place + 2], tags[place : place + 2] = (
                ["lung", "cancer"],
                ["B-Disease", "I-Disease"],
            )
        elif number % 3:
            filler[place], tags[place] = "asthma", "B-Disease"
        part = "test" if number % 4 > 1 else "train"
        rows.append({"text": " ".join(filler), "tags": " ".join(tags), "split": part})
    return rows


def run(folder: Path, text: str, *, settings: dict[str, str] | None = None) -> dict[str, Any]:
    """The result of a study over the sites' folders in `folder`; `settings` replace [[data]]."""
    text += "".join(f'\n[[sites]]\nid = "{site}"\npatients = 30\n' for site in SITES)
    (folder / "study.toml").write_text(text)
    folders = [f"{site}={folder / site}" for site in SITES]
    inputs = Inputs.parse(study=folder / "study.toml", sites=folders, data=None)
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


@pytest.mark.slow
def test_a_measured_value_is_learned_and_reported_in_its_unit(tmp_path: Path) -> None:
    for seed, site in enumerate(SITES):
        table(tmp_path / site / "patients.csv", seed=seed)

    result = run(tmp_path, REGRESSION)

    assert result["auc"]["federated"] is None
    assert set(result["figures"]) == {"rmse", "mae", "r2"}
    assert 0 < result["figures"]["mae"]["pooled_no_privacy"] < 6.0  # of 100 points; the noise is 5
    assert all(0 < epsilon <= 8.0 for epsilon in result["epsilon"].values())
    assert result["figures"]["mae"]["federated_private"] > 0
    assert "root mean squared error" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_survival_is_learned_and_evaluated_at_its_horizon(tmp_path: Path) -> None:
    for seed, site in enumerate(SITES):
        table(tmp_path / site / "patients.csv", seed=seed)

    result = run(tmp_path, SURVIVAL)

    assert result["figures"]["c_index"]["pooled_no_privacy"] > 0.65
    assert {facts["held_out"] for facts in result["per_site"].values()} == {30}
    assert np.isfinite(result["auc"]["federated"])
    clinical = result["clinical"]
    assert [row["group"] for row in clinical["groups"]] == ["below 60", "60 and above", *SITES]
    assert clinical["everybody"]["figures"]["calibration_slope"][0] != 0.0
    assert "For clinicians" in (tmp_path / "out" / "report.html").read_text()
    assert "C-index" in (tmp_path / "out" / "report.html").read_text()


def test_time_series_come_from_tables_fhir_and_omop_in_one_study(tmp_path: Path) -> None:
    for seed, site in enumerate(SITES):
        found = bundles(seed=seed)
        synthea.write_tables(found, tmp_path / site)
        if site == "east":
            synthea.write_bulk(found, tmp_path / "fhir")
        if site == "south":
            synthea.write_omop(found, f"sqlite:///{tmp_path / 'omop.db'}")
    other = {
        "east": f'kind = "fhir"\npath = "{tmp_path / "fhir"}"',
        "south": f'kind = "omop"\nurl = "sqlite:///{tmp_path / "omop.db"}"\n'
        'patient_id = "person_source_value"',
    }

    result = run(tmp_path, SERIES, settings=other)

    assert result["study"]["task"] == "timeseries-classification"
    assert np.isfinite(result["auc"]["federated"])
    assert all(facts["rounds_charged"] == 2 for facts in result["per_site"].values())
    assert result["auc"]["pooled_no_privacy"] > 0.8


@pytest.mark.slow
def test_entities_in_notes_are_learned_per_record(tmp_path: Path) -> None:
    for seed, site in enumerate(SITES):
        (tmp_path / site).mkdir()
        write_table(tmp_path / site / "patients.csv", tagged_texts(seed))

    result = run(tmp_path, TAGS)

    assert result["unit"] == "record"
    assert set(result["figures"]) == {"entity_f1", "entity_precision", "entity_recall"}
    assert result["figures"]["entity_f1"]["pooled_no_privacy"] > 0.9
    page = (tmp_path / "out" / "report.html").read_text()
    assert "entity F1" in page
    assert "per record; NOT per patient" in page
