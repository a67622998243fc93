"""SCAFFOLD, FedBN, FedAdam and statistics through the secret sum, each by a study.toml over real
processes: one federation of four hospitals, several signed studies one after another.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward_common.arrays import tensors_from_bytes, tensors_to_bytes
from fedward_common.canonical import sha256_hex
from fedward_common.log.events import read_events
from fedward_common.models.registry import initial_tensors
from fedward_common.study.kept import is_kept
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import StudySpec
from fedward_server.adapters.run_files import MODEL, run_path
from fedward_server.runs import follow, require_finished, start_run
from fedward_server.sandbox.federation import Federation
from fedward_server.sandbox.result import assemble_result
from fedward_server.sandbox.run import Prepared, run_study
from fedward_server.sandbox.settings_files import write_approval
from tests.support.live import changed_study
from tests.support.secure_processes import STUDY, changed, prepared_study

pytestmark = [pytest.mark.federation, pytest.mark.slow]

ROUNDS = 3
LOCAL = {
    "rounds = 20": f"rounds = {ROUNDS}",
    "local_steps = 1": "local_steps = 3",
    'noise = "distributed"': 'noise = "local"',
    'id = "breast-cancer-distributed"\n': 'id = "breast-cancer-secure"\nsecure_sum = true\n',
    "average_last = 4": "average_last = 1",
    "learning_rate = 2.0": "learning_rate = 0.5",
}
SCAFFOLD = {**LOCAL, 'name = "fedavg"': 'name = "scaffold"'}
FURTHER = {
    "fedbn": {
        **LOCAL,
        'name = "logistic-regression"': 'name = "mlp"\nhidden = [8]',
        'name = "fedavg"': 'name = "fedbn"\nkept = ["hidden.1."]',
    },
    "fedadam": {**LOCAL, 'name = "fedavg"': 'name = "fedadam"\nlearning_rate = 0.5'},
}
TWO_STEPS = {
    "rounds = 20": "rounds = 2",
    "average_last = 4": "average_last = 1",
    "[aggregation]": '[training.schedule]\nkind = "cosine"\n\n[aggregation]',
}
SCHEDULED = {
    "pooled-schedule": TWO_STEPS,
    "secret-schedule": {
        **TWO_STEPS,
        'noise = "distributed"': 'noise = "local"',
        'id = "breast-cancer-distributed"\n': 'id = "breast-cancer-secret"\nsecure_sum = true\n',
    },
    "open-schedule": {**TWO_STEPS, 'noise = "distributed"': 'noise = "local"'},
}
HIDDEN = {
    "hidden.0.weight": np.linspace(-1.0, 1.0, 240, dtype=np.float32).reshape(8, 30),
    "hidden.0.bias": np.linspace(0.0, 0.5, 8, dtype=np.float32),
}
"""An encoder that was learned elsewhere."""
PRETRAINED = {
    "rounds = 20": "rounds = 3",
    "average_last = 4": "average_last = 1",
    'name = "logistic-regression"': 'name = "mlp"\nhidden = [8]\n\n[model.start]\n'
    f'sha256 = "{sha256_hex(tensors_to_bytes(HIDDEN))}"\ntensors = ["hidden.0."]',
    "momentum = 0.0": 'momentum = 0.0\nfrozen = ["hidden.0."]',
}
STOPPING = {
    "rounds = 20": "rounds = 6",
    "average_last = 4": "average_last = 1",
    "noise_multiplier = 6.0": "noise_multiplier = 6.0\n\n[releases.early_stopping]\nevery = 1\n"
    "validations = 4\npatience = 1\nleast_gain = 0.9",
}
"""No second validation is better than the first by so much."""
STATISTICS = """\
id = "breast-cancer-sums"
title = "How large are the nuclei?"
quorum = 3
deadline_seconds = 60

[task]
kind = "federated-statistics"

[dp]
kind = "releases-only"
noise = "distributed"
epsilon_is = "admission"
delta = 2e-4

[[releases]]
kind = "column-statistics"
columns = ["mean radius"]
statistics = ["count", "mean"]
noise_multiplier = 4.0

[[releases]]
kind = "column-statistics"
columns = ["mean radius"]
statistics = ["histogram"]
bins = 4
noise_multiplier = 4.0

[data]
kind = "table"
patient_key = "patient_id"
missing_codes = [""]

[[data.columns]]
name = "mean radius"
type = "number"
unit = "image units"
low = 5.0
high = 25.0
"""


@dataclass(frozen=True, kw_only=True)
class Studies:
    """What became of each study, by name, on one federation."""

    prepared: Prepared
    result: dict[str, Any]
    rehearsed: dict[str, dict[str, Any]]
    signed: dict[str, SignedStudy]
    outcomes: dict[str, dict[str, Any]]
    runs: dict[str, Path]
    models: dict[str, dict[str, np.ndarray]]

    def spec(self, name: str) -> StudySpec:
        return self.signed[name].verify()

    def opened(self, name: str) -> list[list[int]]:
        """For each site the numbers of the sums that its guard noted as opened."""
        digest = self.spec(name).digest
        return [
            [
                event.fields["round"]
                for event in read_events(site.folder / "state" / "audit" / "site.jsonl")
                if event.action == "secagg.unmasked" and event.fields["study"] == digest
            ]
            for site in self.prepared.layout.sites.values()
        ]


def statistics_text() -> str:
    sites = STUDY.read_text().partition("[[sites]]")[2].partition("[data]")[0]
    before, _, after = STATISTICS.partition("[data]")
    return f"{before}[[sites]]{sites}[data]{after}"


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studies]:
    folder = tmp_path_factory.mktemp("algorithms")
    prepared = prepared_study(folder, changed(SCAFFOLD))
    signed = {"scaffold": prepared.signed}
    for name, changes in (FURTHER | SCHEDULED).items():
        signed[name] = changed_study(prepared, STUDY.read_text(), changes)
    signed["stopping"] = changed_study(prepared, STUDY.read_text(), STOPPING)
    signed["pretrained"] = changed_study(prepared, STUDY.read_text(), PRETRAINED)
    weights = folder / "encoder.safetensors"
    weights.write_bytes(tensors_to_bytes(HIDDEN))
    signed["statistics"] = changed_study(prepared, statistics_text(), {})
    for site in prepared.layout.sites.values():
        for one in signed.values():
            write_approval(site, one.verify(), now=datetime.now(UTC))
        site.settings_file.write_text(allowing(site.settings_file.read_text()))
    with Federation(prepared.layout) as federation:
        outcome = run_study(federation, prepared, view=None)
        outcomes, runs, models = {}, {}, {"scaffold": outcome.model}
        for name in (*FURTHER, *SCHEDULED, "stopping", "pretrained", "statistics"):
            file = weights if name == "pretrained" else None
            outcomes[name] = ended(federation, signed[name], start_weights=file)
            runs[name] = run_path(federation.settings.state, outcomes[name]["run"])
            models[name] = tensors_from_bytes((runs[name] / MODEL).read_bytes())
        first = next(iter(prepared.layout.sites))
        rehearsed = {}
        for name, more in (("fedbn", ()), ("pretrained", ("--start-weights", str(weights)))):
            study = folder / f"{name}.json"
            study.write_bytes(signed[name].canonical)
            options = ("--out", str(folder / f"rehearsed-{name}"), "--draws", "1", *more)
            rehearsed[name] = federation.ask_site(first, "rehearse", str(study), *options)
        yield Studies(
            prepared=prepared,
            result=assemble_result(prepared.study, prepared.copy, outcome, seconds=1.0),
            rehearsed=rehearsed,
            signed=signed,
            outcomes=outcomes,
            runs=runs,
            models=models,
        )


def allowing(settings: str) -> str:
    """A hospital that allows all four studies, by their epsilons and tasks."""
    text = re.sub(r"max_epsilon_(\w+) = .*", r"max_epsilon_\1 = 40.0", settings)
    text = re.sub(r"min_noise = .*", "min_noise = 0.5", text)
    text = text.replace("allow_statistics = false", "allow_statistics = true")
    text = text.replace("max_evaluations = 1", "max_evaluations = 5")
    text = text.replace("require_secure_sum = true", "require_secure_sum = false")
    # What a study with distributed noise costs if all others collude.
    text = text.replace("[policy]\n", "[policy]\nmax_epsilon_if_all_others_collude = 80.0\n")
    tasks = '"tabular-classification", "federated-statistics"'
    return text.replace('"tabular-classification"', tasks)


def ended(
    federation: Federation, signed: SignedStudy, *, start_weights: Path | None = None
) -> dict[str, Any]:
    name, _ = start_run(federation.settings, signed.canonical, start_weights=start_weights)
    for _ in follow(federation.settings, name, alive=federation.keep_up):
        pass
    return {**require_finished(federation.settings, name), "run": name}


def test_a_scaffold_study_runs_in_the_sandbox_to_its_result(studies: Studies) -> None:
    assert studies.result["rounds"] == {"committed": ROUNDS, "abandoned": 0}
    assert studies.result["study"]["placement"] == "local"
    assert studies.result["auc"]["federated"] > 0.8


def test_layers_that_fedbn_keeps_are_in_no_sum(studies: Studies) -> None:
    study, model = studies.spec("fedbn"), studies.models["fedbn"]
    start = initial_tensors(study.model, inputs=30)

    kept = {name for name in model if is_kept(study, name)}
    assert kept == {"hidden.1.bias", "hidden.1.weight"}
    assert all(np.array_equal(model[name], start[name]) == (name in kept) for name in model)


def test_evaluation_histograms_are_opened_over_all_hospitals_only(studies: Studies) -> None:
    auc = studies.result["auc"]
    # Four hospitals' noise is in each bin: by it a class may have too few patients to be shown.
    if (interval := auc["federated_private_interval"]) is None:
        assert auc["federated_private"] is None
    else:
        assert 0 <= interval[0] <= auc["federated_private"] <= interval[1] <= 1
    for name in ("fedbn", "fedadam"):
        assert studies.outcomes[name]["counts"] == {}
        assert len(studies.outcomes[name]["pooled"]["sites"]) == 4


@pytest.mark.parametrize("name", ["scaffold", "fedbn", "fedadam"])
def test_every_round_and_the_evaluation_went_through_a_sum_that_each_guard_opened_once(
    studies: Studies, name: str
) -> None:
    assert studies.opened(name) == [list(range(1, ROUNDS + 2))] * 4


@pytest.mark.parametrize("name", ["fedbn", "fedadam"])
def test_local_noise_in_secret_sums_ends_with_every_round(studies: Studies, name: str) -> None:
    outcome = studies.outcomes[name]

    assert (outcome["committed_rounds"], outcome["abandoned_rounds"]) == (ROUNDS, 0)
    assert outcome["refusals"] == {}
    assert studies.spec(name).dp.placement == "local"
    assert all(np.isfinite(value).all() for value in studies.models[name].values())


@pytest.mark.parametrize("name", SCHEDULED)
def test_the_rate_of_each_step_is_the_schedule_s_wherever_it_is_taken(
    studies: Studies, name: str
) -> None:
    """Half a cosine over two steps: the whole rate, then none, which leaves the model as it is."""
    first, second = (
        tensors_from_bytes((studies.runs[name] / f"round-0000{number}.safetensors").read_bytes())
        for number in (1, 2)
    )
    start = initial_tensors(studies.spec(name).model, inputs=30)

    assert studies.spec(name).secure_sum == (name != "open-schedule")
    assert studies.outcomes[name]["committed_rounds"] == 2
    assert all(not np.array_equal(start[tensor], first[tensor]) for tensor in start)
    assert all(np.array_equal(first[tensor], second[tensor]) for tensor in start)


def test_a_study_ends_early_by_noised_counts_that_were_each_opened_once(studies: Studies) -> None:
    outcome = studies.outcomes["stopping"]
    rounds, aucs = zip(*outcome["validations"], strict=True)

    assert outcome["stopped_after"] == outcome["committed_rounds"] == rounds[-1] < 6
    assert len([auc for auc in aucs if auc is not None]) == 2
    # A round, its validation, the next round; the evaluation of the final model is the last sum.
    assert studies.opened("stopping") == [[*range(1, 2 * rounds[-1] + 1), 11]] * 4


def test_a_fedbn_study_can_be_rehearsed_at_a_hospital(studies: Studies) -> None:
    assert len(studies.rehearsed["fedbn"]["models"]) == 1


def test_a_head_is_learned_on_a_frozen_encoder_out_of_a_file(studies: Studies) -> None:
    start = initial_tensors(studies.spec("pretrained").model, inputs=30)
    (alone,) = studies.rehearsed["pretrained"]["models"]

    assert studies.outcomes["pretrained"]["committed_rounds"] == 3
    for model in (studies.models["pretrained"], tensors_from_bytes(Path(alone).read_bytes())):
        assert all(np.array_equal(model[name], HIDDEN[name]) for name in HIDDEN)
        assert not any(np.array_equal(model[n], start[n]) for n in start if n not in HIDDEN)


def test_statistics_are_sums_over_all_hospitals_with_the_noise_of_one(studies: Studies) -> None:
    """569 patients of a mean radius of 14.127, within six standard errors."""
    outcome, study = studies.outcomes["statistics"], studies.spec("statistics")
    totals, histogram = outcome["statistics"]
    deviation = 4.0 * np.sqrt(4 / study.thresholds.noisy_sites)

    assert studies.opened("statistics") == [[1, 2]] * 4
    assert abs(totals["values"][0] - 569) < 6 * deviation * np.sqrt(2)
    assert abs(sum(histogram["values"]) - 569) < 6 * deviation * np.sqrt(4)
    assert totals["values"][0] != round(totals["values"][0])
    assert json.dumps(outcome).count("university") <= 1
