"""What the gateway does beside passing calls: it asks after the coordinator and renews in time.

Both leave the site, so both are in its journal before they go. A failure is logged and tried again;
it never ends the gateway, and no call of SuperNode waits for it.
"""

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal, Protocol

import structlog

from fedward_client.adapters.tls_pair import TlsPair
from fedward_client.gateway.greeting import Greeting
from fedward_client.ports import Passing
from fedward_client.renew import Backoff, renewal_due, renewal_moment
from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.errors import ChannelError, FedwardError
from fedward_common.trust.certificates import PeerCertificate, parse_peer_certificate
from fedward_common.trust.chains import verify_site_chain

TICK_SECONDS: Final = 30.0
HELLO_EVERY: Final = timedelta(hours=1)

_log = structlog.get_logger(__name__)


class SiteChannel(Protocol):
    """What a member asks its coordinator on its own behalf."""

    edge_certificate_sha256: str

    async def hello(self, versions: Mapping[str, str]) -> Greeting:
        """What the coordinator says of itself. Raises ChannelError."""
        ...

    async def renew(self, request_pem: bytes) -> bytes:
        """A new certificate chain, not yet verified. Raises ChannelError."""
        ...

    def reconnect(self) -> None:
        """Makes the next call with the identity that lies in the files now."""
        ...


class ObjectJournal(Protocol):
    """Where the site writes down what left and what came in."""

    def journal(self, passing: Passing) -> None:
        """Writes down one object; on disk when this returns."""
        ...


class Upkeep:
    """Hello at the start and every hour; a new key and certificate at two thirds of the old one's
    life.
    """

    def __init__(
        self,
        *,
        channel: SiteChannel,
        journal: ObjectJournal,
        pair: TlsPair,
        ca: Path,
        versions: Mapping[str, str],
        clock: Callable[[], datetime],
        edge_certificate: Callable[[], str],
    ) -> None:
        """`edge_certificate` asks the edge for the digest of its certificate ("" if it is down)."""
        self._channel = channel
        self._journal = journal
        self._pair = pair
        self._ca = ca
        self._versions = versions
        self._clock = clock
        self._edge_certificate = edge_certificate
        self._next_hello = self._next_renewal = clock()
        self._hello_backoff, self._renewal_backoff = Backoff(), Backoff()
        self._known_revoked: set[str] = set()

    async def run(self) -> None:
        """Does what is due, for ever."""
        while True:
            await self.tick()
            await asyncio.sleep(TICK_SECONDS)

    async def tick(self) -> None:
        """Does what is due now, by the injected clock."""
        if self._clock() >= self._next_hello:
            await self._hello()
        if self._clock() >= self._next_renewal:
            await self._renew_if_due()

    async def _hello(self) -> None:
        try:
            said = canonical_json(dict(self._versions))
            await self._note("out", "hello", "hello", said)
            greeting = await self._channel.hello(self._versions)
            self._channel.edge_certificate_sha256 = await asyncio.to_thread(self._edge_certificate)
            revoked = [site for site in greeting.revoked if site not in self._known_revoked]
            if revoked:
                await self._note("in", "hello", "revocation", canonical_json(revoked))
        except (FedwardError, OSError) as error:
            pause = self._hello_backoff.failed()
            self._next_hello = self._clock() + pause
            _tell("gateway.hello-failed", error, pause=pause)
            return
        self._hello_backoff.worked()
        self._next_hello = self._clock() + HELLO_EVERY
        if not greeting.clocks_agree:
            _log.warning("gateway.clock-skew", seconds=round(greeting.skew_seconds, 1))
        for name, version in greeting.differing(self._versions).items():
            _log.warning("gateway.version-differs", kind=name, version=version)
        if revoked:
            self._known_revoked.update(revoked)
            _log.warning("gateway.members-revoked", sites=revoked)

    async def _renew_if_due(self) -> None:
        try:
            own = parse_peer_certificate(self._pair.certificate.read_bytes())
            if not renewal_due(own, self._clock()):
                self._next_renewal = renewal_moment(own)
                return
            renewed = await self._renew(own)
        except (FedwardError, OSError) as error:
            pause = self._renewal_backoff.failed()
            self._next_renewal = self._clock() + pause
            _tell("gateway.renewal-failed", error, pause=pause)
            return
        self._renewal_backoff.worked()
        self._next_renewal = renewal_moment(renewed)
        _log.info(
            "gateway.renewed",
            certificate_sha256=renewed.fingerprint_sha256,
            not_after=renewed.not_after.strftime("%Y-%m-%dT%H:%M:%SZ"),
        )

    async def _renew(self, own: PeerCertificate) -> PeerCertificate:
        """The new certificate, in its place and in use.

        1. The new key is on disk before its request leaves.
        2. The chain that comes back leads to the root we have, is for that key, names this site of
           this federation, and lasts longer than the present one.
        3. Key and certificate change places together (`TlsPair`), then the channel opens anew.
        """
        request = await asyncio.to_thread(self._pair.prepare, own.site_id)
        await self._note("out", "renew", "certificate-request", request)
        chain = await self._channel.renew(request)
        await self._note("in", "renew", "certificate", chain)
        renewed = verify_site_chain(
            chain,
            root_pem=self._ca.read_bytes(),
            request_pem=request,
            federation=own.federation,
            site=own.site_id,
            now=self._clock(),
        )
        if renewed.not_after <= own.not_after:
            raise ChannelError(
                "renewal: expected a certificate that lasts longer than the present one, found "
                "none. Ask the operator whether the issuing authority itself is about to end"
            )
        await asyncio.to_thread(self._pair.switch, chain)
        self._channel.reconnect()
        return renewed

    async def _note(
        self, direction: Literal["in", "out"], route: str, kind: str, content: bytes
    ) -> None:
        passing = Passing(
            direction=direction,
            route=route,
            kind=kind,
            sha256=sha256_hex(content),
            bytes=len(content),
        )
        await asyncio.to_thread(self._journal.journal, passing)


def _tell(event: str, error: Exception, *, pause: timedelta) -> None:
    code = error.code if isinstance(error, FedwardError) else type(error).__name__
    text = str(error) if isinstance(error, FedwardError) else error.__class__.__name__
    _log.warning(event, code=code, reason=text[:500], seconds=pause.total_seconds())


def started(upkeep: Upkeep) -> "asyncio.Task[None]":
    """The upkeep as a task. A defect in it is logged by its type; the gateway goes on without."""

    def note(task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("gateway.upkeep-ended", error=type(error).__name__)

    task = asyncio.create_task(upkeep.run())
    task.add_done_callback(note)
    return task


async def ended(task: "asyncio.Task[None]") -> None:
    """Cancels the task and waits until it has let go of what it held."""
    task.cancel()
    await asyncio.wait({task})
