"""Processes that a caller names, to be killed in mid-study."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fedward_common.errors import ConfigError
from fedward_server.sandbox.federation import Federation
from fedward_server.sandbox.victims import COORDINATOR, SITE, Strikes, Victim

SITES = ("city", "district")


@pytest.mark.parametrize("name", COORDINATOR)
def test_a_process_of_the_coordinator_goes_by_its_name(name: str) -> None:
    victim = Victim.parse(name, sites=SITES)

    assert (victim.owner, victim.name, str(victim)) == ("coordinator", name, name)


@pytest.mark.parametrize("name", SITE)
def test_a_process_of_a_site_goes_by_site_and_name(name: str) -> None:
    victim = Victim.parse(f"city:{name}", sites=SITES)

    assert (victim.owner, victim.name, str(victim)) == ("city", name, f"city:{name}")


@pytest.mark.parametrize("text", ["", "guard", "city:edge", "nowhere:guard", "city:", "edge:edge"])
def test_another_name_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--kill .*: expected one of .*\(city, district\)"):
        Victim.parse(text, sites=SITES)


def event(number: int) -> dict[str, Any]:
    return {"action": "round.opened", "fields": {"round": number}}


def test_who_is_named_is_killed_in_the_second_round_and_once() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        federation = cast(Federation, SimpleNamespace(processes={"city": process.pid}))
        strikes = Strikes(
            federation=federation, waiting=[Victim(owner="city", name="run")], rounds=3
        )
        strikes.see(event(1))
        alive = process.poll()
        strikes.see(event(2))
        code = process.wait(timeout=10)
        strikes.see(event(3))

    assert alive is None
    assert code == -9
    assert strikes.lines() == [f"kill -9 city:run (process {process.pid}) in round 2"]


def test_who_is_not_there_is_named_at_the_end() -> None:
    federation = cast(Federation, SimpleNamespace(processes={}))
    strikes = Strikes(federation=federation, waiting=[Victim(owner="city", name="task")], rounds=1)

    strikes.see(event(1))

    assert strikes.lines() == ["kill -9 city:task: it was not there"]
