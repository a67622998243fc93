"""SuperNode's heartbeat, as the gateway sees it: a file that changes while SuperNode asks for work
or has some.

SuperNode can stay up and do nothing: its loop has ended, or the coordinator does not know its
session any more and answers every question with a refusal. Both show here, and only here; whoever
supervises SuperNode starts it again then. A coordinator that is away is no fault of SuperNode's.

SuperNode takes one instruction at a time and asks for nothing until it has pushed the reply: a
training of an hour or an open phase is silence of an hour, in which it is well. The heart beats on
then until the instruction's own lifetime is over.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol

TICK_SECONDS: Final = 2.0
FINE: Final = frozenset({200, 403, 502, 503, 504})
"""Statuses of SuperLink after which SuperNode's session is still good, or nobody can tell."""


class Pulse(Protocol):
    """Hears when SuperNode asks for work, and what SuperLink says to it."""

    @contextmanager
    def asking(self) -> Iterator[None]:
        """While SuperNode waits for work."""
        ...

    def answered(self, status: int) -> None:
        """SuperLink's answer to the question for work."""
        ...

    def works(self, until: float) -> None:
        """SuperNode has an instruction that lives until this Unix time."""
        ...


class NoPulse:
    """A `Pulse` that nobody watches."""

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Nothing."""
        yield

    def answered(self, status: int) -> None:
        """Nothing."""

    def works(self, until: float) -> None:
        """Nothing."""


class PulseFile:
    """A `Pulse` as the time of a file's last change."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._works_until = 0.0
        self._asking = 0
        self._refused = False
        self.beat()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """The file changes while SuperNode waits, unless SuperLink refused it last."""
        self._works_until = 0.0  # it asks only when it is done with what it had
        self._asking += 1
        self.beat()
        try:
            yield
        finally:
            self._asking -= 1
            self.beat()

    def answered(self, status: int) -> None:
        """Takes note of SuperLink's answer."""
        self._refused = status not in FINE

    def works(self, until: float) -> None:
        """Beats on until then, or until SuperNode asks for more."""
        self._works_until = max(self._works_until, until)

    def beat(self) -> None:
        """Changes the file, unless SuperLink refused; a full disk is no reason to stop."""
        if self._refused:
            return
        with suppress(OSError):
            self._path.touch(mode=0o600)
            os.utime(self._path)

    async def run(self) -> None:
        """Goes on beating while a question or an instruction is under way, for ever."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self._asking or self._clock() < self._works_until:
                self.beat()
