"""A sandbox of clinical data without its processes: what is written, read, counted and reported.

The same studies through real processes are in tests/e2e/test_ehr.py (slow).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward_client.data.site import SiteSource
from fedward_client.held_out import HeldOut
from fedward_client.settings import load_site_settings
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.models.registry import initial_tensors
from fedward_common.privacy.histogram import noisy_counts
from fedward_common.privacy.randomness import Csprng
from fedward_common.study.evaluation import evaluation_of
from fedward_common.study.inputs import input_size
from fedward_server.aggregation import plain_sum, server_optimiser
from fedward_server.sandbox import baselines, made_up_rows
from fedward_server.sandbox.result import Outcome, assemble_result
from fedward_server.sandbox.run import Inputs, Prepared, prepare, publish
from tests.support.ehr_studies import SITES, STUDIES, other_sources, write_study


def made(folder: Path, name: str) -> Prepared:
    text, make_sites = STUDIES[name]
    make_sites(folder)
    folders = [f"{site}={folder / site}" for site in SITES]
    inputs = Inputs.parse(study=write_study(folder, text), sites=folders, data=None)
    return prepare(inputs, out=folder / "out")


def outcome(prepared: Prepared) -> Outcome:
    """One round of every site's own trainer on its own source, and its noised counts."""
    study = prepared.study
    start = initial_tensors(study.model, input_size(study.data))
    total, counts = plain_sum(study), {}
    sources = {
        site.site: SiteSource(load_site_settings(site.settings_file))
        for site in prepared.layout.sites.values()
    }
    for site, source in sources.items():
        for part, copy in (("train", prepared.copy.training), ("test", prepared.copy.held_out)):
            found = source.records(study, part=part)
            assert found.features.tobytes() == copy[site].features.tobytes()
            assert found.labels.tobytes() == copy[site].labels.tobytes()
        trainer = LocalTrainer(
            study, site, sampling=Csprng(), noise=Csprng(), flags=PerformanceFlags()
        )
        update = trainer.train(start, source.records(study, part="train"))
        total.add(site, update.tensors)
    model = server_optimiser(study).step(start, total.mean())
    release = evaluation_of(study)
    for site, source in sources.items() if release is not None else ():
        held_out = HeldOut(study=study, weights=model, records=source.records(study, part="test"))
        exact = held_out.counts()
        counts[site] = noisy_counts(exact, noise_multiplier=release.noise_std, noise=Csprng())
    budget = {
        "digest": study.digest, "epsilon_admission": 7.9, "epsilon_pld": 7.0, "rounds_charged": 2,
    }  # fmt: skip
    return Outcome(
        model=dict(model),
        checkpoints={},
        counts=counts,
        pooled=None,
        rounds={"committed": 2, "abandoned": 0},
        budgets={site: {"studies": [budget]} for site in SITES},
        journals={site: {"bytes_out": 1000} for site in SITES},
        timings={"start": 1.0, "training": 1.0, "evaluation": 1.0},
        alone={site: [dict(model)] for site in SITES},
    )


@pytest.mark.parametrize(
    "name",
    [
        "survival",
        "tags",
        "relations",
        "sequences",
        "molecules",
        "drug-targets",
        "profiles",
        "whole-survival",
        "autoencoder",
        "generation",
        pytest.param("regression", marks=pytest.mark.slow),
        pytest.param("series", marks=pytest.mark.slow),
        pytest.param("gru-d", marks=pytest.mark.slow),
    ],
)
def test_a_study_s_sites_read_what_the_parent_read_and_its_figures_are_reported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in ("molecules", "drug-targets"):
        pytest.importorskip("rdkit")
    if name in ("autoencoder", "drug-targets", "relations"):
        # Enough to see that it learns; what it is compared with has the noise of a single round.
        steps = 200 if name == "autoencoder" else 60
        monkeypatch.setattr(baselines, "LEAST_STEPS", steps)
    monkeypatch.setattr(made_up_rows, "STEPS", 60)
    prepared = made(tmp_path, name)
    ran = outcome(prepared)

    result = assemble_result(prepared.study, prepared.copy, ran, seconds=1.0)
    publish(result, prepared, ran, out=tmp_path / "out")

    shown = json.loads((tmp_path / "out" / "result.json").read_text())
    page = (tmp_path / "out" / "report.html").read_text()
    FIGURES[name](shown, page)


def _regression(shown: dict[str, Any], page: str) -> None:
    assert shown["auc"]["federated"] is None
    assert 0 < shown["figures"]["mae"]["pooled_no_privacy"] < 6.0  # of 100; the data's noise is 5
    assert shown["figures"]["mae"]["federated_private"] > 0
    assert "root mean squared error" in page


def _survival(shown: dict[str, Any], page: str) -> None:
    assert shown["figures"]["c_index"]["pooled_no_privacy"] > 0.65
    groups = [row["group"] for row in shown["clinical"]["groups"]]
    assert groups == ["below 60", "60 and above", *SITES]
    assert "For clinicians" in page
    assert "C-index" in page


def _series(shown: dict[str, Any], page: str) -> None:
    assert np.isfinite(shown["auc"]["federated"])
    assert shown["auc"]["pooled_no_privacy"] > 0.65
    assert "timeseries-classification" in page


def _tags(shown: dict[str, Any], page: str) -> None:
    assert set(shown["figures"]) == {"entity_f1", "entity_precision", "entity_recall"}
    assert "entity F1" in page
    assert "per record; NOT per patient" in page


def _sequences(shown: dict[str, Any], page: str) -> None:
    assert shown["figures"]["auc: donor"]["pooled_no_privacy"] > 0.9
    assert shown["accuracy"]["pooled_no_privacy"] > 0.8
    assert "per record; NOT per patient" in page


def _molecules(shown: dict[str, Any], page: str) -> None:
    assert shown["figures"]["auc: acid"]["pooled_no_privacy"] > 0.9
    assert shown["figures"]["auc: aromatic"]["pooled_no_privacy"] > 0.9
    assert "per record; NOT per patient" in page


def _drug_targets(shown: dict[str, Any], page: str) -> None:
    assert shown["figures"]["c_index"]["pooled_no_privacy"] > 0.75
    assert shown["figures"]["pearson"]["pooled_no_privacy"] > 0.8
    assert 0 < shown["figures"]["rmse"]["pooled_no_privacy"] < 0.5  # of pKd 5 to 10
    assert shown["auc"]["federated"] is None
    assert shown["figures"]["pearson"]["federated_private"] is not None
    assert "Pearson correlation" in page
    assert "per record; NOT per patient" in page


def _profiles(shown: dict[str, Any], page: str) -> None:
    assert shown["figures"]["c_index"]["pooled_no_privacy"] > 0.65
    assert "C-index" in page


def _whole_survival(shown: dict[str, Any], page: str) -> None:
    _profiles(shown, page)
    assert shown["unit"] == "patient"
    model = shown["study"]["model"]
    assert model["name"] == "proportional-hazards"
    assert {one["modality"] for one in model["fusion"]["encoders"]} == {"table", "tissue"}
    tensors = {one["name"] for one in model["tensors"]}
    assert {"baseline.weight", "risk.encoders.tissue.linear.weight"} < tensors
    assert np.isfinite(shown["auc"]["federated"])


def _autoencoder(shown: dict[str, Any], page: str) -> None:
    assert shown["auc"]["federated"] is None
    assert set(shown["figures"]) == {"reconstruction_error", "explained"}
    error = shown["figures"]["reconstruction_error"]
    assert 0 < error["pooled_no_privacy"] < error["federated"]
    assert 0 < error["federated_private"] < 1
    assert "reconstruction error" in page


def _relations(shown: dict[str, Any], page: str) -> None:
    assert shown["unit"] == "patient"
    micro = shown["figures"]["relation_f1_micro"]
    assert micro["pooled_no_privacy"] > 0.8
    assert 0.0 <= micro["federated_private"] <= 1.0
    assert 0.0 <= shown["figures"]["relation_f1_macro"]["federated"] <= 1.0
    assert "relation F1" in page


def _generation(shown: dict[str, Any], page: str) -> None:
    assert shown["auc"]["federated"] is None
    assert set(shown["figures"]) == {"told_apart"}
    assert 0.3 < shown["figures"]["told_apart"]["pooled_no_privacy"] <= 1.0
    assert "telling synthetic from real" in page


FIGURES = {
    "regression": _regression,
    "survival": _survival,
    "series": _series,
    "gru-d": _series,
    "tags": _tags,
    "relations": _relations,
    "sequences": _sequences,
    "molecules": _molecules,
    "drug-targets": _drug_targets,
    "profiles": _profiles,
    "whole-survival": _whole_survival,
    "autoencoder": _autoencoder,
    "generation": _generation,
}


def test_tables_fhir_and_omop_of_the_same_patients_are_one_study(tmp_path: Path) -> None:
    prepared = made(tmp_path, "series")
    for site in prepared.layout.sites.values():
        lines = other_sources(tmp_path).get(site.site)
        if lines is not None:
            before, _, after = site.settings_file.read_text().partition("[[data]]\n")
            rest = after[after.index("[ports]") :]
            site.settings_file.write_text(f"{before}[[data]]\n{lines}\n{rest}")

    outcome(prepared)  # holds every site's tensors equal to the parent's, bit for bit
