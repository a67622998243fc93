"""grpc's side of blobs: a member site fetches what is offered to it, or sends what is awaited.

Each stream is of one site, admitted at its start and again and again while it lasts. A few are at
work at a time, whatever the number of sites, so that memory does not grow with them; the others
wait for their turn on an open stream.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Final, Literal, TypeVar

import grpc

from fedward_common.channel.blob_pb2 import BlobChunk, BlobDown, BlobUp, BlobWanted
from fedward_common.channel.blobs import BLOB, REST, ROUTE, SERVICE, Have, Manifest
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.errors import ProtocolError, StorageError
from fedward_common.ids import SiteId
from fedward_server.edge.admission import Admission, certificate_sha256
from fedward_server.edge.blob_hub import Arrival, BlobHub, Offer
from fedward_server.edge.gate import Gate, Passing
from fedward_server.edge.listening import Requests, read_one, shown_certificate

AT_ONCE: Final = 8
"""Streams each way that carry chunks at a time."""
STALL_SECONDS: Final = 60.0
"""A stream on which no chunk moves for so long makes room for others; the site goes on later."""
LOOK_CHUNKS: Final = 16
"""How often certificate and roster are asked again within a stream."""
DISK_THREADS: Final = 4

Way = Literal["in", "out"]
T = TypeVar("T")


class BlobService:
    """`FedwardBlobs` for active sites of the roster.

    Guarantees: a blob is a line `edge.object` of the log before its first chunk goes out, and
    before a ServerApp hears of one that came in; no chunk is kept that is not what its digest says.
    """

    def __init__(
        self,
        *,
        admission: Admission,
        gate: Gate,
        hub: BlobHub,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self._admission = admission
        self._gate = gate
        self._hub = hub
        self._stall = stall_seconds
        self._turns = {"in": asyncio.Semaphore(AT_ONCE), "out": asyncio.Semaphore(AT_ONCE)}
        # Not the gate's one thread, which keeps the order of the log.
        self._disk = ThreadPoolExecutor(max_workers=DISK_THREADS, thread_name_prefix="edge-blob")
        self._at_work: dict[tuple[SiteId, Way], asyncio.Task[None]] = {}

    def handler(self) -> grpc.GenericRpcHandler:
        """What a grpc server is given."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Fetch": grpc.stream_stream_rpc_method_handler(
                    self.fetch,
                    request_deserializer=BlobWanted.FromString,
                    response_serializer=BlobDown.SerializeToString,
                ),
                "Send": grpc.stream_stream_rpc_method_handler(
                    self.send,
                    request_deserializer=BlobUp.FromString,
                    response_serializer=BlobDown.SerializeToString,
                ),
            },
        )

    async def fetch(
        self, requests: Requests[BlobWanted], context: grpc.aio.ServicerContext
    ) -> None:
        """Gives the chunks that the site lacks of one blob."""

        async def work(site: SiteId) -> None:
            asked = await read_one(requests)
            offer = self._hub.offered(asked.study, site, asked.id)
            have = _have(asked.have, offer.manifest)
            await self._alone(site, "out", lambda: self._give(site, offer, have, context))

        await self._admitted(context, work)

    async def send(self, requests: Requests[BlobUp], context: grpc.aio.ServicerContext) -> None:
        """Takes the chunks that are missing of one blob of the site."""

        async def work(site: SiteId) -> None:
            first = await read_one(requests)
            arrival = self._hub.arriving(site, _manifest(first))
            await self._alone(site, "in", lambda: self._take(site, arrival, requests, context))

        await self._admitted(context, work)

    async def _admitted(
        self, context: grpc.aio.ServicerContext, work: Callable[[SiteId], Awaitable[None]]
    ) -> None:
        try:
            async with self._passing(context) as passing:
                await work(passing.record.site_id)
        except CallRefused as refused:
            await context.write(BlobDown(refused=refused.refusal.value))

    def _passing(self, context: grpc.aio.ServicerContext) -> AbstractAsyncContextManager[Passing]:
        pem = shown_certificate(context)
        return self._gate.passing(pem, route=ROUTE, admit=lambda: self._admission.member(pem))

    async def _alone(self, site: SiteId, way: Way, work: Callable[[], Awaitable[None]]) -> None:
        """Does `work`, at most one of this site and way at a time: a newer one ends the older.

        After a cut the edge may hear of the new stream before it knows of the old one's end.
        """
        before = self._at_work.get((site, way))
        if before is not None:
            before.cancel()
            await asyncio.wait([before])
        task = asyncio.ensure_future(self._in_turn(way, work))
        self._at_work[site, way] = task
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
            if self._at_work.get((site, way)) is task:
                del self._at_work[site, way]
        if task.cancelled():
            raise CallRefused(Refusal.RATE, f"{site}: expected one stream each way, found another")
        task.result()

    async def _in_turn(self, way: Way, work: Callable[[], Awaitable[None]]) -> None:
        async with self._turns[way]:
            await work()

    async def _give(
        self, site: SiteId, offer: Offer, have: Have, context: grpc.aio.ServicerContext
    ) -> None:
        await self._write(context, site, "out", offer.manifest, have)
        for count, number in enumerate(have.missing()):
            await self._still(context, count)
            if offer.over:
                raise CallRefused(Refusal.BLOB, f"{site}: expected an exchange that is not over")
            content = await self._on_disk(_chunk, offer, number)
            down = BlobDown(chunk=BlobChunk(number=number, content=content))
            await self._moving(context.write(down))
        await context.write(BlobDown(whole=True))

    async def _take(
        self,
        site: SiteId,
        arrival: Arrival,
        requests: Requests[BlobUp],
        context: grpc.aio.ServicerContext,
    ) -> None:
        before = Have.parse(arrival.have.bits, len(arrival.manifest.chunks))
        await context.write(BlobDown(have=arrival.have.bits))
        count = 0
        while not arrival.have.whole:
            await self._still(context, count)
            up = await self._moving(_next(requests))
            if arrival.over:
                raise CallRefused(Refusal.BLOB, f"{site}: expected an exchange that is not over")
            await self._on_disk(_keep, arrival, up)
            count += 1
        if not before.whole:
            await self._write(
                context, site, "in", arrival.manifest, Have(len(arrival.manifest.chunks))
            )
        self._hub.whole(site, arrival)
        await context.write(BlobDown(whole=True))

    async def _on_disk(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work, *arguments)

    async def _moving(self, step: Awaitable[T]) -> T:
        """What a step of the stream gives. Raises CallRefused(SLOW) when nothing moves."""
        try:
            return await asyncio.wait_for(step, timeout=self._stall)
        except TimeoutError as error:
            raise CallRefused(
                Refusal.SLOW, f"expected a chunk within {self._stall:g} s, found none"
            ) from error

    async def _still(self, context: grpc.aio.ServicerContext, count: int) -> None:
        """A site may be revoked, or its certificate end, in the middle of a blob."""
        if count and count % LOOK_CHUNKS == 0:
            await self._gate.in_thread(self._admission.member, shown_certificate(context))

    async def _write(
        self,
        context: grpc.aio.ServicerContext,
        site: SiteId,
        direction: Way,
        manifest: Manifest,
        have: Have,
    ) -> None:
        await self._gate.write(
            "edge.object",
            site=site,
            certificate_sha256=certificate_sha256(shown_certificate(context)),
            direction=direction,
            route=ROUTE,
            kind=BLOB if have.none else REST,
            sha256=manifest.id,
            bytes=have.missing_bytes(manifest),
        )


def _keep(arrival: Arrival, up: BlobUp) -> None:
    """Keeps one chunk that is missing and is what its digest says."""
    if up.WhichOneof("said") != "chunk" or up.chunk.number >= len(arrival.manifest.chunks):
        raise CallRefused(Refusal.MALFORMED, "expected a chunk of the blob, found another message")
    if up.chunk.number in arrival.have:
        raise CallRefused(Refusal.MALFORMED, "expected a chunk that is missing, found another")
    try:
        arrival.manifest.check(up.chunk.number, up.chunk.content)
        arrival.file.write(up.chunk.number, up.chunk.content)
    except ProtocolError as error:
        raise CallRefused(Refusal.MALFORMED, str(error)) from error
    except StorageError as error:
        raise CallRefused(Refusal.UPSTREAM, str(error)) from error
    arrival.have.add(up.chunk.number)


def _chunk(offer: Offer, number: int) -> bytes:
    try:
        return offer.file.chunk(number)
    except StorageError as error:
        refusal = Refusal.BLOB if offer.over else Refusal.UPSTREAM
        raise CallRefused(refusal, str(error)) from error


async def _next(requests: Requests[BlobUp]) -> BlobUp:
    try:
        return await anext(requests)
    except StopAsyncIteration as error:
        raise CallRefused(
            Refusal.MALFORMED, "expected the missing chunks, found the end"
        ) from error


def _manifest(up: BlobUp) -> Manifest:
    if up.WhichOneof("said") != "manifest":
        raise CallRefused(Refusal.MALFORMED, "expected a manifest first, found another message")
    try:
        return Manifest.parse(up.manifest)
    except ProtocolError as error:
        raise CallRefused(Refusal.MALFORMED, str(error)) from error


def _have(bits: bytes, manifest: Manifest) -> Have:
    try:
        return Have.parse(bits, len(manifest.chunks))
    except ProtocolError as error:
        raise CallRefused(Refusal.MALFORMED, str(error)) from error
