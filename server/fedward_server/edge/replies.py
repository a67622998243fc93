"""When a site's reply is whole at SuperLink, and who wants to know (rules 19, the way back).

A reply is a message and, after it, its objects one by one. The ServerApp that asked too early would
find a message without content; so it is told when the last object has passed.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

MAX_NODES: Final = 1024
MAX_MISSING: Final = 4096
"""Objects of one reply; a message of ours has six. Of more nobody is told."""
MAX_UNHEARD: Final = 4096


@dataclass(kw_only=True, slots=True)
class _Session:
    name: str
    missing: set[str]


class ReplyWatch:
    """Follows the push sessions that pass and tells each listener which nodes' replies are whole.

    One session per node, its newest: SuperLink, too, drops the older one. A session that never ends
    is forgotten when those of other nodes need its place: the ServerApp looks by itself from time
    to time, so a word that is lost costs time and never a reply.
    """

    def __init__(self) -> None:
        self._by_node: OrderedDict[int, _Session] = OrderedDict()
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
        self._by_node.pop(node, None)
        if not missing:
            self._tell(node)
        elif len(missing) <= MAX_MISSING:
            self._by_node[node] = _Session(name=session, missing=set(missing))
            while len(self._by_node) > MAX_NODES:
                self._by_node.popitem(last=False)

    def stored(self, node: int, session: str, object_id: str) -> None:
        """An object of a node's session is at SuperLink."""
        known = self._by_node.get(node)
        if known is None or known.name != session:
            return
        known.missing.discard(object_id)
        if not known.missing:
            del self._by_node[node]
            self._tell(node)

    def _tell(self, node: int) -> None:
        for queue in self._listeners:
            if not queue.full():
                queue.put_nowait(node)
