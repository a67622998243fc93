"""One call of SuperNode through the gateway: what may pass, what is written down, what comes back.

Nothing leaves before the guard has written it down, and no reply without the guard's receipt. If
the guard does not answer, nothing leaves.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final, Literal, Protocol, TypeVar

import structlog

from fedward_client.gateway.bundle import check_bundle
from fedward_client.gateway.caller import Caller
from fedward_client.gateway.fleet import Answer, Channel, FleetMessages, Outgoing, PushedObject
from fedward_client.gateway.outbox import MAX_RELEASED, Outbox
from fedward_client.gateway.outbox_file import OutboxFile
from fedward_client.gateway.pulse import NoPulse, Pulse
from fedward_client.gateway.spool import Spool, Waiting, is_spooled
from fedward_client.ports import GatewayGuard, Passing
from fedward_common.canonical import sha256_hex
from fedward_common.channel.refusals import Refusal, explain_refusal
from fedward_common.channel.routes import (
    CallRefused,
    check_body,
    check_headers,
    check_route,
    request_headers,
)
from fedward_common.errors import ChannelError, FedwardError, PolicyRefused, ProtocolError
from fedward_common.wire import Octets

T = TypeVar("T")

OK: Final = 200
DROPPED: Final = 403
"""Flower's own word for "this run is not running": SuperNode gives the message up and goes on."""
RETRY: Final = 503
"""SuperNode tries again, for ever; every other status would end its loop or the process."""
TRIES: Final = 3
"""How often a reply is announced again for one object."""
BUSY: Final = 429
FAILED: Final = 500
HOPELESS: Final = frozenset({Refusal.BODY_TOO_LARGE, Refusal.MALFORMED, Refusal.HEADER})
"""Reasons that no second try can change."""

_log = structlog.get_logger(__name__)


class Beside(Protocol):
    """What travels beside messages."""

    def announced(self, blobs: Mapping[str, Octets]) -> None:
        """A message came in that names blobs. Raises ProtocolError."""
        ...

    def released(self, message_id: str) -> None:
        """A message is on its way out."""
        ...


class Gateway:
    """Passes SuperNode's calls to the coordinator as far as the site allows."""

    def __init__(
        self,
        *,
        channel: Channel,
        guard: GatewayGuard,
        fleet: FleetMessages,
        caller: Caller,
        clock: Callable[[], float] = time.time,
        pulse: Pulse | None = None,
        spool: Spool | None = None,
        kept: OutboxFile | None = None,
    ) -> None:
        """Without a `spool` a reply waits at SuperNode while the coordinator is away.

        `kept` is what an earlier gateway knew; without it replies under way are refused.
        """
        self._blobs: Beside | None = None
        self._channel = channel
        self._guard = guard
        self._fleet = fleet
        self._caller = caller
        self._clock = clock
        self._pulse = NoPulse() if pulse is None else pulse
        self._kept = kept
        self._outbox = Outbox() if kept is None else kept.load()
        self._pulse.works(self._outbox.works_until)
        self._spool = spool
        self._delivering: asyncio.Task[None] | None = None
        self._announced: OrderedDict[str, bytes] = OrderedDict()
        self._announcing = asyncio.Lock()
        # One thread: the guard answers one question at a time and the journal keeps its order.
        self._asking = ThreadPoolExecutor(max_workers=1, thread_name_prefix="guard")
        self._steps: Mapping[str, Callable[[_Call], Awaitable[Answer]]] = {
            "pull-messages": self._pull_messages,
            "push-messages": self._push_messages,
            "push-object": self._push_object,
            "pull-object": self._pull_object,
            "get-fab": self._get_fab,
            "get-run": self._get_run,
        }

    def carries_blobs(self, blobs: Beside) -> None:
        """What travels beside messages goes by `blobs` from now on."""
        self._blobs = blobs

    async def handle(self, route: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """The answer for SuperNode: SuperLink's, or one of two that SuperNode survives.

        200 and 403 of SuperLink pass. What the site does not let out, and what no second try can
        change, is 403: SuperNode drops the message and goes on. Anything else is 503: SuperNode
        tries again. The real reason stands in the log.
        """
        try:
            check_route(route)
            check_body(body)
            flower_headers = request_headers(headers)
            check_headers(flower_headers)
            self._caller.check(flower_headers)
            call = _Call(route, flower_headers, self._fleet.normalised(route, body))
            answer = await self._steps.get(route, self._forward)(call)
        except CallRefused as refused:
            _log.warning(
                "gateway.refused",
                code=refused.refusal.value,
                reason=explain_refusal(refused.refusal.value),
            )
            return Answer(status=DROPPED if refused.refusal in HOPELESS else RETRY)
        except (ProtocolError, PolicyRefused) as error:
            _log.warning("gateway.kept-back", route=route, code=error.code, reason=str(error))
            return Answer(status=DROPPED)
        except FedwardError as error:
            _log.warning("gateway.waiting", route=route, code=error.code, reason=str(error))
            return Answer(status=RETRY)
        if answer.status == OK:
            self._deliver(flower_headers)
        if answer.status in (OK, DROPPED):
            return answer
        _log.warning("gateway.upstream", route=route, status=answer.status)
        return Answer(status=RETRY)

    async def _forward(self, call: "_Call") -> Answer:
        return await self._channel.forward(call.route, call.headers, call.body)

    async def _pull_messages(self, call: "_Call") -> Answer:
        with self._pulse.asking():
            answer = await self._forward(call)
            self._pulse.answered(answer.status)
        if answer.status != OK:
            return answer
        for incoming in self._fleet.incoming(answer.body):
            await self._journal(
                "in",
                call,
                kind="message",
                sha256=incoming.message_id,
                size_bytes=len(answer.body),
                run=incoming.addressing.run_id,
            )
            self._outbox.received(incoming, now=self._clock())
            self._pulse.works(self._outbox.works_until)
            self._keep_outbox()
        return answer

    def _keep_outbox(self) -> None:
        if self._kept is not None:
            self._kept.save(self._outbox, now=self._clock())

    async def _push_messages(self, call: "_Call") -> Answer:
        outgoing = self._fleet.outgoing(call.body)
        self._outbox.check(outgoing, now=self._clock())
        if outgoing.error and not outgoing.error_is_fixed:
            # An exception's text may quote a record. The coordinator learns of it by the deadline.
            _log.error("gateway.error-swallowed", message_id=outgoing.message_id)
            return Answer(status=OK, body=self._fleet.swallowed(outgoing.message_id))
        if not outgoing.error and not await self.ask(
            self._guard.release,
            outgoing.message_id,
            [*outgoing.objects, outgoing.tree_sha256],
        ):
            raise PolicyRefused(
                "reply: expected an unused receipt of the guard for exactly these bytes, found none"
            )
        kind = "error-reply" if outgoing.error else "reply"
        self._outbox.release(outgoing)
        self._keep_outbox()
        await self._journal(
            "out",
            call,
            kind=kind,
            sha256=outgoing.message_id,
            size_bytes=len(call.body),
            run=outgoing.addressing.run_id,
        )
        if self._blobs is not None and not outgoing.error:
            self._blobs.released(outgoing.message_id)
        try:
            answer = await self._forward(call)
        except ChannelError as error:
            if self._spool is None or not _is_away(error):
                raise
            return self._wait(self._spool, outgoing, call.body)
        if answer.status == OK:
            self._opened(outgoing.message_id, answer, request=call.body)
        elif self._spool is not None and _is_busy(answer.status):
            return self._wait(self._spool, outgoing, call.body)
        return answer

    def _opened(self, message_id: str, answer: Answer, *, request: bytes) -> None:
        self._outbox.opened(message_id, self._fleet.session(answer.body))
        self._keep_outbox()
        self._announced[message_id] = request
        while len(self._announced) > MAX_RELEASED:
            self._announced.popitem(last=False)

    def _wait(self, spool: Spool, outgoing: Outgoing, request: bytes) -> Answer:
        """Takes a released reply that cannot be delivered now."""
        waiting = spool.put(outgoing, request)
        self._outbox.opened(outgoing.message_id, waiting.session)
        self._keep_outbox()
        _log.warning("gateway.spooled", message_id=outgoing.message_id)
        body = self._fleet.taken(outgoing.message_id, waiting.wanted, waiting.session)
        return Answer(status=OK, body=body)

    def _deliver(self, headers: Mapping[str, str]) -> None:
        """Begins to deliver what waits: the coordinator has just taken a call with `headers`."""
        if self._spool is None or (self._delivering is not None and not self._delivering.done()):
            return
        if whole := self._spool.whole():
            delivery = self._deliver_all(self._spool, whole, headers)
            self._delivering = asyncio.get_running_loop().create_task(delivery)

    async def delivered(self) -> None:
        """Returns when a delivery that has begun is over."""
        if self._delivering is not None:
            await self._delivering

    async def _deliver_all(
        self, spool: Spool, whole: Sequence[Waiting], headers: Mapping[str, str]
    ) -> None:
        for waiting in whole:
            try:
                status = await self._deliver_one(waiting, headers)
            except (FedwardError, OSError) as error:
                # Paused by its policy, away again, or a file that is gone: it goes on waiting.
                _log.warning("gateway.still-spooled", error=type(error).__name__)
                return
            if _is_busy(status):
                return
            spool.done(waiting)
            _log.info("gateway.delivered", message_id=waiting.message_id, status=status)

    async def _deliver_one(self, waiting: Waiting, headers: Mapping[str, str]) -> int:
        """Hands a reply and its objects over; the status that says what became of it.

        Everything is written down, and the policy asked, as it goes.
        """
        call = _Call("push-messages", headers, waiting.request)
        kind = "error-reply" if self._fleet.outgoing(call.body).error else "reply"
        await self._journal(
            "out",
            call,
            kind=kind,
            sha256=waiting.message_id,
            size_bytes=len(call.body),
            run=waiting.run_id,
        )
        if self._blobs is not None and kind == "reply":
            self._blobs.released(waiting.message_id)  # begun before, perhaps by an earlier gateway
        answer = await self._forward(call)
        if answer.status != OK:
            return answer.status
        session = self._fleet.session(answer.body)
        for pushed in waiting.objects(self._fleet.to_push(answer.body), session=session):
            body = self._fleet.object_request(pushed)
            call = _Call("push-object", headers, body)
            await self._journal(
                "out",
                call,
                kind="object",
                sha256=pushed.object_id,
                size_bytes=len(pushed.content),
                run=pushed.run_id,
            )
            answer = await self._forward(call)
            if answer.status != OK:
                return answer.status
        return OK

    async def _push_object(self, call: "_Call") -> Answer:
        pushed = self._fleet.pushed_object(call.body)
        try:
            message_id = self._outbox.reply_of(pushed)
            if self._spool is not None and is_spooled(pushed.session):
                self._spool.take(pushed)
                return Answer(status=OK, body=self._fleet.stored())
            await self._journal(
                "out",
                call,
                kind="object",
                sha256=pushed.object_id,
                size_bytes=len(pushed.content),
                run=pushed.run_id,
            )
        except (ProtocolError, PolicyRefused) as error:
            _log.warning("gateway.kept-back", route=call.route, code=error.code, reason=str(error))
            return Answer(status=OK, body=self._fleet.not_stored())
        answer = await self._hand_over(call, pushed, message_id)
        tries = 0
        while (
            answer.status == OK
            and not self._fleet.was_stored(answer.body)
            and message_id in self._announced
            and (tries := tries + 1) <= TRIES
        ):
            # SuperNode pushes several objects at once, and a new session ends the one before.
            async with self._announcing:
                answer = await self._hand_over_again(call, pushed, message_id)
        return answer

    async def _hand_over(self, call: "_Call", pushed: PushedObject, message_id: str) -> Answer:
        # SuperNode knows the session that was opened for it; a later one has taken its place.
        body = self._fleet.object_request(replace(pushed, session=self._outbox.session(message_id)))
        return await self._forward(_Call(call.route, call.headers, body))

    async def _hand_over_again(
        self, call: "_Call", pushed: PushedObject, message_id: str
    ) -> Answer:
        """What becomes of an object that SuperLink did not take.

        It may have it already: a call came twice, or its first answer was lost. SuperNode would
        give the whole reply up. So the reply is announced once more, which says what is missing.
        """
        request = self._announced[message_id]
        again = _Call("push-messages", call.headers, request)
        await self._journal(
            "out",
            again,
            kind="reply",
            sha256=message_id,
            size_bytes=len(request),
            run=pushed.run_id,
        )
        answer = await self._forward(again)
        if answer.status != OK:
            return answer
        missing = self._fleet.to_push(answer.body)
        if missing:
            self._opened(message_id, answer, request=request)
        # Otherwise all is there, or the ServerApp has the message and waits for its objects: then
        # SuperLink knows the instruction no more, and the session before goes on.
        if pushed.object_id not in missing:
            return Answer(status=OK, body=self._fleet.stored())
        return await self._hand_over(call, pushed, message_id)

    async def _pull_object(self, call: "_Call") -> Answer:
        answer = await self._forward(call)
        if answer.status != OK:
            return answer
        pulled = self._fleet.pulled_object(call.body, answer.body)
        if pulled.content:
            if sha256_hex(pulled.content) != pulled.object_id:
                raise ProtocolError("object: expected the bytes of its id, found others")
            if self._outbox.expects(pulled.object_id):
                self._outbox.read(pulled.object_id, self._fleet.addressing(pulled.content))
                self._keep_outbox()
            await self._journal(
                "in",
                call,
                kind="object",
                sha256=pulled.object_id,
                size_bytes=len(pulled.content),
                run=pulled.run_id,
            )
            if self._blobs is not None:
                self._blobs.announced(self._fleet.manifests(pulled.content))
        return answer

    async def _get_fab(self, call: "_Call") -> Answer:
        answer = await self._forward(call)
        if answer.status != OK:
            return answer
        bundle = self._fleet.bundle(answer.body)
        # Written down whatever becomes of it: it came in, though it may go no further.
        await self._journal(
            "in",
            call,
            kind="bundle",
            sha256=sha256_hex(bundle.content),
            size_bytes=len(bundle.content),
        )
        check_bundle(bundle)
        if not await self.ask(self._guard.bundle_allowed, bundle.sha256):
            raise PolicyRefused(
                f"bundle {bundle.sha256}: expected one that this site approved, found it missing. "
                "Compare it with the release, then approve it or add it to approved_bundles"
            )
        return answer

    async def _get_run(self, call: "_Call") -> Answer:
        answer = await self._forward(call)
        if answer.status == OK:
            self._fleet.check_run(answer.body)
            await self._journal(
                "in",
                call,
                kind="run",
                sha256=sha256_hex(answer.body),
                size_bytes=len(answer.body),
            )
        return answer

    async def _journal(
        self,
        direction: Literal["in", "out"],
        call: "_Call",
        *,
        kind: str,
        sha256: str,
        size_bytes: int,
        run: int | None = None,
    ) -> None:
        passing = Passing(
            direction=direction,
            route=call.route,
            kind=kind,
            sha256=sha256,
            bytes=size_bytes,
            run="" if run is None else str(run),
            certificate_sha256=self._channel.edge_certificate_sha256,
        )
        await self.ask(self._guard.journal, passing)

    async def ask(self, question: Callable[..., T], *arguments: object) -> T:
        """The guard's answer. Raises ChannelError when there is none; nothing leaves then."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._asking, question, *arguments)
        except OSError as error:
            raise ChannelError(
                f"guard: expected an answer on its socket, found {type(error).__name__}"
            ) from error


def _is_away(error: ChannelError) -> bool:
    """Whether nobody answered: the edge, or SuperLink behind it."""
    return not isinstance(error, CallRefused) or error.refusal is Refusal.UPSTREAM


def _is_busy(status: int) -> bool:
    """Whether a second try may go better."""
    return status == BUSY or status >= FAILED


class _Call:
    """One request of SuperNode after the checks that need no state."""

    __slots__ = ("body", "headers", "route")

    def __init__(self, route: str, headers: Mapping[str, str], body: bytes) -> None:
        self.route = route
        self.headers = headers
        self.body = body
