"""Phases at the gateway: a worker's Unix socket on one side, a stream to the edge on the other.

What a worker says here leaves only as one of Flower's messages would: the guard released exactly
these bytes, once, and wrote them down first. Everything else of what goes up is the gateway's own.
"""

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol, TypeVar

import structlog

from fedward_client.gateway.blobs import BlobDesk
from fedward_client.gateway.phase_course import Course
from fedward_client.gateway.streams import Stream
from fedward_client.ports import ObjectIds, Passing, PhaseGuard
from fedward_common.channel import phase_pb2 as wire
from fedward_common.channel.phases import (
    REPLY,
    ROUTE,
    STEP,
    envelope_bytes,
    envelope_sha256,
    framed,
    read_message,
    to_step,
)
from fedward_common.channel.refusals import Refusal
from fedward_common.errors import ChannelError, FedwardError, PolicyRefused, ProtocolError
from fedward_common.ids import DIGEST
from fedward_common.unix_sockets import listen_unix, peer_uid
from fedward_common.wire import Envelope

T = TypeVar("T")

JOIN_SECONDS: Final = 10.0
"""How long a worker may take to say which phase it is in."""
RESUME_SECONDS: Final = 30.0
"""How long a cut stream is tried again before the phase is over here."""
RETRY_SECONDS: Final = 0.5
MAX_WORKERS: Final = 16

_log = structlog.get_logger(__name__)


class Streams(Protocol):
    """Where streams to the edge come from."""

    @property
    def edge_certificate_sha256(self) -> str:
        """The certificate that the edge last showed."""
        ...

    def phase(self) -> Stream:
        """A new stream."""
        ...


@dataclass(frozen=True, kw_only=True)
class PhaseAccess:
    """Where workers connect and who they must be."""

    path: Path
    worker_uid: int
    group: str | None = None


class PhaseDesk:
    """Listens for workers and carries the phase of each."""

    def __init__(
        self,
        *,
        access: PhaseAccess,
        streams: Streams,
        guard: PhaseGuard,
        ask: Callable[..., Awaitable[object]],
        object_ids: ObjectIds,
        blobs: BlobDesk | None = None,
        resume_seconds: float = RESUME_SECONDS,
    ) -> None:
        self._access = access
        self._streams = streams
        self._blobs = blobs
        self._way_out = WayOut(
            streams=streams, guard=guard, ask=ask, object_ids=object_ids, blobs=blobs
        )
        self._resume_seconds = resume_seconds
        self._server: asyncio.Server | None = None
        self._serving: dict[asyncio.Task[None], str] = {}

    async def start(self) -> None:
        """Listens. Raises StartError when the socket cannot be made."""
        listener = listen_unix(self._access.path, group=self._access.group)
        self._server = await asyncio.start_unix_server(self._accept, sock=listener)

    async def stop(self) -> None:
        """Stops listening and ends every phase."""
        if self._server is not None:
            self._server.close()
        tasks = list(self._serving)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._access.path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: asyncio minds when the one that it made for us is cancelled.
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._serving[task] = ""
        try:
            await asyncio.wait([task])
        finally:
            del self._serving[task]
            writer.close()
        error = None if task.cancelled() else task.exception()
        if isinstance(error, FedwardError | OSError | TimeoutError):
            _log.warning("phase.refused", error=type(error).__name__)
        elif error is not None:
            raise error

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if peer_uid(writer.get_extra_info("socket")) != self._access.worker_uid:
            raise PolicyRefused("phase: expected the worker's user, found another")
        if len(self._serving) > MAX_WORKERS:
            raise PolicyRefused(f"phase: expected at most {MAX_WORKERS} workers at a time")
        joined = await asyncio.wait_for(read_message(reader, wire.PhaseUp), JOIN_SECONDS)
        if joined is not None and joined.WhichOneof("said") == "blob" and self._blobs is not None:
            await self._blobs.hand(joined.blob, writer)
            return
        if joined is None or not re.fullmatch(DIGEST, joined.join):
            raise ProtocolError("phase: expected the study of a phase first, found another message")
        if not await self._way_out.phase_open(joined.join):
            writer.write(framed(wire.PhaseDown(refused=Refusal.PHASE.value)))
            await writer.drain()
            raise PolicyRefused("phase: expected one that the guard opened, found none")
        task = asyncio.current_task()
        for other, study in list(self._serving.items()):
            if study == joined.join:  # an older task of the same study: its worker is gone or stuck
                other.cancel()
        if task is not None:
            self._serving[task] = joined.join
        await _Carried(
            study=joined.join,
            reader=reader,
            writer=writer,
            streams=self._streams,
            way_out=self._way_out,
            resume_seconds=self._resume_seconds,
        ).run()


@dataclass(frozen=True, kw_only=True)
class WayOut:
    """Asks the guard; `ask` runs a question in the gateway's one thread for that."""

    streams: Streams
    guard: PhaseGuard
    ask: Callable[..., Awaitable[object]]
    object_ids: ObjectIds
    blobs: BlobDesk | None = None

    async def phase_open(self, study: str) -> bool:
        """Whether the guard opened a phase of this study."""
        return await self.ask(self.guard.phase_open, study) is True

    async def came_in(self, envelope: Envelope) -> None:
        """Writes down a step that came in."""
        await self._journal("in", STEP, envelope)

    def announce(self, envelope: Envelope) -> None:
        """Begins to fetch the blobs that a step for the worker names. Raises ProtocolError."""
        if self.blobs is not None:
            self.blobs.announced(envelope.blobs)

    async def let_out(self, envelope: Envelope) -> None:
        """Returns when the guard let exactly these bytes out and wrote them down.

        Raises:
            PolicyRefused: no receipt for them, or the policy keeps them back now.
            ChannelError: the guard does not answer.
        """
        sha256, object_ids = envelope_sha256(envelope), sorted(self.object_ids(envelope))
        if await self.ask(self.guard.release, sha256, object_ids) is not True:
            raise PolicyRefused(
                "answer: expected an unused receipt of the guard for exactly these bytes, found "
                "none"
            )
        await self._journal("out", REPLY, envelope)
        if self.blobs is not None:
            self.blobs.released(sha256)

    async def _journal(
        self, direction: Literal["in", "out"], kind: str, envelope: Envelope
    ) -> None:
        passing = Passing(
            direction=direction,
            route=ROUTE,
            kind=kind,
            sha256=envelope_sha256(envelope),
            bytes=envelope_bytes(envelope),
            certificate_sha256=self.streams.edge_certificate_sha256,
        )
        await self.ask(self.guard.journal, passing)


class _Carried:
    """One worker's phase, over one stream after the other."""

    def __init__(
        self,
        *,
        study: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        streams: Streams,
        way_out: WayOut,
        resume_seconds: float,
    ) -> None:
        self._course = Course(study=study)
        self._reader = reader
        self._writer = writer
        self._streams = streams
        self._way_out = way_out
        self._resume_seconds = resume_seconds
        self._stream: Stream | None = None

    async def run(self) -> None:
        """Carries until the coordinator ends the phase, the worker goes, or the edge stays away."""
        both = [
            asyncio.ensure_future(self._from_worker()),
            asyncio.ensure_future(self._from_edge()),
        ]
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            if self._stream is not None:
                self._stream.close()

    async def _from_worker(self) -> None:
        while (up := await read_message(self._reader, wire.PhaseUp)) is not None:
            if up.WhichOneof("said") != "answer":
                raise ProtocolError("phase: expected an answer, found another message")
            answer = self._course.answers(up.answer)
            if answer is None:
                _log.info("phase.late-answer")
                continue
            try:
                await self._way_out.let_out(answer)
            except PolicyRefused as error:
                # As with a message: the coordinator learns of it by the deadline.
                _log.warning("phase.kept-back", reason=str(error))
                continue
            await self._send(answer, given=up.answer.number)

    async def _send(self, answer: Envelope, *, given: int) -> None:
        number = self._course.keep(answer, given=given)
        if number is None:
            _log.info("phase.late-answer")
            return
        if self._stream is None:
            return  # cut at this moment: the coordinator asks again, and gets it then
        with suppress(ChannelError):
            await self._stream.write(wire.PhaseUp(answer=to_step(number, answer)))

    async def _from_edge(self) -> None:
        tried_since = time.monotonic()
        while True:
            stream, stood_since, carried = self._streams.phase(), math.inf, False
            try:
                await stream.write(wire.PhaseUp(join=self._course.study))
                self._stream, stood_since = stream, time.monotonic()
                while (down := await stream.read()) is not None:
                    if down.WhichOneof("said") == "ended":
                        await self._end()
                        return
                    if down.WhichOneof("said") == "refused":
                        _log.warning("phase.edge-refused", code=_word(down.refused))
                        break
                    await self._step(down.step)
                    carried = True
            except ChannelError as error:
                _log.warning("phase.cut", reason=str(error))
            finally:
                self._stream = None
                stream.close()
            if carried or time.monotonic() - stood_since > self._resume_seconds:
                tried_since = (
                    time.monotonic()
                )  # it was there, if idle: patience begins with the cut
            if time.monotonic() - tried_since > self._resume_seconds:
                await self._end()
                return
            await asyncio.sleep(RETRY_SECONDS)

    async def _step(self, step: wire.PhaseStep) -> None:
        asked = self._course.asked(step)
        await self._way_out.came_in(asked.envelope)
        if asked.work:
            self._way_out.announce(asked.envelope)
            self._writer.write(framed(wire.PhaseDown(step=to_step(step.number, asked.envelope))))
            await self._writer.drain()
        elif asked.answer is not None:
            await self._way_out.let_out(asked.answer)
            await self._send(asked.answer, given=asked.given)

    async def _end(self) -> None:
        with suppress(ConnectionError):
            self._writer.write(framed(wire.PhaseDown(ended=True)))
            await self._writer.drain()


def _word(code: str) -> str:
    """A refusal as this version knows it; never the other side's text."""
    return code if code in set(Refusal) else "other"
