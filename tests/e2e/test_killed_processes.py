"""kill -9 of real processes in mid-round, cut links, two coordinators: the study ends all the same.

What is checked in each case: the run ends with all rounds, or with one that its log names as
abandoned; each site's ledger holds the rounds that it was asked, once; journal and ledger agree;
nothing is left behind.
"""

import re
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import agreement
from fedward_common.ids import SiteId
from fedward_server.adapters.run_files import LOG, run_path
from fedward_server.runs import follow, require_finished, start_run
from fedward_server.sandbox.federation import Federation
from fedward_server.sandbox.run import Inputs, Prepared, prepare
from tests.conftest import write_short_study
from tests.support.cut_relay import Relay
from tests.support.live import program
from tests.support.victims import COORDINATOR, SITE, left_behind, strike

ROUNDS = 3
Harm = Callable[[Federation], object]


def prepared_in(folder: Path, *, deadline_seconds: int = 60) -> Prepared:
    study = write_short_study(
        folder / "study.toml", rounds=ROUNDS, deadline_seconds=deadline_seconds
    )
    return prepare(Inputs.parse(study=study, sites=[], data=None), out=folder / "out")


def survived(prepared: Prepared, folder: Path, harm: Harm) -> dict[str, Any]:
    """The outcome of a study whose second round is harmed, after all was checked."""
    harmed = False
    with Federation(prepared.layout) as federation:
        federation.start()
        name, _ = start_run(federation.settings, prepared.signed.canonical)
        for event in follow(federation.settings, name, alive=federation.keep_up):
            opened = event["action"] == "round.opened" and event["fields"]["round"] == 2
            if opened and not harmed:
                harmed = True
                harm(federation)
        outcome = require_finished(federation.settings, name)
        federation.keep_up()
        charged = {
            site: federation.ask_site(site, "budget", "show")["studies"][0]["rounds_charged"]
            for site in prepared.layout.sites
        }
        log = run_path(federation.settings.state, name) / LOG
        facts = agreement(prepared, log, charged)

    assert harmed
    assert outcome["committed_rounds"] + outcome["abandoned_rounds"] == ROUNDS
    assert outcome["abandoned_rounds"] <= 1
    assert facts["committed_once"]
    assert facts["ledger_equals_journal"]
    assert facts["no_charge_unasked"]
    assert left_behind(folder) == []
    return outcome


@pytest.mark.federation
def test_serverapp_and_superlink_killed_in_mid_round_cost_nothing(tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path)

    def harm(federation: Federation) -> None:
        assert strike(federation, "coordinator", "serverapp")
        assert strike(federation, "coordinator", "superlink")

    outcome = survived(prepared, tmp_path, harm)

    assert outcome["committed_rounds"] == ROUNDS


@pytest.mark.slow
@pytest.mark.federation
@pytest.mark.parametrize("victim", COORDINATOR)
def test_a_process_of_the_coordinator_killed_in_mid_round(tmp_path: Path, victim: str) -> None:
    outcome = survived(
        prepared_in(tmp_path), tmp_path, lambda one: strike(one, "coordinator", victim)
    )

    assert outcome["committed_rounds"] == ROUNDS


@pytest.mark.slow
@pytest.mark.federation
@pytest.mark.parametrize("victim", SITE)
def test_a_process_of_a_site_killed_in_mid_round(tmp_path: Path, victim: str) -> None:
    survived(prepared_in(tmp_path), tmp_path, lambda one: strike(one, "city", victim))


@pytest.mark.slow
@pytest.mark.federation
@pytest.mark.parametrize("victim", ["guard", "gateway", "supernode", "worker"])
def test_a_process_of_a_site_that_hangs_is_found(tmp_path: Path, victim: str) -> None:
    survived(
        prepared_in(tmp_path), tmp_path, lambda one: strike(one, "city", victim, signal.SIGSTOP)
    )


@pytest.mark.slow
@pytest.mark.federation
def test_a_second_coordinator_on_the_state_of_a_running_one_is_refused(tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path)

    def second(_federation: Federation) -> None:
        done = program("fedward-server", "serve", "--config", prepared.layout.settings_file)
        assert done.returncode != 0
        assert "another `serve`" in done.stderr

    assert survived(prepared, tmp_path, second)["committed_rounds"] == ROUNDS


def behind(prepared: Prepared, relay_to: Callable[[int], Relay], site: str) -> Relay:
    """A relay between a site and the edge, which the site's settings name."""
    settings = prepared.layout.sites[SiteId(site)].settings_file
    text = settings.read_text()
    found = re.search(r'address = "127\.0\.0\.1:(\d+)"', text)
    assert found is not None
    relay = relay_to(int(found[1]))
    settings.write_text(text.replace(found[0], f'address = "127.0.0.1:{relay.port}"'))
    return relay


@pytest.mark.slow
@pytest.mark.federation
@pytest.mark.parametrize("seconds", [5, 60, 300])
def test_a_link_that_is_cut_in_mid_round(tmp_path: Path, seconds: int) -> None:
    """Three of four sites are a quorum: the study ends with all its rounds, cut or not."""
    prepared = prepared_in(tmp_path, deadline_seconds=60)

    with behind(prepared, Relay, "city") as relay:

        def cut(_federation: Federation) -> None:
            relay.cut()
            timer = threading.Timer(seconds, relay.mend)
            timer.daemon = True
            timer.start()

        outcome = survived(prepared, tmp_path, cut)

    assert outcome["committed_rounds"] == ROUNDS


@pytest.mark.slow
@pytest.mark.federation
def test_a_line_with_loss_and_delay_only_costs_time(tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path)
    bad = partial(Relay, delay_seconds=0.2, stall=0.01)

    with behind(prepared, bad, "city"), behind(prepared, bad, "district"):
        outcome = survived(prepared, tmp_path, lambda _federation: None)

    assert outcome["committed_rounds"] == ROUNDS
    assert outcome["refusals"] == {}
