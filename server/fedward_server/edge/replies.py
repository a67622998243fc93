"""When a site's reply is whole at SuperLink, and who wants to know (rules 19, the way back).

A reply is a message and, after it, its objects one by one. The ServerApp that asked too early would
find a message without content; so it is told when the last object has passed.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

MAX_SESSIONS: Final = 1024
MAX_UNHEARD: Final = 4096


@dataclass(kw_only=True, slots=True)
class _Session:
    node: int
    missing: set[str]


class ReplyWatch:
    """Follows the push sessions that pass and tells each listener which nodes' replies are whole.

    A session that never ends is forgotten when newer ones need its place: the ServerApp looks by
    itself from time to time, so a word that is lost costs time and never a reply.
    """

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._listeners: set[asyncio.Queue[int]] = set()

    def listen(self) -> "asyncio.Queue[int]":
        """A queue of node ids; `leave` ends it."""
        queue: asyncio.Queue[int] = asyncio.Queue(MAX_UNHEARD)
        self._listeners.add(queue)
        return queue

    def leave(self, queue: "asyncio.Queue[int]") -> None:
        """Tells this listener nothing more."""
        self._listeners.discard(queue)

    def opened(self, node: int, session: str, missing: frozenset[str]) -> None:
        """A node's message is at SuperLink; `missing` are the objects that it asked for."""
        if not missing:
            self._tell(node)
            return
        self._sessions[session] = _Session(node=node, missing=set(missing))
        while len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)

    def stored(self, session: str, object_id: str) -> None:
        """An object of a session is at SuperLink."""
        known = self._sessions.get(session)
        if known is None:
            return
        known.missing.discard(object_id)
        if not known.missing:
            del self._sessions[session]
            self._tell(known.node)

    def _tell(self, node: int) -> None:
        for queue in self._listeners:
            if not queue.full():
                queue.put_nowait(node)
