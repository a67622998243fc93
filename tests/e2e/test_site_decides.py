"""The hospital decides while the study runs: a pause in mid-run, and a journal that agrees."""

import json
from pathlib import Path

import pytest

from fedward_client.journal_report import compare_logs
from fedward_common.ids import SiteId
from fedward_common.log.events import Event, read_events
from fedward_server.runs import follow, require_finished, start_run
from fedward_server.sandbox.federation import Federation
from fedward_server.sandbox.layout import SiteFolder
from fedward_server.sandbox.run import Inputs, prepare
from fedward_server.sandbox.settings_files import STEWARD
from tests.conftest import write_short_study
from tests.support.live import LiveFederation, program

pytestmark = pytest.mark.federation

DISTRICT = SiteId("district")


def journal_of(site: SiteFolder) -> Path:
    return site.folder / "state" / "audit" / "site.jsonl"


def test_journal_and_the_coordinators_log_agree_object_by_object(live: LiveFederation) -> None:
    edge_log = live.federation.settings.edge_log

    for name in live.federation.sites:
        site = live.prepared.layout.sites[name]
        report = compare_logs(journal_of(site), edge_log, site=name)

        assert report["left_unnoted"] == report["came_from_elsewhere"] == []
        # On a machine that is too busy a call may break on its way; the gateway's log says so.
        broke = "gateway.waiting" in (site.folder / "state/logs/gateway.log").read_text()
        assert report["agree"] or broke, report
        # Eight rounds and the evaluation, each a reply of several objects, and what came in.
        assert report["matched"] > 50


def test_a_line_that_left_the_journal_is_found_by_the_comparison(
    live: LiveFederation, tmp_path: Path
) -> None:
    """An older copy of the journal, as somebody might put back: its chain is unbroken."""
    name = live.federation.sites[0]
    lines = journal_of(live.prepared.layout.sites[name]).read_bytes().splitlines(keepends=True)
    last = max(n for n, line in enumerate(lines) if b'"direction":"out"' in line)
    older = tmp_path / "site.jsonl"
    older.write_bytes(b"".join(lines[:last]))

    report = compare_logs(older, live.federation.settings.edge_log, site=name)

    assert not report["agree"]
    assert len(report["left_unnoted"]) >= 1


def test_every_object_that_left_for_a_study_names_its_round_and_run(live: LiveFederation) -> None:
    for name in live.federation.sites:
        report = live.federation.ask_site(name, "journal", "list")
        sent = [one for one in report["objects"] if one["direction"] == "out" and one["study"]]

        # By messages; a step of a phase has no run of its own, but that of what opened the phase.
        ours = [one for one in sent if one["study"] == live.prepared.study.digest]
        assert {one["round"] for one in ours} == set(range(1, live.prepared.study.rounds + 1))
        assert all(one["run"] for one in ours)
        assert all(one["round"] for one in sent)


@pytest.mark.slow
def test_a_pause_in_mid_run_holds_that_sites_answers_and_the_others_go_on(tmp_path: Path) -> None:
    study = write_short_study(tmp_path / "study.toml", rounds=3, deadline_seconds=120)
    prepared = prepare(Inputs.parse(study=study, sites=[], data=None), out=tmp_path / "out")
    site = prepared.layout.sites[DISTRICT]
    person = ("--approver", STEWARD, "--key", site.approver_file, "--config", site.settings_file)
    said: list[int] = []
    committed: list[list[str]] = []

    with Federation(prepared.layout) as federation:
        federation.start()
        name, _ = start_run(federation.settings, prepared.signed.canonical)
        for event in follow(federation.settings, name):
            if event["action"] == "round.committed":
                committed.append(event["fields"]["sites"])
            opened = event["action"] == "round.opened" and event["fields"]["round"] == 2
            if opened and not said:
                said.append(program("fedward-client", "pause", *person).returncode)
        outcome = require_finished(federation.settings, name)
        resumed = program("fedward-client", "resume", *person).returncode
        shown = program(
            "fedward-client", "studies", "list", "--json", "--config", site.settings_file
        )

    events = list(read_events(journal_of(site)))
    (pause,) = [n for n, event in enumerate(events) if is_statement(event, "pause")]
    (resume,) = [n for n, event in enumerate(events) if is_statement(event, "resume")]
    paused = events[pause:resume]
    assert (said, resumed) == ([0], 0)
    assert outcome["committed_rounds"] == 3
    assert DISTRICT in committed[0]
    assert DISTRICT not in committed[2]
    assert {e.fields["status"] for e in paused if e.action == "reply.sealed"} <= {"refusal"}
    assert any(e.fields.get("code") == "paused" for e in paused)
    (one,) = json.loads(shown.stdout)
    assert (one["status"], one["by"]) == ("approved", STEWARD)


def is_statement(event: Event, kind: str) -> bool:
    return event.action == "statement.recorded" and event.fields["kind"] == kind
