"""Replies fetched from SuperLink, each in a thread of its own: none can hold up another or the run.

A reply is a message and, after it, its objects; Flower's pull waits for the last of them. Who sends
a message and keeps an object back would otherwise stop the ServerApp for as long as it likes, and
with it the answers of every other site.
"""

import os
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Final

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, pull_objects
from flwr.superlink.grid import http_grid

from fedward_common.errors import StartError
from fedward_server.adapters.readiness import readable

OBJECT_BACKOFF_SECONDS: Final = 0.02
"""A reply may be announced a moment before its objects are stored; Flower waits 1 s."""
BACKOFF_CAP_SECONDS: Final = 1.0
YOUNG_SECONDS: Final = 2.0
"""How long a pull counts as one that will end by itself."""

_here = threading.local()


def quicken() -> None:
    """Makes Flower's pull look often at first, and end when nobody waits for it, in this process.

    Private name: `http_grid.pull_objects`.
    """
    if not hasattr(http_grid, "pull_objects"):
        raise StartError("flower: expected HttpGrid to call pull_objects, found another name")
    setattr(http_grid, "pull_objects", _pull_while_awaited)  # noqa: B010 - a name of Flower's


def _pull_while_awaited(object_ids: list[str], pull_object_fn: Callable[[str], bytes]) -> Any:
    given_up: threading.Event | None = getattr(_here, "given_up", None)

    def fetch(object_id: str) -> bytes:
        if given_up is not None and given_up.is_set():
            raise ObjectPullError(object_id, "nobody waits for it any more")
        return pull_object_fn(object_id)

    return pull_objects(
        object_ids,
        fetch,
        max_tries_per_object=None,
        initial_backoff=OBJECT_BACKOFF_SECONDS,
        backoff_cap=BACKOFF_CAP_SECONDS,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulled:
    """How one pull ended: `replies` gives what came, or raises what Flower raised."""

    message_id: str
    replies: Callable[[], list[Message]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _UnderWay:
    since: float
    given_up: threading.Event


class ReplyPulls:
    """Starts pulls and gives back those that ended. One caller; the pulls are other threads."""

    def __init__(self, grid: Grid, *, at_once: int) -> None:
        """At most `at_once` pulls are under way; more wait their turn."""
        self._grid = grid
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="reply")
        self._ended = SimpleQueue[tuple[str, Future[list[Message]]]]()
        self._under_way: dict[str, _UnderWay] = {}
        self._bell, self._ring = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int:
        """Readable while a pull that ended was not taken."""
        return self._bell

    def start(self, message_id: str) -> bool:
        """Asks SuperLink for the reply to a message; false where that is under way already."""
        if message_id in self._under_way:
            return False
        given_up = threading.Event()
        self._under_way[message_id] = _UnderWay(since=time.monotonic(), given_up=given_up)
        future = self._threads.submit(self._pull, message_id, given_up)
        future.add_done_callback(lambda done: self._end(message_id, done))
        return True

    def take(self) -> list[Pulled]:
        """The pulls that ended since the last call."""
        try:
            os.read(self._bell, 65536)
        except BlockingIOError:
            return []
        taken: list[Pulled] = []
        while True:
            try:
                message_id, future = self._ended.get_nowait()
            except Empty:
                return taken
            self._under_way.pop(message_id, None)
            taken.append(Pulled(message_id=message_id, replies=future.result))

    def give_up(self, message_ids: Collection[str]) -> None:
        """Ends the pulls of these messages within a moment; how they end is told as ever."""
        for message_id in message_ids:
            if message_id in self._under_way:
                self._under_way[message_id].given_up.set()

    def young(self, among: Collection[str]) -> int:
        """How many of these messages have a pull under way that began a moment ago."""
        now = time.monotonic()
        return sum(
            now - pull.since < YOUNG_SECONDS
            for message_id, pull in self._under_way.items()
            if message_id in among
        )

    def wait(self, seconds: float) -> None:
        """Returns when a pull ended, or after so long."""
        readable(self, seconds=seconds)

    def close(self) -> None:
        """Gives everything up; the process can end within a moment."""
        self.give_up(list(self._under_way))
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _pull(self, message_id: str, given_up: threading.Event) -> list[Message]:
        _here.given_up = given_up
        return list(self._grid.pull_messages([message_id]))

    def _end(self, message_id: str, future: Future[list[Message]]) -> None:
        self._ended.put((message_id, future))
        try:
            os.write(self._ring, b".")
        except BlockingIOError:  # full: whoever reads is rung already
            return
