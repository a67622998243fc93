"""Studies of notes: both models on the patient engine, and what a site's table of notes needs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedward_client.data.site import SiteSource
from fedward_client.data_check import check_data, check_form
from fedward_client.data_check_page import report_text
from fedward_client.held_out import HeldOut
from fedward_client.settings import load_site_settings
from fedward_client.tasks.registry import task_of
from fedward_common.errors import ConfigError, DataError
from fedward_common.models.registry import build_model
from fedward_common.study.inputs import input_size
from fedward_common.study.spec import StudySpec
from fedward_common.study.tasks import check_task
from tests.support.ehr_studies import related_pairs
from tests.support.guard_site import make_site
from tests.support.studies import make_dp, make_spec, write_table
from tests.support.trained import trained

WORDS = {"kind": "hashed-words", "max_tokens": 6, "buckets": 64}
TAGS = {"column": "tags", "types": ["Disease"]}
ILL = {"column": "ill", "low": 0, "high": 1, "positive_from": 1}


def study(*, tags: bool = False, model: str = "bilstm", **changes: Any) -> StudySpec:
    data = {
        "kind": "notes",
        "tokeniser": WORDS,
        "label": TAGS if tags else ILL,
        "split": {"kind": "column", "column": "split"},
    }
    kind = "entity-scores" if tags else "binned-scores"
    settings = {
        "task": {"kind": "text-ner" if tags else "text-classification"},
        "model": {
            "name": model, "hidden": [4, 4], "outputs": 3 if tags else 1, "shape": [4, 65],
        },
        "data": data,
        "rounds": 1,
        "local_steps": 2,
        "dp": make_dp(steps=2),
        "releases": [{"kind": kind, "bins": 4, "noise_multiplier": 3.0}],
    }  # fmt: skip
    return make_spec(**(settings | changes))


def notes(path: Path, *, patients: int = 12) -> Path:
    return write_table(
        path,
        [
            {
                "patient_id": f"p{number}",
                "text": f"has lung cancer since {2000 + number}-01-02" if number % 2 else "is well",
                "tags": "O B-Disease I-Disease O O" if number % 2 else "O O",
                "ill": str(number % 2),
                "split": "test" if number % 3 == 2 else "train",
            }
            for number in range(patients)
        ],
    )


@pytest.mark.parametrize("backend", ["loop", "opacus"])
@pytest.mark.parametrize("model", ["bilstm", "text-transformer"])
@pytest.mark.parametrize("tags", [False, True], ids=["answer", "tags"])
def test_a_model_of_notes_trains_on_the_patient_engine(
    tags: bool, model: str, backend: Any, tmp_path: Path
) -> None:
    spec = study(tags=tags, model=model)
    site = make_site(tmp_path, top={"data": [notes_entry(tmp_path)]})
    source = SiteSource(load_site_settings(site.folder / "site.toml"))

    weights = trained(spec, source, backend)

    held_out = HeldOut(study=spec, weights=weights, records=source.records(spec, part="test"))
    assert held_out.counts().sum() == (12 if tags else 4)


def notes_entry(folder: Path) -> dict[str, Any]:
    notes(folder / "notes.csv")
    return {"kind": "notes", "path": str(folder / "notes.csv"), "patient_key": "patient_id"}


@pytest.mark.parametrize("model", ["bilstm", "text-transformer"])
def test_made_up_notes_of_several_lengths_have_one_finite_answer_each(model: str) -> None:
    spec = study(model=model)
    net = build_model(spec.model, input_size(spec.data))

    features, labels = task_of(spec).examples(device=torch.device("cpu"))(3)

    assert net(features).shape == labels.shape == (3,)
    assert torch.isfinite(net(features)).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "bilstm", "hidden": [4, 4], "shape": [4, 64]}},
        {"task": {"kind": "tabular-classification"}},
        {"releases": [{"kind": "entity-scores", "bins": 4, "noise_multiplier": 3.0}]},
    ],
    ids=["another tokeniser", "another task", "another evaluation"],
)
def test_a_study_of_notes_that_does_not_fit_together_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        check_task(StudySpec.model_validate(study().model_dump(mode="json") | changes))


PAIR = {
    "column": "relation", "first": "drug", "second": "problem", "relations": ["treats", "causes"],
}  # fmt: skip


def pairs(*, net: str = "relation-bilstm", **changes: Any) -> StudySpec:
    data = {"kind": "notes", "tokeniser": WORDS, "label": PAIR, "identifiers": ["name"]}
    shaped = {"name": net, "hidden": [4, 4], "outputs": 3, "shape": [4, 69]}
    scores = {"kind": "class-scores", "classes": 3, "exclusive": True, "bins": 4}
    settings = {
        "task": {"kind": "text-relations"},
        "model": shaped,
        "data": data | {"split": {"kind": "column", "column": "split"}},
        "rounds": 1,
        "local_steps": 2,
        "dp": make_dp(steps=2) | {"max_records_per_patient": 4},
        "releases": [scores | {"noise_multiplier": 3.0}],
    }
    return make_spec(**(settings | changes))


def pairs_entry(folder: Path, rows: list[dict[str, str]] | None = None) -> dict[str, Any]:
    path = write_table(folder / "pairs.csv", rows or related_pairs(0, patients=12))
    return {"kind": "notes", "path": str(path), "patient_key": "patient_id"}


@pytest.mark.parametrize("backend", ["loop", "opacus"])
@pytest.mark.parametrize("model", ["relation-bilstm", "relation-transformer"])
def test_a_model_of_marked_pairs_trains_with_all_pairs_of_a_patient_as_one_unit(
    model: str, backend: Any, tmp_path: Path
) -> None:
    spec = pairs(net=model)
    site = make_site(tmp_path, top={"data": [pairs_entry(tmp_path)]})
    source = SiteSource(load_site_settings(site.folder / "site.toml"))

    weights = trained(spec, source, backend)

    records = source.records(spec, part="test")
    held_out = HeldOut(study=spec, weights=weights, records=records)
    assert (records.patients, len(records.labels)) == (6, 12)
    assert held_out.counts().sum() == pytest.approx(6 * 4)  # a score of each class, and an answer


@pytest.mark.parametrize(
    "cells",
    [
        {"drug": "4"},
        {"drug": "9-4"},
        {"problem": "0-9999"},
        {"problem": "-1-3"},
        {"relation": "cures"},
        {"relation": ""},
    ],
    ids=lambda cells: "-".join(cells.values()) or "nothing",
)
def test_a_patient_whose_pair_does_not_fit_is_absent_and_named_to_nobody(
    cells: dict[str, str], tmp_path: Path
) -> None:
    rows = related_pairs(0, patients=12)
    rows[0] |= cells
    site = make_site(tmp_path, top={"data": [pairs_entry(tmp_path, rows)]})
    source = SiteSource(load_site_settings(site.folder / "site.toml"))

    records = source.records(pairs(), part="train")

    assert "p0" not in records.ids
    assert records.patients == 5
    with pytest.raises(DataError) as refusal:
        source.checked_records(pairs(), part="train")
    assert "Surname" not in str(refusal.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "bilstm", "hidden": [4, 4], "outputs": 3, "shape": [4, 69]}},
        {"model": {
            "name": "relation-bilstm", "hidden": [4, 4], "outputs": 3, "shape": [4, 65],
        }},
        {"task": {"kind": "text-classification"}},
        {"task": {"kind": "text-relations", "class_weights": [1.0, 2.0]}},
        {"releases": [{"kind": "binned-scores", "bins": 4, "noise_multiplier": 3.0}]},
    ],
    ids=["model of words", "no marks", "another task", "too few weights", "another evaluation"],
)  # fmt: skip
def test_a_study_of_relations_that_does_not_fit_together_is_refused(
    changes: dict[str, Any],
) -> None:
    with pytest.raises(ConfigError):
        check_task(pairs(**changes))


def test_another_patient_key_than_the_site_s_is_refused(tmp_path: Path) -> None:
    entry = notes_entry(tmp_path) | {"patient_key": "ill"}
    site = make_site(tmp_path / "site", top={"data": [entry]})
    source = SiteSource(load_site_settings(site.folder / "site.toml"))

    with pytest.raises(DataError, match="patient_key"):
        source.records(study(), part="train")


def test_the_data_report_prints_what_was_taken_out_and_the_recall(tmp_path: Path) -> None:
    site = make_site(tmp_path, top={"data": [notes_entry(tmp_path)]})
    settings = load_site_settings(site.folder / "site.toml")

    found = check_data(study(), SiteSource(settings))
    form = check_form(study(), settings, whole=False, min_cell_size=10)

    assert (found.training, found.held_out) == (8, 4)
    assert [feature.name for feature in found.features] == ["words", "taken out: DATE"]
    assert form["scrubbing"]["recall"]["card"] >= 0.95
    page = {"study": "s", "site": "n", "not_in_study": {}, "features": [{
        "name": "x", "patients": 1, "missing": 0, "values_out_of_range": 0, "values_unmapped": 0,
    }], "patients": 1, "cohort": 1, "training": 1, "held_out": 1, "min_cell_size": 1}  # fmt: skip
    assert "made-up notes" in report_text(page | form)
    assert np.isfinite(list(form["scrubbing"]["recall"].values())).all()
