"""The enrolment listener, assembled: TLS 1.3 with a server certificate only, two methods, 64 KiB.

Its port is open only while an invite is. It holds no key but the edge's own, knows no operator and
decides nothing: a request waits until operators grant it.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from typing import Final, TypeVar

import grpc
import structlog
from sqlalchemy.exc import InterfaceError, OperationalError

from fedward_common.channel import channel_pb2 as wire
from fedward_common.channel.credentials import Option, TlsFiles
from fedward_common.channel.refusals import Refusal, explain_refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.channel.tls import prove_server
from fedward_common.errors import StartError
from fedward_common.log.events import EventLog
from fedward_common.trust.enrolment import MAX_REQUEST_BYTES
from fedward_server.adapters.registry import SqlRegistry, open_registry
from fedward_server.edge.gate import RefusalLog
from fedward_server.edge.handshakes import HandshakeWatch
from fedward_server.edge.listening import Operation, Requests, operations, read_one
from fedward_server.enrolment.peers import Peers, peer_of
from fedward_server.enrolment_intake import EnrolmentIntake
from fedward_server.enrolment_rules import EnrolmentRefused, must_listen
from fedward_server.settings import CoordinatorSettings, probe_host

Asked = TypeVar("Asked")
Reply = TypeVar("Reply")
Result = TypeVar("Result")

LOOK_SECONDS: Final = 0.5
"""How soon after an invite is made the port opens."""
RETRY_SECONDS: Final = 5.0
STOP_SECONDS: Final = 1.0
WATCH_SECONDS: Final = 5.0
CALLS_AT_A_TIME: Final = 512
"""Of all peers together; what half-sent messages take is then at most 512 times 128 KiB."""
SELF_TEST_REFUSALS: Final = 1
"""The self-test's own TLS 1.2 connection."""

_log = structlog.get_logger(__name__)


def listener_options() -> list[Option]:
    """Sizes and patience of the listener: whoever dribbles is cut off after twelve seconds.

    grpc's own limit of a message lies above ours, so that one that is too large is refused with our
    word; far larger ones are not read.
    """
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", 2 * MAX_REQUEST_BYTES),
        ("grpc.max_send_message_length", 2 * MAX_REQUEST_BYTES),
        ("grpc.max_metadata_size", 8192),
        ("grpc.max_concurrent_streams", 4),
        ("grpc.server_handshake_timeout_ms", 5_000),
        ("grpc.max_connection_idle_ms", 5_000),
        ("grpc.max_connection_age_ms", 10_000),
        ("grpc.max_connection_age_grace_ms", 2_000),
    ]


class EnrolmentService:
    """grpc's side of the listener: each call is counted, read, decided in one thread, answered."""

    def __init__(self, *, intake: EnrolmentIntake, refusals: RefusalLog, peers: Peers) -> None:
        self._intake = intake
        self._refusals = refusals
        self._peers = peers
        # One thread: the registry and the log are disk work, and keep their order.
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="enrolment-disk")

    @property
    def handler(self) -> grpc.GenericRpcHandler:
        """Submit and Fetch, and nothing else."""
        return operations(
            "FedwardEnrolment",
            {
                "Submit": Operation(wire.SubmitRequest, wire.SubmitReply, self.submit),
                "Fetch": Operation(wire.FetchRequest, wire.FetchReply, self.fetch),
            },
        )

    async def submit(
        self, requests: Requests[wire.SubmitRequest], context: grpc.aio.ServicerContext
    ) -> wire.SubmitReply:
        """The digest of the request that was taken, or the reason for refusing it."""

        def decide(asked: wire.SubmitRequest) -> wire.SubmitReply:
            if len(asked.request) > MAX_REQUEST_BYTES:
                raise EnrolmentRefused(Refusal.BODY_TOO_LARGE)
            taken = self._intake.submit(asked.token, asked.request)
            return wire.SubmitReply(request_sha256=taken.sha256)

        return await self._answer("submit", decide, requests, context)

    async def fetch(
        self, requests: Requests[wire.FetchRequest], context: grpc.aio.ServicerContext
    ) -> wire.FetchReply:
        """The answer to a request, for the holder of its TLS key, or the reason for refusing."""

        def decide(asked: wire.FetchRequest) -> wire.FetchReply:
            answer = self._intake.fetch(
                asked.request_sha256, time=asked.time, signature=asked.signature
            )
            return wire.FetchReply(status=answer.status.value, grant=answer.grant)

        return await self._answer("fetch", decide, requests, context)

    async def _answer(
        self,
        route: str,
        decide: Callable[[Asked], Reply],
        requests: Requests[Asked],
        context: grpc.aio.ServicerContext,
    ) -> Reply:
        """The decision. Who calls too often is refused before the message is read.

        Raises:
            CallRefused: with the reason, which is in the log then (`Operation` sends it).
        """
        try:
            with self._peers.place_of(peer_of(context.peer())):
                asked = await read_one(requests)
                return await self._in_thread(lambda: decide(asked))
        except EnrolmentRefused as refused:
            refusal, site = refused.refusal, refused.site or ""
        except CallRefused as refused:
            refusal, site = refused.refusal, ""
        written = await self._in_thread(
            lambda: self._refusals.note(
                "enrolment.refused", refusal=refusal, site=site, route=route
            )
        )
        if written:
            _log.warning("enrolment.refused", code=refusal.value)
        raise CallRefused(refusal, explain_refusal(refusal.value))

    def _in_thread(self, function: Callable[[], Result]) -> Awaitable[Result]:
        return asyncio.get_running_loop().run_in_executor(self._disk, function)


class Door:
    """The port: opened and closed as `must_listen` says."""

    def __init__(
        self, settings: CoordinatorSettings, *, listen: str, watch: HandshakeWatch
    ) -> None:
        self._settings = settings
        self._listen = listen
        self._watch = watch
        self._proven = False
        self._server: grpc.aio.Server | None = None

    async def open(self, service: EnrolmentService) -> bool:
        """Opens the port unless it is open; True when it was closed before.

        Raises:
            StartError: the port is in use, or the self-test failed.
        """
        if self._server is not None:
            return False
        server = grpc.aio.server(
            options=listener_options(), maximum_concurrent_rpcs=CALLS_AT_A_TIME
        )
        server.add_generic_rpc_handlers((service.handler,))
        try:
            server.add_secure_port(self._listen, self._credentials())
        except RuntimeError as error:
            raise StartError(
                f"enrolment: expected to listen on {self._listen} (enrolment.listen), found it in "
                "use or not ours. Stop what listens there or set another address"
            ) from error
        await server.start()
        self._server = server
        if not self._proven:
            await asyncio.to_thread(self._self_test)
            self._proven = True
        return True

    async def close(self) -> bool:
        """Closes the port unless it is closed; True when it was open before."""
        if self._server is None:
            return False
        server, self._server = self._server, None
        await server.stop(STOP_SECONDS)
        return True

    def _credentials(self) -> grpc.ServerCredentials:
        tls = self._settings.tls
        identity, root = TlsFiles(certificate=tls.certificate, key=tls.key, ca=tls.ca).read()
        # The root goes along: a site has its digest from the invite and takes the rest from here.
        chain = identity.certificate_pem + root
        return grpc.ssl_server_credentials([(identity.key_pem, chain)])

    def _self_test(self) -> None:
        """Returns when the listener is as rules 17 asks and its refusals reach the log.

        Raises:
            StartError: TLS 1.2 is accepted, TLS 1.3 is not, or grpc does not tell of refusals.
        """
        prove_server(probe_host(self._listen), int(self._listen.rpartition(":")[2]))
        if not self._watch.saw_expected(seconds=WATCH_SECONDS):
            raise StartError(
                "enrolment: expected grpc to write of refused handshakes on stderr, found nothing. "
                "Is grpcio the pinned version, and GRPC_VERBOSITY unset?"
            )


async def serve_enrolment(settings: CoordinatorSettings, *, listen: str) -> None:
    """Serves until SIGTERM or SIGINT, with the port open only while an invite is."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        log = EventLog(settings.enrolment_log)
        stack.callback(log.close)
        registry = open_registry(settings.database)
        stack.callback(registry.close)
        refusals = RefusalLog(log=log)
        watch = _watch(refusals)
        stack.callback(watch.stop)
        intake = EnrolmentIntake(
            federation=settings.federation, registry=registry, log=log, clock=_utc_now
        )
        service = EnrolmentService(intake=intake, refusals=refusals, peers=Peers())
        door = Door(settings, listen=listen, watch=watch)
        stack.push_async_callback(door.close)
        _log.info("enrolment.started", address=listen)
        while not stop.is_set():
            pause = await look_after(registry, door, service, log, listen=listen)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), timeout=pause)


async def look_after(
    registry: SqlRegistry,
    door: Door,
    service: EnrolmentService,
    log: EventLog,
    *,
    listen: str,
) -> float:
    """Opens or closes the port as is due; how many seconds later to look again.

    What may pass by itself (another's port, a database that restarts) is waited out: a process that
    ended for it would, after a few times, end the coordinator.

    Raises:
        StartError: the self-test of the listener failed.
    """
    try:
        await _look(registry, door, service, log)
    except StartError as error:
        if not isinstance(error.__cause__, RuntimeError):
            raise
        # The port is another's at the moment: the coordinator goes on without it.
        _log.error("enrolment.port-in-use", address=listen)
        return RETRY_SECONDS
    # By driver: to pg8000 a lost or refused connection is an interface error.
    except (OperationalError, InterfaceError) as error:
        _log.error("enrolment.no-database", error=type(error).__name__)
        return RETRY_SECONDS
    return LOOK_SECONDS


async def _look(
    registry: SqlRegistry, door: Door, service: EnrolmentService, log: EventLog
) -> None:
    book, now = registry.book, _utc_now()
    expected = await asyncio.to_thread(
        lambda: must_listen(book.invites(), book.requests(), now=now)
    )
    if expected and await door.open(service):
        log.append("enrolment.opened")
    if not expected and await door.close():
        log.append("enrolment.closed")


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _watch(refusals: RefusalLog) -> HandshakeWatch:
    def report(refusal: Refusal) -> None:
        refusals.note("enrolment.handshake-refused", refusal=refusal)

    return HandshakeWatch(report, expected=SELF_TEST_REFUSALS).start()
