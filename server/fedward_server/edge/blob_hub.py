"""Blobs at the edge: which blob is whose, and who may send one now. No I/O of its own.

A ServerApp begins one exchange of its study after the other. In each it offers blobs to named sites
and lets named sites send one blob; with the next exchange, or with the ServerApp, all of it is over
and its files are given up. A site is known by its certificate.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from fedward_common.channel.blob_files import BlobFile
from fedward_common.channel.blobs import Have, Manifest
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.errors import StorageError
from fedward_common.ids import SiteId

MAX_STUDIES: Final = 64

Arrived = Callable[[SiteId, str, BlobFile], None]
"""Hands a whole blob of a site to the ServerApp of its study."""
MakeFile = Callable[[int], BlobFile]
"""An empty file of so many bytes. Raises StorageError."""


@dataclass(eq=False, kw_only=True, slots=True)
class Offer:
    """A blob that sites may fetch."""

    manifest: Manifest
    file: BlobFile
    sites: frozenset[str]
    over: bool = False


@dataclass(eq=False, kw_only=True, slots=True)
class Arrival:
    """A blob that a site sends: what is there of it."""

    manifest: Manifest
    file: BlobFile
    have: Have
    over: bool = False
    told: bool = False


@dataclass(eq=False, kw_only=True, slots=True)
class Exchange:
    """One exchange of a study: what its sites may fetch and send."""

    study: str
    arrived: Arrived
    offers: Mapping[str, Offer]
    senders: frozenset[str]
    max_bytes: int
    arrivals: dict[SiteId, Arrival] = field(default_factory=dict)

    def end(self) -> None:
        """Gives up every file; who is at work with one sees that it is over."""
        for offer in self.offers.values():
            offer.over = True
            offer.file.close()
        for site in list(self.arrivals):
            self.forget(site)

    def forget(self, site: SiteId) -> None:
        """Gives up what a site sent."""
        arrival = self.arrivals.pop(site)
        arrival.over = True
        arrival.file.close()


class BlobHub:
    """The exchange of each study that is open now."""

    def __init__(self, *, make_file: MakeFile, quota_bytes: int) -> None:
        self._make_file = make_file
        self._quota_bytes = quota_bytes
        self._exchanges: dict[str, Exchange] = {}

    def begin(self, exchange: Exchange) -> None:
        """Opens an exchange; the one before it of the same study is over.

        Raises:
            CallRefused: RATE, too many studies at a time.
        """
        before = self._exchanges.get(exchange.study)
        if before is None and len(self._exchanges) >= MAX_STUDIES:
            exchange.end()
            raise CallRefused(Refusal.RATE, f"expected at most {MAX_STUDIES} studies at a time")
        if before is not None:
            before.end()
        self._exchanges[exchange.study] = exchange

    def end(self, exchange: Exchange) -> None:
        """Its ServerApp is gone."""
        if self._exchanges.get(exchange.study) is exchange:
            del self._exchanges[exchange.study]
        exchange.end()

    def offered(self, study: str, site: SiteId, blob: str) -> Offer:
        """The blob of that id, if it is offered to this very site in its study.

        Raises:
            CallRefused: BLOB; whether it exists for another site is not told.
        """
        exchange = self._exchanges.get(study)
        offer = None if exchange is None else exchange.offers.get(blob)
        if offer is None or site not in offer.sites:
            raise CallRefused(Refusal.BLOB, f"{site}: expected a blob that is offered to it")
        return offer

    def arriving(self, site: SiteId, manifest: Manifest) -> Arrival:
        """Where a site's blob goes: what came of it before a cut is still there.

        Another blob replaces one that is not whole; after a whole one there is no second.

        Raises:
            CallRefused: BLOB, none is expected of this site now, or one came already; BLOB_SIZE, it
                is larger than this exchange allows, or than there is room for.
        """
        exchange = self._exchanges.get(manifest.study)
        if exchange is None or site not in exchange.senders:
            raise CallRefused(Refusal.BLOB, f"{site}: expected that a blob of it is awaited")
        if manifest.size > exchange.max_bytes:
            raise CallRefused(
                Refusal.BLOB_SIZE,
                f"{site}: expected at most {exchange.max_bytes} bytes, found {manifest.size}",
            )
        before = exchange.arrivals.get(site)
        if before is not None and before.manifest.id == manifest.id:
            return before
        if before is not None and before.told:
            raise CallRefused(Refusal.BLOB, f"{site}: expected one blob in an exchange")
        if before is not None:
            exchange.forget(site)
        arrival = Arrival(
            manifest=manifest,
            file=self._room(site, manifest.size),
            have=Have(len(manifest.chunks)),
        )
        exchange.arrivals[site] = arrival
        return arrival

    def whole(self, site: SiteId, arrival: Arrival) -> None:
        """Hands a site's whole blob to its ServerApp, once."""
        exchange = self._exchanges.get(arrival.manifest.study)
        if exchange is None or exchange.arrivals.get(site) is not arrival or arrival.told:
            return
        arrival.told = True
        exchange.arrived(site, arrival.manifest.id, arrival.file)

    def _room(self, site: SiteId, size: int) -> BlobFile:
        taken = sum(
            arrival.file.size
            for exchange in self._exchanges.values()
            for arrival in exchange.arrivals.values()
        )
        if taken + size > self._quota_bytes:
            raise CallRefused(
                Refusal.BLOB_SIZE,
                f"{site}: expected room for {size} bytes of {self._quota_bytes} "
                f"(limits.blob_quota_bytes), found {taken} taken",
            )
        try:
            return self._make_file(size)
        except StorageError as error:
            raise CallRefused(Refusal.BLOB_SIZE, str(error)) from error


def offers_of(
    parts: Sequence[tuple[Manifest, BlobFile, Sequence[str]]],
) -> dict[str, Offer]:
    """The offers of an exchange by their ids."""
    return {
        manifest.id: Offer(manifest=manifest, file=file, sites=frozenset(sites))
        for manifest, file, sites in parts
    }
