"""The study lead's commands and the site's `model` commands on a federation that really runs."""

import json
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedward_client.guard.client import GuardClient
from fedward_client.settings import load_site_settings
from fedward_common.ids import SiteId
from fedward_common.log.events import read_events
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import StudySpec
from fedward_common.trust.statements import Statement
from fedward_server.adapters.run_files import LOG, read_outcome, run_path, started_runs
from fedward_server.models import package_path
from fedward_server.runs import follow, start_run
from fedward_server.sandbox.layout import SiteFolder
from fedward_server.sandbox.settings_files import STEWARD
from tests.support.live import LiveFederation, changed_study, program
from tests.support.studies import STUDY_FILES

pytestmark = pytest.mark.federation


@pytest.fixture(scope="module")
def signed_run(live: LiveFederation) -> str:
    """The session's run, its model signed by its lead as a person would."""
    state, digest = live.federation.settings.state, live.prepared.study.digest
    run = next(run.name for run in started_runs(state) if run.study == digest)
    done = program(
        *("fedward-server", "study", "sign-model", run),
        *("--key", live.prepared.layout.coordinator / "keys" / "lead.pem"),
        *("--config", live.prepared.layout.settings_file, "--json"),
    )
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    return run


def long_study(live: LiveFederation) -> SignedStudy:
    """A study of many rounds that every site's approver approves while the federation runs."""
    text = (STUDY_FILES / "breast-cancer.toml").read_text()
    changes = {
        "rounds = 8": "rounds = 60",
        "epsilon = 2.0": "epsilon = 0.8",
        "noise_multiplier = 3.0": "noise_multiplier = 12.0",
    }
    signed = changed_study(live.prepared, text, changes)
    for site in live.prepared.layout.sites.values():
        guard = GuardClient(load_site_settings(site.settings_file).admin_socket)
        guard.record(approval(site, signed.verify()).canonical, signed.canonical)
    return signed


def approval(site: SiteFolder, study: StudySpec) -> Statement:
    return Statement.sign(
        "study-approval",
        {"study": study.digest, "study_id": study.id, "site": site.site},
        person=STEWARD,
        key=site.approver,
        now=datetime.now(UTC),
    )


def test_status_names_the_finished_run_and_its_sites(live: LiveFederation, signed_run: str) -> None:
    done = program(
        *("fedward-server", "study", "status", signed_run),
        *("--config", live.prepared.layout.settings_file, "--json"),
    )

    (found,) = json.loads(done.stdout)["runs"]
    assert (found["state"], found["committed"]) == ("finished", live.prepared.study.rounds)
    assert set(found["sites"]) == set(live.federation.sites)
    assert found["model_signed"]


def test_a_hospital_fetches_the_model_and_both_logs_say_so(
    live: LiveFederation, signed_run: str, tmp_path: Path
) -> None:
    site = SiteId("university")
    config = live.prepared.layout.sites[site].settings_file

    done = program(
        *("fedward-client", "model", "fetch", signed_run, "--out", tmp_path),
        *("--config", config, "--json"),
    )

    assert done.returncode == 0, done.stderr
    ours, theirs = tmp_path / signed_run, package_path(live.federation.settings.state, signed_run)
    assert {path.name: path.read_bytes() for path in ours.iterdir()} == {
        path.name: path.read_bytes() for path in theirs.iterdir()
    }
    journal = live.prepared.layout.sites[site].folder / "state" / "audit" / "site.jsonl"
    written = {
        (event.fields["sha256"], event.fields["bytes"])
        for event in read_events(journal)
        if event.action == "object" and event.fields["kind"] == "model"
    }
    handed_out = {
        (event.fields["sha256"], event.fields["bytes"])
        for event in read_events(live.federation.settings.edge_log)
        if event.fields.get("kind") == "model" and event.fields["site"] == site
    }
    assert len(written) == 4
    assert written == handed_out


def test_a_fetched_model_verifies_offline_by_the_sites_own_approval(
    live: LiveFederation, signed_run: str
) -> None:
    config = live.prepared.layout.sites[SiteId("city")].settings_file

    done = program(
        *("fedward-client", "model", "verify"),
        *(package_path(live.federation.settings.state, signed_run), "--config", config),
    )

    assert (done.returncode, done.stdout.endswith("ok\n")) == (0, True)


def test_the_lineage_names_each_round_with_its_sites_and_digest(
    live: LiveFederation, signed_run: str
) -> None:
    folder = package_path(live.federation.settings.state, signed_run)
    lineage = json.loads((folder / "manifest.json").read_bytes())["manifest"]["lineage"]

    assert [entry["round"] for entry in lineage["rounds"]] == list(
        range(1, live.prepared.study.rounds + 1)
    )
    assert all(set(entry) == {"round", "sites", "model_sha256"} for entry in lineage["rounds"])


def test_a_cancelled_run_ends_its_rounds_stay_charged_and_the_federation_goes_on(
    live: LiveFederation,
) -> None:
    settings, signed = live.federation.settings, long_study(live)
    name, _ = start_run(settings, signed.canonical)
    with closing(follow(settings, name)) as events:
        next(event for event in events if event["action"] == "round.committed")

    done = program(
        *("fedward-server", "study", "cancel", name),
        *("--config", live.prepared.layout.settings_file),
    )

    assert done.returncode == 0, done.stderr
    outcome = read_outcome(run_path(settings.state, name))
    assert outcome is not None
    assert outcome["status"] == "cancelled"
    assert list(read_events(run_path(settings.state, name) / LOG))[-1].action == "run.cancelled"
    live.federation.check_alive()
    report = live.federation.ask_site(SiteId("university"), "budget", "show")
    (entry,) = [entry for entry in report["studies"] if entry["digest"] == signed.digest]
    assert entry["rounds_charged"] >= 1
