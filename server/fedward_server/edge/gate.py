"""What every call of a site passes first, whatever it asks: rate, admission, a place, the log."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

import structlog

from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.errors import FedwardError
from fedward_common.ids import SiteId
from fedward_server.edge.admission import CallRate, claimed_peer, claimed_site
from fedward_server.ports import EventSink, SiteRecord

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

    def note(self, action: str, *, refusal: Refusal, site: str = "", route: str = "") -> bool:
        """Counts one refusal and writes it unless the same one was written a moment ago.

        True when it was written: a process's own output, which nothing rotates, says no more often
        than that what strangers do.
        """
        key, now = (refusal.value, site, route), self.clock()
        last, skipped = self._written.get(key, (float("-inf"), 0))
        if now - last < self.period_seconds:
            self._written[key] = (last, skipped + 1)
            return False
        self._written[key] = (now, 0)
        fields = {"site": site, "route": route}
        self.log.append(
            action,
            code=refusal.value,
            count=skipped + 1,
            **{name: value for name, value in fields.items() if value},
        )
        return True


@dataclass(kw_only=True, slots=True)
class Passing:
    """A call that was let in. `route` is a word of ours for the log, never the caller's text."""

    record: SiteRecord
    route: str


class Gate:
    """Lets the calls of member sites in, within their limits, and writes each refusal down.

    `Forward` and the operations of `FedwardSite` share one gate, so a site's limits hold for all
    that it calls together.
    """

    def __init__(self, *, rate: CallRate, log: EventSink) -> None:
        self._rate = rate
        self._log = log
        self._refusals = RefusalLog(log=log)
        self._seen: set[tuple[SiteId, str]] = set()
        self._under_way: Counter[SiteId] = Counter()
        # One thread: roster questions and log lines are disk work, and keep their order.
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edge-disk")

    @asynccontextmanager
    async def passing(
        self, certificate_pem: bytes, *, route: str, admit: Callable[[], SiteRecord]
    ) -> AsyncIterator[Passing]:
        """The caller, for the time of one call; a refusal in between is logged and goes on.

        `admit` decides, in the disk thread, before anything of the call but its certificate is
        looked at.

        Raises:
            CallRefused: by `admit`, RATE, or what the body of the call raised. Its log line is
                written before this returns.
        """
        passing: Passing | None = None
        try:
            record = await self._admitted(certificate_pem, admit)
            with self._place_of(record.site_id):
                passing = Passing(record=record, route=route)
                yield passing
        except CallRefused as refused:
            await self._note(certificate_pem, route if passing is None else passing.route, refused)
            raise

    async def in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        """What `function` returns, from the one thread that does the edge's disk work."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, function, *arguments)

    async def write(self, action: str, **fields: object) -> None:
        """Writes one event to the coordinator's log.

        Raises:
            CallRefused: UPSTREAM, it cannot be written: nothing passes without its line.
        """
        try:
            await self.in_thread(lambda: self._log.append(action, **fields))
        except FedwardError as error:
            raise CallRefused(
                Refusal.UPSTREAM, f"expected to write the log, found {type(error).__name__}"
            ) from error

    async def _admitted(
        self, certificate_pem: bytes, admit: Callable[[], SiteRecord]
    ) -> SiteRecord:
        peer = claimed_peer(certificate_pem)
        if peer is not None:
            self._rate.spend(peer.fingerprint_sha256)
        record = await self.in_thread(admit)
        shown = peer.fingerprint_sha256 if peer is not None else record.certificate_sha256
        if (known := (record.site_id, shown)) not in self._seen:
            self._seen.add(known)
            await self.write("edge.site-connected", site=record.site_id, certificate_sha256=shown)
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

    async def _note(self, certificate_pem: bytes, route: str, refused: CallRefused) -> None:
        site = claimed_site(certificate_pem) or ""
        try:
            written = await self.in_thread(
                lambda: self._refusals.note(
                    "edge.refused", refusal=refused.refusal, site=site, route=route
                )
            )
            if written:
                _logger.warning("edge.refused", code=refused.refusal.value, reason=str(refused))
        except FedwardError as error:
            # The caller is refused all the same, and by its own reason.
            _logger.error("edge.log-failed", code=error.code)
