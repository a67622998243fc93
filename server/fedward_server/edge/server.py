"""The edge's process, assembled: grpc listener, kicks, log, self-test."""

import asyncio
import signal
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Final

import grpc
import structlog

from fedward_common.channel import channel_pb2 as wire
from fedward_common.channel import channel_pb2_grpc as stubs
from fedward_common.channel.credentials import TlsFiles, server_credentials, server_options
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.channel.tls import prove_server
from fedward_common.errors import StartError
from fedward_common.log.events import EventLog
from fedward_common.trust.certificates import make_loopback_identity
from fedward_server.adapters.flower_fleet import FlowerFleetMessages
from fedward_server.adapters.registry import open_registry
from fedward_server.adapters.upstream import SuperLinkUpstream
from fedward_server.edge.admission import Admission, Call, CallRate
from fedward_server.edge.bell import WorkBell
from fedward_server.edge.forward import Edge, RefusalLog
from fedward_server.edge.handshakes import HandshakeWatch
from fedward_server.edge.kicks import KickServer
from fedward_server.settings import CoordinatorSettings

STOP_SECONDS: Final = 1.0
WATCH_SECONDS: Final = 5.0
SELF_TEST_REFUSALS: Final = (Refusal.TLS_VERSION, Refusal.NO_CERTIFICATE)
"""What the two connections of the self-test are refused for."""

_log = structlog.get_logger(__name__)


class ChannelService(stubs.FedwardChannelServicer):
    """grpc's side of the edge: hands each call with its certificate to `Edge`."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def Forward(  # noqa: N802 - the name in channel.proto
        self, request: wire.ForwardRequest, context: grpc.aio.ServicerContext
    ) -> wire.ForwardReply:
        """The reply of SuperLink, or the edge's reason for refusing."""
        certificates = context.auth_context().get("x509_pem_cert", [])
        call = Call(
            certificate_pem=certificates[0] if certificates else b"",
            route=request.route,
            headers=dict(request.headers),
            body=request.body,
        )
        try:
            reply = await self._edge.forward(call)
        except CallRefused as refused:
            return wire.ForwardReply(error_code=refused.refusal.value)
        return wire.ForwardReply(status=reply.status, headers=reply.headers, body=reply.body)


async def serve_edge(settings: CoordinatorSettings) -> None:
    """Serves until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        log = EventLog(settings.edge_log)
        bell = WorkBell()
        upstream = SuperLinkUpstream(
            port=settings.superlink_port, ca=make_loopback_identity(settings.state / "loopback").ca
        )
        stack.push_async_callback(upstream.close)
        edge = Edge(
            admission=Admission(
                federation=settings.federation,
                roster=open_registry(settings.database),
                clock=_utc_now,
            ),
            rate=CallRate(per_second=settings.limits.calls_per_second, burst=settings.limits.burst),
            upstream=upstream,
            fleet=FlowerFleetMessages(),
            bell=bell,
            log=log,
            poll_seconds=settings.limits.poll_seconds,
        )
        watch = _watch(log)
        stack.callback(watch.stop)
        server = await _listen(settings, edge)
        stack.push_async_callback(server.stop, STOP_SECONDS)
        await asyncio.to_thread(_self_test, settings, watch)
        kicks = KickServer(path=settings.kick_socket, bell=bell)
        await kicks.start()
        stack.push_async_callback(kicks.stop)
        log.append("edge.started", federation=settings.federation)
        _log.info("edge.started", port=settings.listen_port)
        await stop.wait()
        log.append("edge.stopped")


def _utc_now() -> datetime:
    return datetime.now(UTC)


async def _listen(settings: CoordinatorSettings, edge: Edge) -> grpc.aio.Server:
    identity, root = TlsFiles(
        certificate=settings.tls.certificate, key=settings.tls.key, ca=settings.tls.ca
    ).read()
    server = grpc.aio.server(
        options=server_options(), maximum_concurrent_rpcs=settings.limits.concurrent_calls
    )
    stubs.add_FedwardChannelServicer_to_server(ChannelService(edge), server)
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
