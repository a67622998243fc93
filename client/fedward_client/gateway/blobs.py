"""Blobs at the gateway: fetched when a message names them, sent when the guard released a reply.

A worker chooses nothing here. What is fetched are blobs that the coordinator named in a message
that came in through this gateway; what is sent is what the guard sealed, read from the guard's own
file. Both are resumed where a cut left them, and lie in files without a name.
"""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol, TypeVar

import structlog

from fedward_client.gateway.streams import FetchStream, SendStream
from fedward_client.ports import BlobGuard, Passing
from fedward_common.channel.blob_files import BlobFile, send_with_files
from fedward_common.channel.blob_pb2 import BlobChunk, BlobDown, BlobUp, BlobWanted
from fedward_common.channel.blobs import BLOB, REST, ROUTE, Have, Manifest, manifests_in
from fedward_common.channel.phase_pb2 import PhaseDown
from fedward_common.channel.phases import framed
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.errors import ChannelError, FedwardError, PolicyRefused, ProtocolError
from fedward_common.wire import Octets

T = TypeVar("T")

RESUME_SECONDS: Final = 600.0
"""How long a blob that does not move is tried again."""
REFUSED_SECONDS: Final = 60.0
"""How long where the edge knows nothing of it: its ServerApp may be coming back, or is gone."""
RETRY_SECONDS: Final = 0.5
MAX_RETRY_SECONDS: Final = 10.0
KEEP_SECONDS: Final = 6 * 3600.0
"""How long a blob waits for its worker."""
MAX_INCOMING: Final = 16
LOOK_CHUNKS: Final = 16
"""How often the guard is asked again within a blob that leaves: a pause holds in its middle."""
HOPELESS: Final = frozenset({Refusal.BLOB_SIZE, Refusal.MALFORMED})
DISK_THREADS: Final = 2

_log = structlog.get_logger(__name__)


class BlobStreams(Protocol):
    """Where streams to the edge come from."""

    @property
    def edge_certificate_sha256(self) -> str:
        """The certificate that the edge last showed."""
        ...

    def fetch_blob(self) -> FetchStream:
        """A new stream for a blob that comes in."""
        ...

    def send_blob(self) -> SendStream:
        """A new stream for a blob that goes out."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """Where incoming blobs lie, and how much of them: each, and all together."""

    folder: Path
    max_bytes: int
    quota_bytes: int


@dataclass(eq=False, kw_only=True, slots=True)
class _Incoming:
    """A blob that comes in for one worker, or for several one after the other."""

    manifest: Manifest
    since: float
    file: BlobFile | None = None
    workers: int = 0
    task: "asyncio.Task[BlobFile] | None" = None


@dataclass(kw_only=True, slots=True)
class _Patience:
    """Until when a blob that does not move is tried again."""

    clock: Callable[[], float]
    moved: float = field(init=False)
    pause: float = RETRY_SECONDS

    def __post_init__(self) -> None:
        self.moved = self.clock()

    def moves(self) -> None:
        """A chunk came through."""
        self.moved, self.pause = self.clock(), RETRY_SECONDS

    async def wait(self, error: FedwardError) -> None:
        """Waits before the next try. Raises `error` when there is no use in one."""
        refusal = error.refusal if isinstance(error, CallRefused) else None
        limit = REFUSED_SECONDS if refusal is Refusal.BLOB else RESUME_SECONDS
        if refusal in HOPELESS or self.clock() - self.moved > limit:
            raise error
        await asyncio.sleep(self.pause)
        self.pause = min(2 * self.pause, MAX_RETRY_SECONDS)


class BlobDesk:
    """Carries the blobs of this site's messages. `ask` runs a question to the guard."""

    def __init__(
        self,
        *,
        streams: BlobStreams,
        guard: BlobGuard,
        ask: Callable[..., Awaitable[object]],
        room: Room,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._streams = streams
        self._guard = guard
        self._ask = ask
        self._room = room
        self._clock = clock
        self._incoming: dict[str, _Incoming] = {}
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._asking: set[asyncio.Task[None]] = set()
        self._disk = ThreadPoolExecutor(max_workers=DISK_THREADS, thread_name_prefix="blob")

    async def stop(self) -> None:
        """Ends what is under way; nothing of it stays on disk."""
        tasks = [*self._asking, *self._sending.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for blob in list(self._incoming):
            self._drop(blob)
        self._disk.shutdown(wait=False)

    # In

    def announced(self, blobs: Mapping[str, Octets]) -> None:
        """Begins to fetch what the manifests in a message of the coordinator stand for.

        What an earlier message of the same study named, and no worker asked for, is given up. What
        is too large, or for what there is no room, is not fetched: its worker hears so.

        Raises:
            ProtocolError: something there is no manifest.
        """
        found = manifests_in(blobs).values()
        now = self._clock()
        for manifest in found:
            named = {one.id for one in found if one.study == manifest.study}
            for blob, incoming in list(self._incoming.items()):
                same = incoming.manifest.study == manifest.study and blob not in named
                if same or now - incoming.since > KEEP_SECONDS:
                    self._drop(blob)
        for manifest in found:
            self._expect(manifest, now)

    def _expect(self, manifest: Manifest, now: float) -> None:
        known = self._incoming.get(manifest.id)
        if known is not None and not (known.task and known.task.done() and not known.file):
            known.workers += 1
            known.since = now
            return
        taken = sum(one.manifest.size for one in self._incoming.values())
        if (
            manifest.size > self._room.max_bytes
            or taken + manifest.size > self._room.quota_bytes
            or len(self._incoming) >= MAX_INCOMING
        ):
            _log.warning("blob.no-room", bytes=manifest.size, taken=taken)
            return
        incoming = _Incoming(manifest=manifest, since=now, workers=1)
        incoming.task = asyncio.ensure_future(self._fetched(incoming))
        incoming.task.add_done_callback(_seen)
        self._incoming[manifest.id] = incoming

    async def hand(self, blob: str, writer: asyncio.StreamWriter) -> None:
        """Hands a worker the open file of a blob of its message, as soon as it is whole.

        Raises:
            PolicyRefused: no message named it, or it did not come; the worker hears that it is
                refused, before.
        """
        incoming = self._incoming.get(blob)
        try:
            if incoming is None or incoming.task is None:
                raise PolicyRefused("blob: expected one of a message that came in, found another")
            file = await asyncio.shield(incoming.task)
        except FedwardError as error:
            writer.write(framed(PhaseDown(refused=Refusal.BLOB.value)))
            await writer.drain()
            raise PolicyRefused(f"blob: expected it whole, found {error}") from error
        descriptor = file.reader()
        try:
            _send_file(writer, framed(PhaseDown(blob=file.size)), descriptor)
        finally:
            os.close(descriptor)
        incoming.workers -= 1
        if incoming.workers <= 0 and self._incoming.get(blob) is incoming:
            self._drop(blob)

    def _drop(self, blob: str) -> None:
        incoming = self._incoming.pop(blob)
        if incoming.task is not None:
            incoming.task.cancel()  # one that is not whole closes its file itself
        if incoming.file is not None:
            incoming.file.close()

    async def _fetched(self, incoming: _Incoming) -> BlobFile:
        """The whole blob, written down; what came of one that did not is written down, too."""
        manifest = incoming.manifest
        have, patience = Have(len(manifest.chunks)), _Patience(clock=self._clock)
        file = await self._on_disk(BlobFile.make, self._room.folder, manifest.size)
        try:
            while not have.whole:
                try:
                    await self._fetch(manifest, have, file, patience)
                except ChannelError as error:
                    _log.warning("blob.cut", reason=str(error))
                    await patience.wait(error)
        except (FedwardError, asyncio.CancelledError):
            file.close()
            if not have.none:
                came = manifest.size - have.missing_bytes(manifest)
                self._spawn(self._journal("in", REST, manifest, came))
            raise
        incoming.file = file
        await self._journal("in", BLOB, manifest, manifest.size)
        return file

    async def _fetch(
        self, manifest: Manifest, have: Have, file: BlobFile, patience: _Patience
    ) -> None:
        stream = self._streams.fetch_blob()
        try:
            wanted = BlobWanted(study=manifest.study, id=manifest.id, have=have.bits)
            await stream.write(wanted)
            while not have.whole:
                down = _said(await stream.read(), "chunk")
                chunk = down.chunk
                if chunk.number >= len(manifest.chunks) or chunk.number in have:
                    raise ProtocolError("blob: expected a missing chunk, found another")
                await self._on_disk(_keep, manifest, file, chunk)
                have.add(chunk.number)
                patience.moves()
            with suppress(ChannelError):
                await stream.read()  # so that the edge ends the stream, and not we
        finally:
            stream.close()

    # Out

    def released(self, message_id: str) -> None:
        """Begins to send what belongs to a message that the guard let out, if anything does."""
        self._spawn(self._send_beside(message_id))

    async def _send_beside(self, message_id: str) -> None:
        found = await self._ask(self._guard.blob, message_id)
        if not isinstance(found, tuple):
            return
        data, descriptor = found
        manifest = Manifest.parse(data)
        file = BlobFile.adopt(descriptor, manifest.size)
        before = self._sending.get(manifest.study)
        if before is not None:  # an older round's: nobody waits for it any more
            before.cancel()
        task = asyncio.ensure_future(self._sent(manifest, file))
        self._sending[manifest.study] = task
        try:
            await task
        finally:
            if self._sending.get(manifest.study) is task:
                del self._sending[manifest.study]
            file.close()

    async def _sent(self, manifest: Manifest, file: BlobFile) -> None:
        patience = _Patience(clock=self._clock)
        while True:
            try:
                await self._send(manifest, file, patience)
                return
            except (ChannelError, PolicyRefused) as error:
                _log.warning("blob.waiting", code=error.code, reason=str(error))
                await patience.wait(error)

    async def _send(self, manifest: Manifest, file: BlobFile, patience: _Patience) -> None:
        stream = self._streams.send_blob()
        try:
            await stream.write(BlobUp(manifest=manifest.canonical))
            down = _said(await stream.read(), "have", "whole")
            if down.WhichOneof("said") == "whole":
                return
            have = Have.parse(down.have, len(manifest.chunks))
            if not have.whole:
                kind = BLOB if have.none else REST
                await self._journal("out", kind, manifest, have.missing_bytes(manifest))
            for count, number in enumerate(have.missing()):
                if count and count % LOOK_CHUNKS == 0:
                    await self._ask(self._guard.require_blob, manifest.id)
                content = await self._on_disk(file.chunk, number)
                await self._write_chunk(stream, BlobChunk(number=number, content=content))
                patience.moves()
            _said(await stream.read(), "whole")
        finally:
            stream.close()

    async def _write_chunk(self, stream: SendStream, chunk: BlobChunk) -> None:
        try:
            await stream.write(BlobUp(chunk=chunk))
        except ChannelError:
            _said(await stream.read(), "whole")  # why the edge ended it, where it said so
            raise

    # Both

    async def _journal(
        self, direction: Literal["in", "out"], kind: str, manifest: Manifest, size: int
    ) -> None:
        passing = Passing(
            direction=direction,
            route=ROUTE,
            kind=kind,
            sha256=manifest.id,
            bytes=size,
            certificate_sha256=self._streams.edge_certificate_sha256,
        )
        await self._ask(self._guard.journal, passing)

    async def _on_disk(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work, *arguments)

    def _spawn(self, work: Awaitable[None]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(_logged(work))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)


async def _logged(work: Awaitable[None]) -> None:
    try:
        await work
    except FedwardError as error:
        _log.warning("blob.given-up", code=error.code, reason=str(error))


def _seen(task: "asyncio.Task[BlobFile]") -> None:
    """Nobody may ever ask for a blob that did not come."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("blob.not-fetched", error=type(error).__name__, reason=str(error))


def _keep(manifest: Manifest, file: BlobFile, chunk: BlobChunk) -> None:
    manifest.check(chunk.number, chunk.content)
    file.write(chunk.number, chunk.content)


def _said(down: BlobDown | None, *expected: str) -> BlobDown:
    """What the edge says, if it is one of these.

    Raises:
        CallRefused: it refuses, with its reason.
        ChannelError: the stream ended, or it said something else.
    """
    said = "" if down is None else down.WhichOneof("said")
    if down is not None and said == "refused":
        known = down.refused in set(Refusal)
        refusal = Refusal(down.refused) if known else Refusal.UPSTREAM
        raise CallRefused(refusal, "expected the edge to go on with a blob, found it refused")
    if down is None or said not in expected:
        raise ChannelError("blob: expected the next message of a stream, found it ended")
    return down


def _send_file(writer: asyncio.StreamWriter, frame: bytes, descriptor: int) -> None:
    """A short frame and an open file; nothing else was written on this connection."""
    with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as connection:
        try:
            send_with_files(connection, frame, [descriptor])
        except OSError as error:
            raise ChannelError("blob: expected its worker, found it gone") from error
