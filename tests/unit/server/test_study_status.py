"""`study status`, `watch` and `cancel`: what a run's own files say, and how it ends early."""

import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fedward_common.errors import ConfigError, LedgerError, StartError, StudyFailed
from fedward_common.log.events import read_events
from fedward_server import runs, study_status
from fedward_server.adapters.run_files import LOG, RunFolder, read_outcome, run_path
from fedward_server.sign_model import sign_model
from fedward_server.study_status import print_statuses, statuses, statuses_json, watch
from tests.support.finished_run import (
    FinishedRun,
    finished_run,
    open_run,
    signed_study,
    start,
)
from tests.support.pki import Authority, Site


@dataclass
class FakeControl:
    """SuperLink's Control API as far as runs need it."""

    status: str = "running"
    stopped: list[int] = field(default_factory=list)
    on_stop: Any = None

    def __enter__(self) -> "FakeControl":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def run_status(self, _run: int) -> str:
        return self.status

    def stop_run(self, run: int) -> None:
        self.stopped.append(run)
        self.status = "finished:stopped"
        if self.on_stop is not None:
            self.on_stop()


@pytest.fixture(scope="module")
def sites() -> tuple[Site, ...]:
    authority = Authority()
    return tuple(authority.site(name) for name in ("alpha", "beta", "gamma"))


@pytest.fixture
def run(tmp_path: Path, sites: tuple[Site, ...]) -> FinishedRun:
    return finished_run(tmp_path, *sites)


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeControl]:
    """A coordinator that runs."""
    fake = FakeControl()
    monkeypatch.setattr(runs, "control_of", lambda _settings: fake)
    monkeypatch.setattr(runs, "require_running", lambda _settings: None)
    return fake


def settings(state: Path) -> Any:
    return SimpleNamespace(state=state, run=state / "run", superlink_socket=state / "none.sock")


def going_on(run: FinishedRun, name: str = "goes-on") -> RunFolder:
    """A second run of the study: in its second round, where one site refused and one was lost."""
    start(run.state, run.study, name=name, flower_id=99)
    folder = open_run(run.state, run.study, name=name, rounds=[1])
    sites = [site.id for site in run.study.sites]
    folder.emit("round.opened", kind="train", round=2, rounds=3, sites=sites)
    folder.emit("site.replied", kind="train", round=2, site="alpha")
    folder.emit("site.refused", round=2, site="beta", code="paused")
    folder.emit("site.lost", kind="train", round=2, site="gamma", reason="deadline")
    return folder


# status.


def test_a_finished_run_says_so_and_that_its_model_is_signed(run: FinishedRun) -> None:
    (before,) = statuses(settings(run.state))
    sign_model(run.state, run.name, key=run.lead)

    (after,) = statuses(settings(run.state))

    assert (before.state, before.committed, before.rounds) == ("finished", 3, 3)
    assert (before.model_signed, after.model_signed) == (False, True)


def test_a_run_that_goes_on_shows_round_sites_and_refusals_by_their_word(
    run: FinishedRun, control: FakeControl
) -> None:
    going_on(run)

    (found,) = statuses(settings(run.state), "goes-on")

    assert (found.state, found.round, found.committed) == ("running", 2, 1)
    assert found.sites == {"alpha": "replied", "beta": "refused", "gamma": "lost"}
    assert found.refusals == {"beta": "paused"}


def test_a_serverapp_that_died_is_not_called_running(
    run: FinishedRun, control: FakeControl
) -> None:
    going_on(run)
    control.status = "finished:failed"

    assert statuses(settings(run.state), "goes-on")[0].state == "interrupted: goes on by itself"


def test_a_study_that_waits_for_its_sites_says_paused_and_why(
    run: FinishedRun, control: FakeControl
) -> None:
    folder = going_on(run)
    folder.emit("study.paused", reason="expected a quorum", quorum=2, sites=["alpha"])

    (found,) = statuses(settings(run.state), "goes-on")

    assert (found.state, found.message) == ("paused", "expected a quorum")


def test_a_coordinator_that_is_down_is_said(run: FinishedRun) -> None:
    going_on(run)

    assert statuses(settings(run.state), "goes-on")[0].state == "the coordinator does not run"


def test_runs_are_found_by_name_study_and_digest(run: FinishedRun) -> None:
    for which in (run.name, run.study.id, run.study.digest[:12], run.study.digest):
        assert [found.run for found in statuses(settings(run.state), which)] == [run.name]


@pytest.mark.parametrize("which", ["unknown", "", "abcdef12"])
def test_a_run_that_is_not_there_is_named(run: FinishedRun, which: str) -> None:
    with pytest.raises(ConfigError, match="expected a run"):
        statuses(settings(run.state), which)


def test_an_edited_log_is_not_reported_from(run: FinishedRun) -> None:
    log = run_path(run.state, run.name) / LOG
    log.write_bytes(log.read_bytes().replace(b"committed", b"abandoned", 1))

    with pytest.raises(LedgerError):
        statuses(settings(run.state))


def test_the_table_and_the_json_hold_the_same_runs(run: FinishedRun, control: FakeControl) -> None:
    going_on(run)
    found, out = statuses(settings(run.state)), io.StringIO()

    print_statuses(found, Console(file=out, width=160))

    assert {one["run"] for one in statuses_json(found)["runs"]} == {run.name, "goes-on"}
    assert "goes-on: beta refused: paused" in out.getvalue()
    assert "3/3" in out.getvalue()


def test_no_run_is_said_in_words(tmp_path: Path) -> None:
    out = io.StringIO()

    print_statuses(statuses(settings(tmp_path)), Console(file=out))

    assert "no run" in out.getvalue()


# watch.


def test_watching_prints_each_event_of_a_run_to_its_end(run: FinishedRun) -> None:
    out = io.StringIO()

    watch(settings(run.state), run.name, Console(file=out, width=200))

    lines = out.getvalue().splitlines()
    assert run.study.id in lines[0]
    assert sum("committed" in line for line in lines) == 3


# cancel.


def test_a_cancelled_run_says_cancelled_and_its_charges_stay(
    run: FinishedRun, control: FakeControl
) -> None:
    """The ServerApp finds its token void and fails; what it writes is that a person ended it."""
    folder = going_on(run)
    control.on_stop = lambda: folder.fail(code="internal", exit_code=1, message="HTTPError")

    runs.cancel_run(settings(run.state), "goes-on")

    outcome = read_outcome(run_path(run.state, "goes-on"))
    assert outcome is not None
    assert (outcome["status"], control.stopped) == ("cancelled", [99])
    assert list(read_events(run_path(run.state, "goes-on") / LOG))[-1].action == "run.cancelled"
    with pytest.raises(StudyFailed, match="charged stay charged"):
        runs.require_finished(settings(run.state), "goes-on")
    assert statuses(settings(run.state), "goes-on")[0].state == "cancelled"


def test_a_serverapp_that_was_killed_does_not_keep_a_run_from_being_cancelled(
    run: FinishedRun, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "CANCEL_GRACE_SECONDS", 0.2)
    folder = going_on(run)

    def lets_go() -> None:
        time.sleep(0.6)
        folder._log.close()  # the process is gone

    control.on_stop = lambda: threading.Thread(target=lets_go).start()

    runs.cancel_run(settings(run.state), "goes-on")

    outcome = read_outcome(run_path(run.state, "goes-on"))
    assert outcome is not None
    assert outcome["status"] == "cancelled"


def test_a_run_that_has_ended_is_not_cancelled(run: FinishedRun, control: FakeControl) -> None:
    with pytest.raises(ConfigError, match="found it finished"):
        runs.cancel_run(settings(run.state), run.name)
    assert control.stopped == []


def test_a_run_that_finished_in_the_same_moment_stays_finished(
    run: FinishedRun, control: FakeControl
) -> None:
    folder = going_on(run)
    control.on_stop = lambda: folder.finish(model=b"m", counts={}, facts={})

    runs.cancel_run(settings(run.state), "goes-on")

    outcome = read_outcome(run_path(run.state, "goes-on"))
    assert outcome is not None
    assert outcome["status"] == "finished"


@pytest.mark.parametrize("name", ["unknown", "../x"])
def test_an_unknown_run_is_not_cancelled(run: FinishedRun, control: FakeControl, name: str) -> None:
    with pytest.raises(ConfigError):
        runs.cancel_run(settings(run.state), name)


def test_without_a_coordinator_nothing_is_cancelled(run: FinishedRun) -> None:
    going_on(run)

    with pytest.raises(StartError):
        runs.cancel_run(settings(run.state), "goes-on")
    assert read_outcome(run_path(run.state, "goes-on")) is None


def test_a_study_of_the_registry_is_kept_by_its_digest(
    tmp_path: Path, sites: tuple[Site, ...], run: FinishedRun
) -> None:
    signed = signed_study(run.lead, *sites, title="Another one")

    study = runs.store_study(settings(tmp_path / "other"), signed.canonical)

    kept = tmp_path / "other" / "studies" / f"{study.digest}.json"
    assert kept.read_bytes() == signed.canonical
    assert study_status.statuses(settings(tmp_path / "other")) == []
