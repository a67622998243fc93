"""One call through the edge: admitted and passed on, or refused with its reason and logged."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

import structlog

from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import ROUTES, CallRefused, check_body
from fedward_common.ids import SiteId
from fedward_server.edge.admission import Admission, Call, CallRate, claimed_peer, claimed_site
from fedward_server.edge.bell import WorkBell
from fedward_server.edge.polling import LongPoll
from fedward_server.ports import EventSink, FleetMessages, FleetReply, SiteRecord, Upstream

T = TypeVar("T")

CALLS_UNDER_WAY: Final = 32
"""Calls of one site at a time. SuperNode has a poll, a heartbeat and two objects under way; a site
with more could take every place that the edge has for all of them."""

_logger = structlog.get_logger(__name__)


@dataclass(kw_only=True, slots=True)
class RefusalLog:
    """Writes refusals to the coordinator's log: the first at once, a flood as one line per period.

    A line costs an fsync, so a peer that is refused a thousand times a second must not be able to
    stop the coordinator with its log: `count` says how many were refused since the line before.
    """

    log: EventSink
    period_seconds: float = 10.0
    clock: Callable[[], float] = time.monotonic
    _written: dict[tuple[str, str, str], tuple[float, int]] = field(default_factory=dict)

    def note(self, action: str, *, refusal: Refusal, site: str = "", route: str = "") -> None:
        """Counts one refusal and writes it unless the same one was written a moment ago."""
        key, now = (refusal.value, site, route), self.clock()
        last, skipped = self._written.get(key, (float("-inf"), 0))
        if now - last < self.period_seconds:
            self._written[key] = (last, skipped + 1)
            return
        self._written[key] = (now, 0)
        fields = {"site": site, "route": route}
        self.log.append(
            action,
            code=refusal.value,
            count=skipped + 1,
            **{name: value for name, value in fields.items() if value},
        )


class Edge:
    """Passes the calls of sites in the roster on to SuperLink, and nothing else."""

    def __init__(
        self,
        *,
        admission: Admission,
        rate: CallRate,
        upstream: Upstream,
        fleet: FleetMessages,
        bell: WorkBell,
        log: EventSink,
        poll_seconds: float,
    ) -> None:
        self._admission = admission
        self._rate = rate
        self._upstream = upstream
        self._fleet = fleet
        self._long_poll = LongPoll(bell=bell, fleet=fleet, poll_seconds=poll_seconds)
        self._log = log
        self._refusals = RefusalLog(log=log)
        self._seen: set[tuple[SiteId, str]] = set()
        self._under_way: Counter[SiteId] = Counter()
        # One thread: roster questions and log lines are disk work, and keep their order.
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edge-disk")

    async def forward(self, call: Call) -> FleetReply:
        """SuperLink's answer to an admitted call.

        Raises:
            CallRefused: with the reason; the refusal is in the log before this returns.
        """
        try:
            record = await self._admit(call)
            with self._place_of(record.site_id):
                if call.route == "pull-messages":
                    return await self._poll(call, record)
                return await self._upstream_call(call)
        except CallRefused as refused:
            await self._note(call, refused)
            raise

    async def _admit(self, call: Call) -> SiteRecord:
        if (peer := claimed_peer(call.certificate_pem)) is not None:
            self._rate.spend(peer.fingerprint_sha256)
        record = await self._in_thread(self._admission.admit, call)
        if (known := (record.site_id, record.certificate_sha256)) not in self._seen:
            self._seen.add(known)
            await self._in_thread(
                lambda: self._log.append(
                    "edge.site-connected",
                    site=record.site_id,
                    certificate_sha256=record.certificate_sha256,
                )
            )
        return record

    @contextmanager
    def _place_of(self, site: SiteId) -> Iterator[None]:
        if self._under_way[site] >= CALLS_UNDER_WAY:
            raise CallRefused(
                Refusal.RATE, f"{site}: expected at most {CALLS_UNDER_WAY} calls at a time"
            )
        self._under_way[site] += 1
        try:
            yield
        finally:
            self._under_way[site] -= 1

    async def _poll(self, call: Call, record: SiteRecord) -> FleetReply:
        node = self._fleet.polling_node(call.body)

        async def pull() -> FleetReply:
            # A site may be revoked, or its certificate end, while its poll is open.
            await self._in_thread(self._admission.admit, call)
            return await self._upstream_call(call)

        return await self._long_poll.poll(record.site_id, node, pull)

    async def _upstream_call(self, call: Call) -> FleetReply:
        reply = await self._upstream.call(call.route, call.headers, call.body)
        check_body(reply.body)
        return reply

    async def _note(self, call: Call, refused: CallRefused) -> None:
        _logger.warning("edge.refused", code=refused.refusal.value, reason=str(refused))
        site = claimed_site(call.certificate_pem) or ""
        # A route that is not in the list is the caller's text: it does not go into the log.
        route = call.route if call.route in ROUTES else "other"
        await self._in_thread(
            lambda: self._refusals.note(
                "edge.refused", refusal=refused.refusal, site=site, route=route
            )
        )

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, function, *arguments)
