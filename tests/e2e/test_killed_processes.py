"""kill -9 and hangs of real processes, cut links, two coordinators: the study ends all the same.

What is checked after each (`Harmed.survive`): the study ends with all rounds, or with one that its
log names as abandoned; each site's ledger holds the rounds that it was asked, once; journals, the
run's log and the edge's log agree; no draft of a file is left. At the end: no process is left.
"""

import json
import re
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from fedward_common.study.signed import SignedStudy
from fedward_server.adapters.run_files import LOG
from fedward_server.runs import follow, require_finished, start_run
from fedward_server.sandbox.federation import Federation
from fedward_server.sandbox.run import Inputs, prepare
from fedward_server.sandbox.victims import COORDINATOR, SITE, strike
from tests.conftest import write_short_study
from tests.support.agreement import agreement
from tests.support.harmed import OPENED, ROUNDS, Harmed, When, at, rounds_charged
from tests.support.left_behind import left_behind, litter
from tests.support.live import program

pytestmark = pytest.mark.federation

WAIT_SECONDS: Final = 60.0
MOMENTS: dict[str, When] = {
    "round opened": OPENED,
    "replied": at("site.replied"),
    "committed": at("round.committed"),
}


def kill(owner: str, name: str, one: Harmed, *, number: int = signal.SIGKILL) -> None:
    """Waits for the process, which may be there for a moment only, and sends it the signal."""
    until = time.monotonic() + WAIT_SECONDS
    while not strike(one.federation, owner, name, number):
        if time.monotonic() > until:
            raise AssertionError(f"{owner}:{name} was not there for {WAIT_SECONDS:.0f} s")
        time.sleep(0.02)


def survived_demo(folder: Path, *names: str) -> dict[str, Any]:
    """The result of `sandbox` with these processes killed, after everything was compared."""
    study, out = write_short_study(folder / "study.toml", rounds=ROUNDS), folder / "out"
    options = [option for name in names for option in ("--kill", name)]

    done = program("fedward-server", "sandbox", study, *options, "--out", out, timeout=900)

    assert done.returncode == 0, done.stderr
    for name in names:
        assert re.search(rf"kill -9 {name} \(process \d+\) in round \d", done.stdout), done.stdout
    assert "federated" in done.stdout
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    return result | {"charged": compared(folder, out)}


def compared(folder: Path, out: Path) -> dict[str, int]:
    """The rounds that each site was charged, after what a federation that ended left agrees."""
    digest = SignedStudy.parse((out / "study.json").read_bytes()).verify().digest
    places = {folder.name: folder for folder in sorted((out / "sites").iterdir())}
    charged = {site: rounds_charged(place / "site.toml", digest) for site, place in places.items()}
    state = out / "coordinator" / "state"
    (log,) = (state / "runs").glob(f"*/{LOG}")
    facts = agreement(places, log, charged, edge_log=state / "audit" / "edge.jsonl")
    assert facts["committed_once"], facts
    assert facts["ledger_equals_journal"], facts
    assert facts["charged_once"], facts
    assert facts["answers_charged"], facts
    assert facts["nothing_unwritten"] == [], facts
    assert left_behind(folder) == []
    assert litter(folder) == []
    return charged


def test_serverapp_and_superlink_killed_in_mid_round_cost_nothing(tmp_path: Path) -> None:
    """The slice of `make test`."""
    study = write_short_study(tmp_path / "study.toml", rounds=ROUNDS)
    prepared = prepare(Inputs.parse(study=study, sites=[], data=None), out=tmp_path / "out")
    struck = False
    with Federation(prepared.layout) as federation:
        federation.start()
        name, _ = start_run(federation.settings, prepared.signed.canonical)
        for event in follow(federation.settings, name, alive=federation.keep_up):
            if not struck and OPENED(event):
                struck = strike(federation, "coordinator", "serverapp")
                assert strike(federation, "coordinator", "superlink")
        outcome = require_finished(federation.settings, name)

    assert struck
    assert outcome["committed_rounds"] == ROUNDS
    assert set(compared(tmp_path, tmp_path / "out").values()) == {ROUNDS}


@pytest.mark.slow
def test_a_demo_whose_processes_are_killed_ends_with_its_table(tmp_path: Path) -> None:
    """The coordinator's heart and one site's task, all in one round."""
    result = survived_demo(tmp_path, "serverapp", "superlink", "city:task")

    assert result["rounds"]["committed"] == ROUNDS
    # The task may die before its charge: then its round goes on without the city.
    city = result["charged"].pop("city")
    assert city in (ROUNDS - 1, ROUNDS)
    assert set(result["charged"].values()) == {ROUNDS}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*COORDINATOR, *(f"city:{name}" for name in SITE)])
def test_a_demo_killed_on_any_process_ends_with_its_table(tmp_path: Path, name: str) -> None:
    assert survived_demo(tmp_path, name)["rounds"]["committed"] >= ROUNDS - 1


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("victim", COORDINATOR)
def test_a_process_of_the_coordinator_killed_in_mid_round(
    harmed: Harmed, victim: str, moment: str
) -> None:
    outcome = harmed.survive(partial(kill, "coordinator", victim), when=MOMENTS[moment])

    assert outcome["committed_rounds"] == ROUNDS


@pytest.mark.slow
@pytest.mark.parametrize("victim", SITE)
def test_a_process_of_a_site_killed_before_its_charge(harmed: Harmed, victim: str) -> None:
    harmed.survive(partial(kill, "city", victim))


@pytest.mark.slow
@pytest.mark.parametrize("victim", SITE)
def test_a_process_of_a_site_killed_after_its_charge(harmed: Harmed, victim: str) -> None:
    def harm(one: Harmed) -> None:
        before, until = one.charged("city"), time.monotonic() + WAIT_SECONDS
        while one.charged("city") == before and time.monotonic() < until:
            time.sleep(0.02)
        kill("city", victim, one)

    # The round is watched from the one before on: by its own first line the charge may be there.
    harmed.survive(harm, when=at("round.committed", round_number=1))


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["guard", "gateway", "bridge", "supernode", "worker", "run"])
def test_a_process_of_a_site_killed_after_its_reply(harmed: Harmed, victim: str) -> None:
    harmed.survive(
        partial(kill, "city", victim),
        when=lambda event: at("site.replied")(event) and event["fields"]["site"] == "city",
    )


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["guard", "gateway", "bridge", "supernode", "worker"])
def test_a_process_of_a_site_that_hangs_is_found(harmed: Harmed, victim: str) -> None:
    harmed.survive(partial(kill, "city", victim, number=signal.SIGSTOP))


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["superlink", "bridge", "superexec", "serverapp", "edge"])
def test_a_process_of_the_coordinator_that_hangs_is_found(harmed: Harmed, victim: str) -> None:
    harmed.survive(partial(kill, "coordinator", victim, number=signal.SIGSTOP), abandoned=2)


@pytest.mark.slow
def test_a_second_coordinator_on_the_state_of_a_running_one_is_refused(harmed: Harmed) -> None:
    def second(one: Harmed) -> None:
        settings = one.prepared.layout.settings_file
        done = program("fedward-server", "serve", "--config", settings)
        assert done.returncode != 0
        assert "another `serve`" in done.stderr

    assert harmed.survive(second)["committed_rounds"] == ROUNDS


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [5, 60, 300])
def test_a_link_that_is_cut_in_mid_round(harmed: Harmed, seconds: int) -> None:
    """Three of four sites are a quorum: the study ends with all its rounds, cut or not."""

    def cut(one: Harmed) -> None:
        relay = one.relays["city"]
        relay.cut()
        timer = threading.Timer(seconds, relay.mend)
        timer.daemon = True
        timer.start()

    assert harmed.survive(cut, patience=seconds)["committed_rounds"] == ROUNDS


@pytest.mark.slow
def test_a_coordinator_that_nobody_reaches_for_a_minute(harmed: Harmed) -> None:
    """All links cut: replies wait at their sites, and the round is not lost where it waits."""

    def cut(one: Harmed) -> None:
        for relay in one.relays.values():
            relay.cut()
        time.sleep(20)
        for relay in one.relays.values():
            relay.mend()

    harmed.survive(cut)


@pytest.mark.slow
def test_a_line_with_loss_and_delay_only_costs_time(harmed: Harmed) -> None:
    bad = [harmed.relays["city"], harmed.relays["district"]]

    def worsen(_one: Harmed) -> None:
        for relay in bad:
            relay.delay_seconds, relay.stall = 0.2, 0.01

    try:
        outcome = harmed.survive(worsen)
    finally:
        for relay in bad:
            relay.delay_seconds, relay.stall = 0.0, 0.0

    assert outcome["committed_rounds"] == ROUNDS
    assert outcome["refusals"] == {}
