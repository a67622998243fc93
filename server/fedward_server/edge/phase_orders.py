"""The Unix socket on which ServerApps open phases, hand out steps and hear the answers."""

import asyncio
import os
import re
from pathlib import Path
from typing import Final

import structlog

from fedward_common.channel.phase_pb2 import PhaseEvent, PhaseOrder
from fedward_common.channel.phases import framed, from_step, read_message
from fedward_common.errors import FedwardError, PolicyRefused, ProtocolError
from fedward_common.ids import DIGEST, LABEL
from fedward_common.unix_sockets import listen_unix, peer_uid
from fedward_server.edge.phase_hub import OpenPhase, PhaseHub

OPEN_SECONDS: Final = 5.0
MAX_SITES: Final = 1000

_log = structlog.get_logger(__name__)


class PhaseOrders:
    """One connection is one phase: it begins with `open` and ends when the connection does.

    The socket is 0600 and only a process of the edge's own user is heard. A ServerApp that dies
    takes its phase with it: every site of it hears that it is over.
    """

    def __init__(self, *, path: Path, hub: PhaseHub) -> None:
        self._path = path
        self._hub = hub
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listens. Raises StartError when the socket cannot be made, or something listens there."""
        self._server = await asyncio.start_unix_server(self._accept, sock=listen_unix(self._path))

    async def stop(self) -> None:
        """Stops listening and ends every phase."""
        if self._server is not None:
            self._server.close()
        tasks = list(self._serving)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: asyncio minds when the one that it made for us is cancelled.
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._serving.add(task)
        try:
            await asyncio.wait([task])
        finally:
            self._serving.discard(task)
            writer.close()
        error = None if task.cancelled() else task.exception()
        if isinstance(error, FedwardError | OSError | TimeoutError):
            _log.warning("edge.phase-refused", error=type(error).__name__)
        elif error is not None:
            raise error

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if peer_uid(writer.get_extra_info("socket")) != os.getuid():
            raise PolicyRefused("phase: expected the coordinator's user, found another")
        first = await asyncio.wait_for(read_message(reader, PhaseOrder), OPEN_SECONDS)
        if first is None or not re.fullmatch(DIGEST, first.open):
            raise ProtocolError("phase: expected the study to open first, found another message")
        news = News()
        phase = self._hub.open(first.open, _sites(first), news.add)
        telling = asyncio.ensure_future(_tell(news, writer))
        try:
            await self._follow(phase, reader)
        finally:
            self._hub.close(phase)
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)

    async def _follow(self, phase: OpenPhase, reader: asyncio.StreamReader) -> None:
        while (order := await read_message(reader, PhaseOrder)) is not None:
            if order.WhichOneof("said") != "step":
                raise ProtocolError("phase: expected a step after opening, found another message")
            from_step(order.step)
            phase.hand(order.step, _sites(order))


class News:
    """What a ServerApp is to hear next: of each site at most where it is, and its newest answer.

    A site that comes and goes, however fast, makes nobody else wait and nothing grow.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, bool], PhaseEvent] = {}
        self._some = asyncio.Event()

    def add(self, event: PhaseEvent) -> None:
        """Takes one event in; it replaces one of the same kind of its site that was not told."""
        key = (event.site, event.WhichOneof("said") == "answer")
        self._waiting.pop(key, None)
        self._waiting[key] = event
        self._some.set()

    async def next(self) -> PhaseEvent:
        """The oldest; waits for one."""
        await self._some.wait()
        event = self._waiting.pop(next(iter(self._waiting)))
        if not self._waiting:
            self._some.clear()
        return event

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)


async def _tell(news: News, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(framed(await news.next()))
        await writer.drain()


def _sites(order: PhaseOrder) -> list[str]:
    if len(order.sites) > MAX_SITES or not all(re.fullmatch(LABEL, site) for site in order.sites):
        raise ProtocolError(f"phase: expected up to {MAX_SITES} site ids, found something else")
    return list(order.sites)
