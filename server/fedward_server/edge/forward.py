"""One call of Flower's through the edge: admitted, written down object by object, and passed on."""

from collections.abc import Awaitable, Callable
from typing import Final

from fedward_common.channel.routes import ROUTES, CallRefused, check_body
from fedward_server.edge.admission import Admission, Call, certificate_sha256
from fedward_server.edge.bell import WorkBell
from fedward_server.edge.gate import Gate
from fedward_server.edge.objects import PassedObject, ReadsObjects
from fedward_server.edge.polling import OK, LongPoll
from fedward_server.edge.replies import ReplyWatch
from fedward_server.ports import FleetReply, SiteRecord, Upstream

NOT_READ: Final = "forward"
UNKNOWN: Final = "other"
"""Words in place of a route: of a call that was refused before it was read, and of one whose route
is not Flower's: that is the caller's text, and does not go into the log."""


class Edge:
    """Passes the calls of sites in the roster on to SuperLink, and nothing else.

    Guarantees: every object that passes is a line `edge.object` of the coordinator's log before it
    goes on (site, direction as the coordinator sees it, route, kind, SHA-256, bytes), so that a
    site's journal and this log can be compared object by object.
    """

    def __init__(
        self,
        *,
        admission: Admission,
        gate: Gate,
        upstream: Upstream,
        fleet: ReadsObjects,
        bell: WorkBell,
        replies: ReplyWatch,
        poll_seconds: float,
    ) -> None:
        self._admission = admission
        self._gate = gate
        self._upstream = upstream
        self._fleet = fleet
        self._replies = replies
        self._long_poll = LongPoll(bell=bell, fleet=fleet, poll_seconds=poll_seconds)

    async def forward(
        self, certificate_pem: bytes, read: Callable[[], Awaitable[Call]]
    ) -> FleetReply:
        """SuperLink's answer to an admitted call. `read` waits for the call itself.

        The peer's certificate is asked about first: nothing is read for who is no member.

        Raises:
            CallRefused: with the reason; the refusal is in the log before this returns.
        """

        def admit() -> SiteRecord:
            return self._admission.member(certificate_pem)

        async with self._gate.passing(certificate_pem, route=NOT_READ, admit=admit) as passing:
            call, record = await read(), passing.record
            passing.route = call.route if call.route in ROUTES else UNKNOWN
            self._admission.check(call, record)
            for passed in self._fleet.entering(call.route, call.body):
                await self._write(record, call, "in", passed)
            self._long_poll.heard(record.site_id, call.route)
            if call.route == "pull-messages":
                reply = await self._poll(call, record)
            else:
                reply = await self._upstream_call(call)
            if reply.status == OK:
                for passed in self._fleet.leaving(call.route, call.body, reply.body):
                    await self._write(record, call, "out", passed)
                self._follow(call, reply)
            return reply

    def _follow(self, call: Call, reply: FleetReply) -> None:
        """Notes how far a site's reply has come."""
        if call.route == "push-messages":
            try:
                opened = self._fleet.opened_push(call.body, reply.body)
            except CallRefused:
                return  # what cannot be read is SuperNode's to judge
            self._replies.opened(opened.node, opened.session, opened.missing)
        elif call.route == "push-object":
            pushed = self._fleet.pushed_to(call.body)
            self._replies.stored(pushed.node, pushed.session, pushed.object_id)

    async def _write(
        self, record: SiteRecord, call: Call, direction: str, passed: PassedObject
    ) -> None:
        await self._gate.write(
            "edge.object",
            site=record.site_id,
            certificate_sha256=certificate_sha256(call.certificate_pem),
            direction=direction,
            route=call.route,
            kind=passed.kind,
            sha256=passed.sha256,
            bytes=passed.size_bytes,
            **({"run": passed.run} if passed.run else {}),
        )

    async def _poll(self, call: Call, record: SiteRecord) -> FleetReply:
        node = self._fleet.polling_node(call.body)

        async def pull() -> FleetReply:
            # A site may be revoked, or its certificate end, while its poll is open.
            await self._gate.in_thread(self._admission.member, call.certificate_pem)
            return await self._upstream_call(call)

        return await self._long_poll.poll(record.site_id, node, pull)

    async def _upstream_call(self, call: Call) -> FleetReply:
        reply = await self._upstream.call(call.route, call.headers, call.body)
        check_body(reply.body)
        return reply
