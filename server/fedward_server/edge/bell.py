"""Which nodes have work: rung by the ServerApp, waited for by long polls (rules 19)."""

import asyncio
from collections import Counter
from collections.abc import Iterable


class WorkBell:
    """Counts the messages that were announced for each node and wakes who waits for them.

    A ring before the poll is remembered. Only a message that SuperLink really handed out lowers the
    count, so a site that polls in another node's name cannot use up that node's rings.
    """

    def __init__(self) -> None:
        self._announced: Counter[int] = Counter()
        self._waiting: dict[int, set[asyncio.Event]] = {}

    def ring(self, nodes: Iterable[int]) -> None:
        """Announces one message for each of `nodes`; a node named twice has two."""
        for node in nodes:
            self._announced[node] += 1
            for event in self._waiting.get(node, ()):
                event.set()

    def has_work(self, node: int) -> bool:
        """Whether a message was announced for `node` and not handed out yet."""
        return self._announced[node] > 0

    async def wait(self, node: int, *, seconds: float) -> bool:
        """Returns true as soon as there is work for `node`, false after `seconds` without."""
        if self.has_work(node):
            return True
        event = asyncio.Event()
        self._waiting.setdefault(node, set()).add(event)
        try:
            await asyncio.wait_for(event.wait(), timeout=max(0.0, seconds))
        except TimeoutError:
            return False
        finally:
            waiting = self._waiting[node]
            waiting.discard(event)
            if not waiting:
                del self._waiting[node]
        return True

    def handed_out(self, node: int) -> None:
        """Counts down one message; a message that nobody announced changes nothing."""
        self._announced[node] -= 1
        if self._announced[node] <= 0:
            del self._announced[node]

    def give_up(self, node: int) -> None:
        """Forgets what was announced for `node`: SuperLink has nothing for it."""
        self._announced.pop(node, None)
