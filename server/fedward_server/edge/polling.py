"""The long poll: a pull-messages call stays open until its node has work (rules 19)."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from fedward_common.ids import SiteId
from fedward_server.edge.bell import WorkBell
from fedward_server.ports import FleetMessages, FleetReply

PullOnce = Callable[[], Awaitable[FleetReply]]
"""One pull at SuperLink, after asking again whether the site may pass."""

OK: Final = 200
RETRY_SECONDS: Final = (0.02, 0.05, 0.1, 0.2, 0.4)
"""A ring can come before SuperLink shows the message, which it writes apart from its objects."""
REPLAY_SECONDS: Final = 60.0
"""How old an instruction that never arrived may be when it is handed out again."""
IDLE: Final = frozenset({"pull-messages", "send-node-heartbeat"})
"""What SuperNode calls whether or not it has got a message: any other call says that it has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _HandedOut:
    """A reply with a message, and when it first left."""

    reply: FleetReply
    since: float


class LongPoll:
    """Holds each site's poll open; asks SuperLink when there is work, and once when time is up.

    Guarantees: without a ring, SuperLink gets one pull per `poll_seconds` and node (which also
    finds what a lost ring left behind), and the first poll of a site asks at once. A newer poll of
    a site ends the older one without a pull, and a message whose poll was given up while SuperLink
    handed it out goes to the next one. So does one that a line lost on its way out: SuperNode asks
    for a message's objects before it polls again, so a poll without that gets the message again.
    """

    def __init__(self, *, bell: WorkBell, fleet: FleetMessages, poll_seconds: float) -> None:
        self._bell = bell
        self._fleet = fleet
        self._poll_seconds = poll_seconds
        self._latest: dict[SiteId, object] = {}
        self._unclaimed: dict[SiteId, asyncio.Future[FleetReply]] = {}
        self._handed_out: dict[SiteId, _HandedOut] = {}

    def heard(self, site: SiteId, route: str) -> None:
        """Notes that a site called: whatever it was handed out has arrived, if the call says so."""
        if route not in IDLE:
            self._handed_out.pop(site, None)

    async def poll(self, site: SiteId, node: int, pull: PullOnce) -> FleetReply:
        """SuperLink's answer for `node`: with a message as soon as there is one."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._poll_seconds
        first, turn = site not in self._latest, object()
        self._latest[site] = turn
        if (lost := self._lost(site, loop.time())) is not None:
            return lost
        if (kept := await self._kept(site, node)) is not None:
            return kept
        while True:
            if not first:
                await self._bell.wait(node, seconds=deadline - loop.time())
            if self._latest[site] is not turn:
                return FleetReply(status=OK, body=self._fleet.nothing())
            first = False
            reply = await self._pull_until_visible(site, node, pull)
            if self._final(reply) or loop.time() >= deadline:
                return reply

    def _lost(self, site: SiteId, now: float) -> FleetReply | None:
        """What was handed out to a site and cannot have arrived, unless it is too old."""
        handed = self._handed_out.get(site)
        if handed is None or now - handed.since > REPLAY_SECONDS:
            self._handed_out.pop(site, None)
            return None
        return handed.reply

    async def _pull_until_visible(self, site: SiteId, node: int, pull: PullOnce) -> FleetReply:
        """One pull; after a ring a few more, because the message may not be visible yet."""
        reply = await self._claim(site, node, asyncio.ensure_future(pull()))
        for pause in RETRY_SECONDS:
            if self._final(reply) or not self._bell.has_work(node):
                return reply
            await asyncio.sleep(pause)
            reply = await self._claim(site, node, asyncio.ensure_future(pull()))
        if not self._final(reply):
            self._bell.give_up(node)
        return reply

    async def _claim(
        self, site: SiteId, node: int, pulling: asyncio.Future[FleetReply]
    ) -> FleetReply:
        """The pull's reply; if the caller goes away meanwhile, the next poll gets it.

        SuperLink counts a message as delivered when it answers a pull, so a pull is never cut off.
        """
        try:
            reply = await asyncio.shield(pulling)
        except asyncio.CancelledError:
            self._unclaimed[site] = pulling
            raise
        if self._carries(reply):
            self._bell.handed_out(node)
            now = asyncio.get_running_loop().time()
            self._handed_out[site] = _HandedOut(reply=reply, since=now)
        return reply

    async def _kept(self, site: SiteId, node: int) -> FleetReply | None:
        """The message that an earlier poll of the site left behind, or None."""
        pulling = self._unclaimed.pop(site, None)
        if pulling is None:
            return None
        reply = await self._claim(site, node, pulling)
        return reply if self._carries(reply) else None

    def _carries(self, reply: FleetReply) -> bool:
        return reply.status == OK and self._fleet.carries_message(reply.body)

    def _final(self, reply: FleetReply) -> bool:
        return reply.status != OK or self._carries(reply)
