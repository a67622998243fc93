"""Unfinished runs go on by themselves: after a death, a hang, the end of their Flower run."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fedward_common.errors import StartError
from fedward_server.adapters.lock_holder import descends, end_process, lock_holder
from fedward_server.adapters.run_files import LOG
from fedward_server.continuation import HANG_SECONDS, MAX_FUTILE, START_SECONDS, Continuation
from tests.support.federation import FakeClock

RUN = "study-1"


@dataclass
class FakeRuns:
    """One coordinator's runs in memory."""

    names: list[str] = field(default_factory=lambda: [RUN])
    pid: int | None = None
    woken: int = 0
    ended: bool = False
    checkpoints: int = 0
    asked_to_end: bool = False
    down: bool = False
    orphan: bool = False
    started: list[str] = field(default_factory=list)
    killed: list[int] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)

    def unfinished(self) -> Sequence[str]:
        return list(self.names)

    def writer(self, run: str) -> int | None:
        return self.pid

    def wakes(self, pid: int) -> int | None:
        return self.woken

    def orphaned(self, pid: int) -> bool:
        return self.orphan

    def end(self, pid: int) -> None:
        self.killed.append(pid)
        self.pid = None

    def over(self, run: str) -> bool:
        return self.ended

    def progress(self, run: str) -> int:
        return self.checkpoints

    def start(self, run: str) -> None:
        if self.down:
            raise StartError("SuperLink: expected an answer on loopback, found none")
        self.started.append(run)

    def give_up(self, run: str, reason: str) -> None:
        self.given_up.append(reason)
        self.names.remove(run)

    def cancelled(self, run: str) -> bool:
        return self.asked_to_end


class Keeper:
    def __init__(self, **facts: object) -> None:
        self.runs, self.clock = FakeRuns(**facts), FakeClock()  # type: ignore[arg-type]
        self.continuation = Continuation(runs=self.runs, clock=self.clock)

    def look(self, *, seconds: float = 0.0) -> None:
        for _ in range(max(1, round(seconds))):
            self.continuation.look()
            self.clock.sleep(1)


def test_after_a_reboot_every_unfinished_run_is_started_again_at_once() -> None:
    keeper = Keeper(names=["a", "b"])

    keeper.look()

    assert keeper.runs.started == ["a", "b"]


def test_a_run_that_works_is_left_alone() -> None:
    keeper = Keeper(pid=7)

    for _ in range(300):
        keeper.runs.woken += 1
        keeper.look()

    assert (keeper.runs.started, keeper.runs.killed) == ([], [])


def test_a_run_whose_serverapp_died_is_started_again() -> None:
    keeper = Keeper(pid=7)
    keeper.look()
    keeper.runs.pid = None

    keeper.look()

    assert keeper.runs.started == [RUN]


def test_a_new_run_gets_time_to_come_up() -> None:
    keeper = Keeper(names=[])
    keeper.look()
    keeper.runs.names = [RUN]
    keeper.look(seconds=START_SECONDS)
    before = list(keeper.runs.started)

    keeper.look(seconds=3)

    assert (before, keeper.runs.started) == ([], [RUN])


def test_a_new_run_that_flower_gave_up_is_started_again_at_once() -> None:
    keeper = Keeper(names=[])
    keeper.look()
    keeper.runs.names, keeper.runs.ended = [RUN], True

    keeper.look()

    assert keeper.runs.started == [RUN]


def test_a_serverapp_that_does_nothing_is_killed_within_the_limit_and_its_run_goes_on() -> None:
    keeper = Keeper(pid=7)

    keeper.look(seconds=HANG_SECONDS + 3)

    assert keeper.runs.killed == [7]
    assert keeper.runs.started == [RUN]


def test_a_serverapp_whose_flower_run_has_ended_is_reaped() -> None:
    keeper = Keeper(pid=7, ended=True)

    for _ in range(round(HANG_SECONDS) + 3):
        keeper.runs.woken += 1
        keeper.look()

    assert keeper.runs.killed == [7]
    assert keeper.runs.started == [RUN]


def test_a_run_that_gets_nowhere_is_tried_ever_more_rarely_and_given_up_with_its_reason() -> None:
    keeper = Keeper()

    keeper.look(seconds=3600)

    assert len(keeper.runs.started) == MAX_FUTILE
    assert "without a new round" in keeper.runs.given_up[0]


def test_a_run_that_gets_on_between_its_deaths_is_never_given_up() -> None:
    keeper = Keeper()

    for _ in range(3 * MAX_FUTILE):
        keeper.look(seconds=2)
        keeper.runs.checkpoints, keeper.runs.pid = keeper.runs.checkpoints + 1, 7
        keeper.look()
        keeper.runs.pid = None

    assert keeper.runs.given_up == []
    assert len(keeper.runs.started) >= 2 * MAX_FUTILE


def test_while_superlink_is_away_nothing_is_started_and_nothing_given_up() -> None:
    keeper = Keeper(down=True)
    keeper.look(seconds=3600)
    keeper.runs.down = False

    keeper.look(seconds=12)

    assert keeper.runs.given_up == []
    assert keeper.runs.started == [RUN]


@pytest.mark.parametrize("pid", [None, 7])
def test_a_cancelled_run_is_ended_and_not_started_again(pid: int | None) -> None:
    keeper = Keeper(pid=pid, asked_to_end=True)

    for _ in range(round(HANG_SECONDS) + 3):
        keeper.runs.woken += 1
        keeper.look()

    assert keeper.runs.started == []
    assert keeper.runs.given_up == [""]


def test_a_serverapp_that_a_dead_coordinator_left_behind_is_reaped_at_once() -> None:
    keeper = Keeper(pid=7, orphan=True)

    keeper.look(seconds=2)

    assert keeper.runs.killed == [7]
    assert keeper.runs.started == [RUN]


def test_who_holds_a_lock_is_found_and_ended_by_its_name_only(tmp_path: Path) -> None:
    path = tmp_path / LOG
    code = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'w'); "
        "fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()

        assert lock_holder(path) == process.pid
        assert descends(process.pid, from_=os.getpid())
        assert not descends(os.getpid(), from_=process.pid)
        assert not end_process(process.pid, named="flwr-serverapp")
        assert end_process(process.pid, named="fcntl.flock")
        process.wait()

    assert lock_holder(path) is None
