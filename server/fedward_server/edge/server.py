"""The edge's process, assembled: grpc listener, kicks, log, self-test."""

import asyncio
import signal
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Final

import grpc
import structlog

from fedward_common.channel import channel_pb2 as wire
from fedward_common.channel.blob_files import BlobFile
from fedward_common.channel.credentials import TlsFiles, server_credentials, server_options
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.tls import prove_server
from fedward_common.errors import StartError
from fedward_common.log.events import EventLog
from fedward_common.processes import until_set
from fedward_common.trust.certificates import make_loopback_identity
from fedward_server.adapters.certificate_authority import open_authority
from fedward_server.adapters.flower_fleet import FlowerFleetMessages
from fedward_server.adapters.registry import SqlRegistry, open_registry
from fedward_server.adapters.upstream import SuperLinkUpstream
from fedward_server.edge.admission import Admission, Call, CallRate
from fedward_server.edge.bell import WorkBell
from fedward_server.edge.blob_hub import BlobHub
from fedward_server.edge.blob_orders import BlobOrders
from fedward_server.edge.blob_service import BlobService
from fedward_server.edge.fetch_model import ModelPieces
from fedward_server.edge.forward import Edge
from fedward_server.edge.gate import Gate, RefusalLog
from fedward_server.edge.handshakes import HandshakeWatch
from fedward_server.edge.hello import Greeting
from fedward_server.edge.kicks import KickServer
from fedward_server.edge.list_models import ModelList
from fedward_server.edge.listening import (
    Operation,
    Requests,
    operations,
    read_one,
    shown_certificate,
)
from fedward_server.edge.phase_hub import PhaseHub
from fedward_server.edge.phase_orders import PhaseOrders
from fedward_server.edge.phase_service import PhaseService
from fedward_server.edge.renew import Renewal
from fedward_server.edge.replies import ReplyWatch
from fedward_server.edge.site_service import SiteDesks, SiteService
from fedward_server.models import ModelShelf
from fedward_server.renewal import RenewalDesk
from fedward_server.settings import CoordinatorSettings

STOP_SECONDS: Final = 1.0
STREAMS: Final = 64
"""Calls of one connection at a time; grpc lets the others wait on their own side."""
WATCH_SECONDS: Final = 5.0
SELF_TEST_REFUSALS: Final = (Refusal.TLS_VERSION, Refusal.NO_CERTIFICATE)
"""What the two connections of the self-test are refused for."""

_log = structlog.get_logger(__name__)


class ChannelService:
    """grpc's side of the edge: hands each call with its certificate to `Edge`."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def handler(self) -> grpc.GenericRpcHandler:
        """What a grpc server is given."""
        forward = Operation(wire.ForwardRequest, wire.ForwardReply, self.forward)
        return operations("FedwardChannel", {"Forward": forward})

    async def forward(
        self, requests: Requests[wire.ForwardRequest], context: grpc.aio.ServicerContext
    ) -> wire.ForwardReply:
        """The reply of SuperLink, or the edge's reason for refusing."""
        certificate_pem = shown_certificate(context)

        async def read() -> Call:
            request = await read_one(requests)
            return Call(
                certificate_pem=certificate_pem,
                route=request.route,
                headers=dict(request.headers),
                body=request.body,
            )

        reply = await self._edge.forward(certificate_pem, read)
        return wire.ForwardReply(status=reply.status, headers=reply.headers, body=reply.body)


async def serve_edge(settings: CoordinatorSettings) -> None:
    """Serves until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        log = EventLog(settings.edge_log)
        bell, replies = WorkBell(), ReplyWatch()
        upstream = SuperLinkUpstream(
            socket=settings.superlink_socket,
            port=settings.superlink_port,
            ca=make_loopback_identity(settings.state / "loopback").ca,
        )
        stack.push_async_callback(upstream.close)
        registry = open_registry(settings.database)
        limits = settings.limits
        gate = Gate(rate=CallRate(per_second=limits.calls_per_second, burst=limits.burst), log=log)
        admission = Admission(federation=settings.federation, roster=registry, clock=_utc_now)
        edge = Edge(
            admission=admission,
            gate=gate,
            upstream=upstream,
            fleet=FlowerFleetMessages(),
            bell=bell,
            replies=replies,
            poll_seconds=limits.poll_seconds,
        )
        desks = _desks(settings, registry=registry, log=log)
        watch = _watch(log)
        stack.callback(watch.stop)
        hub = PhaseHub()
        blobs = BlobHub(
            make_file=partial(BlobFile.make, settings.blob_folder),
            quota_bytes=limits.blob_quota_bytes,
        )
        server = await _listen(
            settings,
            (
                ChannelService(edge).handler(),
                SiteService(admission=admission, gate=gate, desks=desks).handler(),
                PhaseService(admission=admission, gate=gate, hub=hub).handler(),
                BlobService(admission=admission, gate=gate, hub=blobs).handler(),
            ),
        )
        stack.push_async_callback(server.stop, STOP_SECONDS)
        await asyncio.to_thread(_self_test, settings, watch)
        orders = PhaseOrders(path=settings.phase_socket, hub=hub)
        await orders.start()
        stack.push_async_callback(orders.stop)
        offers = BlobOrders(path=settings.blob_socket, hub=blobs, max_bytes=limits.max_blob_bytes)
        await offers.start()
        stack.push_async_callback(offers.stop)
        kicks = KickServer(path=settings.kick_socket, bell=bell, replies=replies)
        await kicks.start()
        stack.push_async_callback(kicks.stop)
        log.append("edge.started", federation=settings.federation)
        _log.info("edge.started", port=settings.listen_port)
        await until_set(stop)
        log.append("edge.stopped")


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _desks(settings: CoordinatorSettings, *, registry: SqlRegistry, log: EventLog) -> SiteDesks:
    shelf = ModelShelf(settings.state)
    desk = RenewalDesk(
        authority=open_authority(settings), registry=registry, log=log, clock=_utc_now
    )
    return SiteDesks(
        greeting=Greeting(members=registry, log=log),
        renewal=Renewal(desk=desk),
        models=ModelList(shelf=shelf),
        pieces=ModelPieces(shelf=shelf),
    )


async def _listen(
    settings: CoordinatorSettings, handlers: tuple[grpc.GenericRpcHandler, ...]
) -> grpc.aio.Server:
    identity, root = TlsFiles(
        certificate=settings.tls.certificate, key=settings.tls.key, ca=settings.tls.ca
    ).read()
    server = grpc.aio.server(
        options=[*server_options(), ("grpc.max_concurrent_streams", STREAMS)],
        maximum_concurrent_rpcs=settings.limits.concurrent_calls,
    )
    server.add_generic_rpc_handlers(handlers)
    try:
        server.add_secure_port(settings.listen, server_credentials(identity, root))
    except RuntimeError as error:
        raise StartError(
            f"edge: expected to listen on {settings.listen} (listen), found it in use or not ours. "
            "Stop what listens there or set another address"
        ) from error
    await server.start()
    return server


def _watch(log: EventLog) -> HandshakeWatch:
    refusals = RefusalLog(log=log)

    def report(refusal: Refusal) -> None:
        refusals.note("edge.handshake-refused", refusal=refusal)

    return HandshakeWatch(report, expected=len(SELF_TEST_REFUSALS)).start()


def _self_test(settings: CoordinatorSettings, watch: HandshakeWatch) -> None:
    """Returns when the listener is as rules 17 asks and its refusals reach the log.

    Raises:
        StartError: TLS 1.2 is accepted, TLS 1.3 is not, or grpc does not tell of refusals.
    """
    prove_server(settings.probe_host, settings.listen_port)
    if not watch.saw_expected(seconds=WATCH_SECONDS):
        raise StartError(
            "edge: expected grpc to write of refused handshakes on stderr, found nothing. "
            "Is grpcio the pinned version, and GRPC_VERBOSITY unset?"
        )
