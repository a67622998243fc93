"""A `Fleet` whose large tensors go beside the messages, as blobs through the edge.

Above it an envelope holds its model and its payload whole, whatever their size; below it a message
holds their manifests. A reply counts as come when its blob is whole. Decisions only.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from fedward_common.channel.blobs import (
    INLINE_BYTES,
    SUFFIX,
    Manifest,
    manifest_of,
    manifests_in,
    with_blobs,
)
from fedward_common.errors import ProtocolError
from fedward_common.ids import SiteId
from fedward_common.study.spec import StudySpec
from fedward_common.wire import Envelope, Octets
from fedward_server.fleet import Answer, Fleet

POLL_SECONDS: Final = 0.05
"""How often messages are looked at while a blob is on its way."""
ROOM_BYTES: Final = 1 << 20
"""What an answer may have beside its numbers."""
PAYLOAD: Final = "payload"
PER_BYTE: Final = 2
"""A masked number may need twice the bytes of the model's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Offered:
    """A blob and who may fetch it."""

    manifest: Manifest
    content: Octets
    sites: Sequence[SiteId]


@dataclass(frozen=True, kw_only=True, slots=True)
class Came:
    """A whole blob of a site, mapped from its file."""

    site: SiteId
    id: str
    content: Octets


class Blobs(Protocol):
    """The way of blobs to the sites and back, one exchange after the other."""

    def begin(
        self,
        study: str,
        offers: Sequence[Offered],
        *,
        senders: Collection[SiteId],
        max_bytes: int,
    ) -> None:
        """Begins an exchange; the one before is over. Raises StorageError."""
        ...

    def arrived(self, *, timeout_seconds: float) -> list[Came]:
        """The whole blobs that came; waits up to the timeout for a first one."""
        ...

    def close(self) -> None:
        """Ends the exchange."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _Waiting:
    """An answer whose blob is on its way."""

    envelope: Envelope
    manifest: Manifest


@dataclass(kw_only=True)
class BlobFleet:
    """The sites of a study, with large tensors by blobs. `clock` is monotonic seconds."""

    study: StudySpec
    fleet: Fleet
    blobs: Blobs
    clock: Callable[[], float]
    inline: int = INLINE_BYTES
    _manifests: dict[int, tuple[Octets, bytes]] = field(default_factory=dict)
    _waiting: dict[SiteId, _Waiting] = field(default_factory=dict)
    _came: dict[tuple[SiteId, str], Octets] = field(default_factory=dict)
    _max_bytes: int = 0
    _open: bool = False

    def online(self) -> frozenset[SiteId]:
        """The study's sites that are connected now."""
        return self.fleet.online()

    def send(self, envelopes: Mapping[SiteId, Envelope]) -> None:
        """Offers what is large to the sites that it is for, then hands each its envelope.

        Raises:
            StorageError: the disk has no room for what is offered.
        """
        self._manifests.clear()
        self._waiting.clear()
        self._came.clear()
        parted = {site: self._parted(envelope) for site, envelope in envelopes.items()}
        largest = max((len(b) for one in envelopes.values() for b in one.blobs.values()), default=0)
        self._max_bytes = PER_BYTE * largest + ROOM_BYTES
        if self._manifests or self._max_bytes > self.inline:
            self.blobs.begin(
                self.study.digest,
                self._offers(envelopes),
                senders=list(envelopes),
                max_bytes=self._max_bytes,
            )
            self._open = True
        elif self._open:
            self.blobs.close()
            self._open = False
        self.fleet.send(parted)

    def send_again(self, site: SiteId, envelope: Envelope) -> None:
        """Hands a site the same once more; its blobs are still offered."""
        self.fleet.send_again(site, self._parted(envelope))

    def receive(self, *, timeout_seconds: float) -> list[Answer]:
        """The answers that are whole; waits up to the timeout for a first one."""
        limit = self.clock() + timeout_seconds
        while True:
            left = max(0.0, limit - self.clock())
            if self._waiting:
                self._note(min(left, POLL_SECONDS))
                answers = self.fleet.receive(timeout_seconds=0.0)
            else:
                self._note(0.0)  # an edge that was away hears of the exchange again
                answers = self.fleet.receive(timeout_seconds=left)
            whole = [one for answer in answers for one in self._taken(answer)] + self._settled()
            if whole or self.clock() >= limit:
                return whole

    def _parted(self, envelope: Envelope) -> Envelope:
        """The envelope for a message: one manifest, the same object, for one content."""
        blobs: dict[str, Octets] = {}
        for name, content in envelope.blobs.items():
            if len(content) <= self.inline:
                blobs[name] = content
                continue
            if id(content) not in self._manifests:
                manifest = manifest_of(self.study.digest, content).canonical
                self._manifests[id(content)] = (content, manifest)
            blobs[name + SUFFIX] = self._manifests[id(content)][1]
        return Envelope(header=envelope.header, blobs=blobs)

    def _offers(self, envelopes: Mapping[SiteId, Envelope]) -> list[Offered]:
        """One offer for each manifest, to every site whose message holds it."""
        offers: list[Offered] = []
        for manifest, content in {
            one: content for content, one in self._manifests.values()
        }.items():
            sites = [
                site
                for site, envelope in envelopes.items()
                if manifest in self._parted(envelope).blobs.values()
            ]
            offers.append(Offered(manifest=Manifest.parse(manifest), content=content, sites=sites))
        return offers

    def _taken(self, answer: Answer) -> list[Answer]:
        """The answer itself where it is whole; nothing while its blob is on its way."""
        envelope = answer.envelope
        if envelope is None or answer.late:
            return [answer]
        try:
            found = manifests_in(envelope.blobs)
            if not found:
                return [answer]
            manifest = self._expected(found)
        except ProtocolError as error:
            return [Answer(site=answer.site, envelope=None, lost=str(error))]
        self._waiting[answer.site] = _Waiting(envelope=envelope, manifest=manifest)
        self._note(0.0)
        return []

    def _expected(self, found: Mapping[str, Manifest]) -> Manifest:
        manifest = found.get(PAYLOAD)
        if manifest is None or len(found) > 1 or manifest.study != self.study.digest:
            raise ProtocolError("reply: expected a payload of this study as its one blob")
        if not self._open or manifest.size > self._max_bytes:
            raise ProtocolError(
                f"reply: expected a payload of at most {self._max_bytes} bytes, found "
                f"{manifest.size}"
            )
        return manifest

    def _note(self, timeout_seconds: float) -> None:
        if self._open:
            for came in self.blobs.arrived(timeout_seconds=timeout_seconds):
                self._came[came.site, came.id] = came.content

    def _settled(self) -> list[Answer]:
        """The answers whose blobs are whole now."""
        whole: list[Answer] = []
        for site, waiting in list(self._waiting.items()):
            content = self._came.pop((site, waiting.manifest.id), None)
            if content is not None:
                del self._waiting[site]
                envelope = with_blobs(waiting.envelope, {PAYLOAD: content})
                whole.append(Answer(site=site, envelope=envelope))
        return whole
