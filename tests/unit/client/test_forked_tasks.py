"""A task that is stopped for good is ended; one that works, or is looked at, is let be."""

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from fedward_client.adapters.forked_tasks import LOOKS, ForkedTasks


@pytest.fixture
def fork() -> Iterator[Callable[[], int]]:
    """Children that sleep; none is left."""
    pids: list[int] = []

    def one() -> int:
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        pids.append(pid)
        return pid

    yield one
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


def has_ended(pid: int) -> bool:
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    return ended is not None


def test_a_stopped_task_is_ended_after_some_looks_and_a_working_one_never(
    fork: Callable[[], int],
) -> None:
    tasks, stopped, working = ForkedTasks(), fork(), fork()
    tasks.add(stopped)
    tasks.add(working)
    stop(stopped)

    for _ in range(LOOKS - 1):
        tasks.look()
    early = has_ended(stopped)
    tasks.look()
    os.waitid(os.P_PID, stopped, os.WEXITED | os.WNOWAIT)
    tasks.look()

    assert not early
    assert not has_ended(working)
    assert len(tasks) == 1


def test_a_task_that_goes_on_again_is_let_be(fork: Callable[[], int]) -> None:
    tasks, pid = ForkedTasks(), fork()
    tasks.add(pid)
    stop(pid)
    for _ in range(LOOKS - 1):
        tasks.look()
    os.kill(pid, signal.SIGCONT)
    os.waitid(os.P_PID, pid, os.WCONTINUED | os.WNOWAIT)

    tasks.look()
    stop(pid)
    tasks.look()

    assert not has_ended(pid)


def test_a_child_knows_nothing_of_the_others(fork: Callable[[], int]) -> None:
    tasks, pid = ForkedTasks(), fork()
    tasks.add(pid)

    tasks.forget()
    stop(pid)
    for _ in range(2 * LOOKS):
        tasks.look()

    assert len(tasks) == 0
    assert not has_ended(pid)
