"""What the world does to a federation of real processes: a SuperLink that answers wrongly or loses
its answers, clocks that are wrong, disks that are full.

Checked after each as in test_killed_processes.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

import pytest

from tests.support.harmed import Harmed
from tests.support.meddler import PASS, Fate, Meddler, times

pytestmark = [pytest.mark.federation, pytest.mark.slow]

FULL_SECONDS: Final = 20.0


def fill(folder: Path) -> Path:
    """Writes until the disk is full; the file that fills it."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        except OSError:
            pass
    return ballast


@pytest.mark.parametrize("whose", ["coordinator", "city"])
def test_a_disk_that_is_full_for_a_while(harmed: Harmed, whose: str) -> None:
    if not harmed.small_disks:
        pytest.skip("needs the right to mount a file system")
    out = harmed.folder / "out"
    state = out / "coordinator" / "state" if whose == "coordinator" else out / "sites/city/state"

    def harm(_one: Harmed) -> None:
        ballast = fill(state)
        timer = threading.Timer(FULL_SECONDS, ballast.unlink)
        timer.daemon = True
        timer.start()

    harmed.survive(harm)


Calls = Callable[[str], Fate]


def _wrong(status: int, route: str, number: int) -> Calls:
    """The first `number` calls of a route get this status."""
    turns = times(number)
    return lambda path: Fate(status=status) if path.endswith(route) and next(turns) else PASS


def _lost(route: str, number: int) -> Calls:
    """The first `number` answers of a route that carry something never arrive."""
    turns = times(number)

    def lose(body: bytes) -> bool:
        return len(body) > 100 and next(turns)

    return lambda path: Fate(lose=lose) if path.endswith(route) else PASS


def _shuffled() -> Calls:
    """Every call comes twice, and every third one late."""
    numbers = count()
    routes = ("push-messages", "push-object", "pull-object", "get-run", "get-fab")

    def rule(path: str) -> Fate:
        late = 0.5 if next(numbers) % 3 == 0 else 0.0
        return Fate(late_seconds=late, twice=path.endswith(routes))

    return rule


WORLDS: dict[str, Callable[[], Calls]] = {
    "500 of pull-messages": lambda: _wrong(500, "pull-messages", 8),
    "429 of pull-messages": lambda: _wrong(429, "pull-messages", 8),
    "500 of push-messages": lambda: _wrong(500, "push-messages", 4),
    "429 of push-object": lambda: _wrong(429, "push-object", 4),
    "500 of heartbeats": lambda: _wrong(500, "send-node-heartbeat", 8),
    "401 of pull-messages": lambda: _wrong(401, "pull-messages", 4),
    "a lost pull-messages response": lambda: _lost("pull-messages", 1),
    "a lost pull-object response": lambda: _lost("pull-object", 1),
    "lost push-messages responses": lambda: _lost("push-messages", 4),
    "duplicated and reordered": _shuffled,
}


@pytest.mark.parametrize("world", WORLDS)
def test_a_superlink_that_answers_wrongly(harmed: Harmed, world: str) -> None:
    """From the second round's opening to the study's end."""
    with _meddled(harmed) as meddler:
        rule = WORLDS[world]()

        def harm(_one: Harmed) -> None:
            meddler.rule = rule

        harmed.survive(harm)


@contextmanager
def _meddled(one: Harmed) -> Iterator[Meddler]:
    with Meddler(one.federation.settings, lambda _path: PASS) as meddler:
        yield meddler


@pytest.mark.parametrize("minutes", [-10, 10])
@pytest.mark.parametrize("whose", ["coordinator", "city"])
def test_a_clock_that_jumps_by_ten_minutes_and_back(
    harmed: Harmed, whose: str, minutes: int
) -> None:
    if not harmed.clocks:
        pytest.skip("needs a C compiler")

    def harm(one: Harmed) -> None:
        one.set_clock(whose, 60 * minutes)
        timer = threading.Timer(FULL_SECONDS, one.set_clock, (whose, 0))
        timer.daemon = True
        timer.start()

    harmed.survive(harm)
