"""A `Fleet` that sends a study's rounds as steps of a phase, and falls back to messages.

One message per site opens a phase; its worker then answers step after step over a stream. What a
step carries is what a message would carry, so a site that has no stream (its policy refuses it, it
is cut, it is older) gets messages, and nobody above this module sees a difference. Decisions only.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from fedward_common.canonical import sha256_hex
from fedward_common.channel.phase_pb2 import PhaseEvent, PhaseStep
from fedward_common.channel.phases import envelope_bytes, from_step, to_step
from fedward_common.channel.routes import MAX_BODY_BYTES
from fedward_common.errors import ChannelError, ProtocolError
from fedward_common.ids import SiteId
from fedward_common.study.spec import StudySpec
from fedward_common.wire import Envelope, Instruction, Reply
from fedward_server.fleet import Answer, Fleet

MESSAGES_ONLY: Final = frozenset({"evaluate", "statistics"})
"""Kinds that end a phase: Flower's own messages evaluate the model that a phase leaves."""
JOIN_SECONDS: Final = 15.0
"""How long the first step of a phase waits for its sites; never over a quarter of the deadline."""
REJOIN_SECONDS: Final = 5.0
"""How long a step waits for a cut stream before it goes as a message."""
REOPEN_SECONDS: Final = 30.0
"""How long after an opening that came to nothing a site is asked again."""
PHASE_SECONDS: Final = 6 * 3600.0
"""A phase ends after so long, and the next step opens another: Flower forgets old messages."""
CLOSE_SECONDS: Final = 10.0
MAX_HANDED: Final = 3
"""How often one step goes to one site: its stream may be cut twice."""
LOOK_SECONDS: Final = 2.0
POLL_SECONDS: Final = 0.1
STUDY: Final = "study"

_log = structlog.get_logger(__name__)


class Messages(Fleet, Protocol):
    """A fleet over messages that can send more beside what is under way."""

    def add(self, envelopes: Mapping[SiteId, Envelope]) -> None:
        """As `send`, and forgets nothing."""
        ...


class Link(Protocol):
    """The way to the streams of one phase."""

    @property
    def is_open(self) -> bool:
        """Whether the phase is open at the edge."""
        ...

    def open(self, study: str, sites: Collection[SiteId]) -> bool:
        """Opens it; False while the edge is not there."""
        ...

    def hand(self, step: PhaseStep, sites: Collection[SiteId]) -> None:
        """Hands out a step. Raises ChannelError."""
        ...

    def events(self, *, timeout_seconds: float) -> list[PhaseEvent]:
        """What happened; waits for a first event. Raises ChannelError."""
        ...

    def close(self) -> None:
        """Ends the phase."""
        ...


@dataclass(kw_only=True, slots=True)
class _Pending:
    """A step that waits for a site's answer."""

    number: int
    envelope: Envelope
    handed: int = 1
    cut_at: float | None = None


@dataclass(kw_only=True)
class PhaseFleet:
    """The sites of a study by streams where they have one, by messages where not.

    `openings` is a second fleet over the same messages: the answer to an opening comes when the
    phase is over. `clock` is monotonic seconds.
    """

    study: StudySpec
    messages: Messages
    openings: Messages
    link: Link
    clock: Callable[[], float]
    member: Callable[[SiteId], bool] = lambda _site: True
    _present: set[SiteId] = field(default_factory=set)
    _pending: dict[SiteId, _Pending] = field(default_factory=dict)
    _came: list[Answer] = field(default_factory=list)
    _by_message: set[SiteId] = field(default_factory=set)
    _joined: set[SiteId] = field(default_factory=set)
    _opening: dict[SiteId, float] = field(default_factory=dict)
    _refused: dict[SiteId, str] = field(default_factory=dict)
    _ended: dict[SiteId, float] = field(default_factory=dict)
    _left: dict[SiteId, float] = field(default_factory=dict)
    _number: int = 0
    _attempt: int = 0
    _began: float | None = None
    _looked: tuple[float, frozenset[SiteId]] | None = None

    def online(self) -> frozenset[SiteId]:
        """The study's sites with a stream, and those that Flower sees connected."""
        self._came += self._hear(0.0)
        present = frozenset(site for site in self._present if self.member(site))
        if len(present) == len(self.study.sites):
            return present
        if self._looked is None or self.clock() - self._looked[0] > LOOK_SECONDS or not present:
            self._looked = (self.clock(), self.messages.online())
        return present | self._looked[1]

    def send(self, envelopes: Mapping[SiteId, Envelope]) -> None:
        """Hands one envelope to each site; forgets what earlier rounds left unanswered."""
        self._pending.clear()
        self._by_message.clear()
        self._came.clear()
        if not envelopes:
            self.messages.send(envelopes)
            return
        asked = Instruction.parse(next(iter(envelopes.values())).header)
        if asked.kind in MESSAGES_ONLY or not all(map(_fits, envelopes.values())):
            self.end()
            self._by_messages(envelopes, first=True)
            return
        if self._began is not None and self.clock() - self._began > PHASE_SECONDS:
            self.end()
        self._begin(asked, envelopes)
        streamed = {site: one for site, one in envelopes.items() if site in self._present}
        others = {site: one for site, one in envelopes.items() if site not in streamed}
        self._by_messages(others, first=True)
        self._by_streams(streamed)

    def send_again(self, site: SiteId, envelope: Envelope) -> None:
        """Hands a site the same once more, by a message."""
        self._by_messages({site: envelope}, first=False)

    def receive(self, *, timeout_seconds: float) -> list[Answer]:
        """The answers that arrived; waits up to the timeout for a first one. Each comes once."""
        limit = self.clock() + timeout_seconds
        while True:
            if self._came:
                answers, self._came = self._came, []
                return answers
            left = max(0.0, limit - self.clock())
            if self._began is None:
                answers = self._from_messages(left)
            else:
                answers = self._hear(min(left, POLL_SECONDS) if self._unsettled else left)
                answers += self._from_messages(0.0) if self._by_message else []
                self._fall_back()
            if answers or self.clock() >= limit:
                return answers

    def end(self) -> None:
        """Ends the phase, if one is open: each worker's task ends, and its answer is taken."""
        if self._began is None:
            return
        self._hear(0.0)
        self.link.close()
        self._present.clear()
        limit = self.clock() + CLOSE_SECONDS
        while self._opening.keys() & self._joined and self.clock() < limit:
            self._take_openings(timeout_seconds=POLL_SECONDS)
        _log.info("phase.ended", steps=self._number, left=len(self._opening))
        self._joined.clear()
        self._opening.clear()
        self._ended.clear()
        self._left.clear()
        self._began = None

    @property
    def _unsettled(self) -> bool:
        """Whether something besides the streams has to be looked at while waiting."""
        cut = any(pending.cut_at is not None for pending in self._pending.values())
        return cut or bool(self._by_message) or not self.link.is_open

    # Opening

    def _begin(self, asked: Instruction, envelopes: Mapping[SiteId, Envelope]) -> None:
        """Opens the phase where it is not open, and for sites that are not in it.

        Only a round of training does; what belongs to other exchanges goes the way that is there.
        """
        if asked.kind != "train":
            return
        if not self.link.is_open and not self._open_again():
            return
        first = self._began is None
        if first:
            self._began = self.clock()
        now = self.clock()
        self._forget_openings(now)
        wanted = [
            site
            for site in envelopes
            if site not in self._present
            and site not in self._opening
            and site not in self._refused
            and now - self._ended.get(site, -REOPEN_SECONDS) >= REOPEN_SECONDS
        ]
        if wanted:
            self._attempt += 1
            self.openings.online()
            self.openings.add({site: self._opens(asked, envelopes[site]) for site in wanted})
            self._opening |= dict.fromkeys(wanted, now)
        elif self._opening.keys() - self._present:
            self._take_openings(timeout_seconds=0.0)
        if first:
            self._wait_for_joins(now)

    def _forget_openings(self, now: float) -> None:
        """Of a site whose stream went and stayed away: its guard was started again and forgot the
        phase, so that the answer to the opening cannot leave there any more.
        """
        for site in self._opening.keys() & self._left.keys():
            if now - self._left[site] > REOPEN_SECONDS:
                del self._opening[site]

    def _opens(self, asked: Instruction, envelope: Envelope) -> Envelope:
        empty = b""
        opening = asked.model_copy(
            update={
                "kind": "phase",
                "attempt": self._attempt,
                "model_sha256": sha256_hex(empty),
            }
        )
        return Envelope(
            header=opening.canonical, blobs={STUDY: envelope.blobs[STUDY], "model": empty}
        )

    def _wait_for_joins(self, since: float) -> None:
        patience = min(JOIN_SECONDS, self.study.deadline_seconds / 4)
        while self._opening.keys() - self._present and self.clock() - since < patience:
            self._hear(POLL_SECONDS)
            self._take_openings(timeout_seconds=0.0)
        _log.info("phase.began", sites=len(self._present), asked=len(self._opening))

    def _take_openings(self, *, timeout_seconds: float) -> None:
        """Takes the answers to openings: a phase of that site is over, or never was."""
        for answer in self.openings.receive(timeout_seconds=timeout_seconds):
            self._opening.pop(answer.site, None)
            self._ended[answer.site] = self.clock()
            code = _refusal(answer)
            if code:
                self._refused[answer.site] = code
                _log.warning("phase.refused", site=answer.site, code=code)

    # Steps

    def _by_streams(self, envelopes: Mapping[SiteId, Envelope]) -> None:
        """Hands out steps: one order for all sites that get the same envelope."""
        groups: dict[tuple[object, ...], list[SiteId]] = {}
        for site, envelope in envelopes.items():
            groups.setdefault(_same(envelope), []).append(site)
        for sites in groups.values():
            self._hand(envelopes[sites[0]], sites)

    def _hand(self, envelope: Envelope, sites: Collection[SiteId], *, handed: int = 1) -> None:
        self._number += 1
        pending = {
            site: _Pending(number=self._number, envelope=envelope, handed=handed) for site in sites
        }
        self._pending |= pending
        try:
            self.link.hand(to_step(self._number, _without_study(envelope)), sites)
        except ChannelError:
            self._all_gone()

    def _hear(self, timeout_seconds: float) -> list[Answer]:
        """What the streams brought: presence is noted, answers are returned."""
        if self._began is None:
            return []
        if not self.link.is_open and not self._open_again():
            self._take_openings(timeout_seconds=min(timeout_seconds, POLL_SECONDS))
            return []
        try:
            events = self.link.events(timeout_seconds=timeout_seconds)
        except ChannelError:
            self._all_gone()
            return []
        return [answer for event in events for answer in self._noted(event)]

    def _open_again(self) -> bool:
        return self.link.open(self.study.digest, [SiteId(site.id) for site in self.study.sites])

    def _noted(self, event: PhaseEvent) -> list[Answer]:
        site = SiteId(event.site)
        if event.WhichOneof("said") != "answer":
            return self._presence(site, present=event.present)
        pending = self._pending.get(site)
        if pending is None or pending.number != event.answer.number:
            _log.info("phase.late-answer", site=site)
            return []
        del self._pending[site]
        try:
            return [Answer(site=site, envelope=from_step(event.answer))]
        except ProtocolError as error:
            return [Answer(site=site, envelope=None, lost=str(error))]

    def _presence(self, site: SiteId, *, present: bool) -> list[Answer]:
        """Notes who came and went; what a new stream may have lost is handed out again.

        Not for ever: a site that comes and goes would keep this process and the edge busy with
        nothing else. After MAX_HANDED times it counts as a step that the way lost.
        """
        pending = self._pending.get(site)
        if not present:
            self._present.discard(site)
            self._left[site] = self.clock()
            if pending is not None:
                pending.cut_at = self.clock()
            return []
        self._present.add(site)
        self._joined.add(site)
        self._left.pop(site, None)
        if pending is None:
            return []
        if pending.handed < MAX_HANDED:
            self._hand(pending.envelope, [site], handed=pending.handed + 1)
            return []
        del self._pending[site]
        return [Answer(site=site, envelope=None, lost=f"its stream was new {MAX_HANDED} times")]

    def _all_gone(self) -> None:
        for site in list(self._present):
            self._presence(site, present=False)
        for pending in self._pending.values():
            pending.cut_at = self.clock() if pending.cut_at is None else pending.cut_at

    # Messages

    def _by_messages(self, envelopes: Mapping[SiteId, Envelope], *, first: bool) -> None:
        if first:
            self.messages.send(envelopes)
        else:
            self.messages.online()
            self.messages.add(envelopes)
        self._by_message |= envelopes.keys()

    def _from_messages(self, timeout_seconds: float) -> list[Answer]:
        came = self.messages.receive(timeout_seconds=timeout_seconds)
        answers = [a for a in came if a.late or a.site in self._by_message]
        self._by_message -= {answer.site for answer in answers if not answer.late}
        return answers

    def _fall_back(self) -> None:
        """A step whose stream stays away goes as a message: the same instruction, no new charge."""
        now = self.clock()
        gone = {
            site: pending.envelope
            for site, pending in self._pending.items()
            if pending.cut_at is not None and now - pending.cut_at > REJOIN_SECONDS
        }
        if gone:
            for site in gone:
                del self._pending[site]
            _log.warning("phase.fell-back", sites=len(gone))
            self._by_messages(gone, first=False)


def _fits(envelope: Envelope) -> bool:
    return envelope_bytes(_without_study(envelope)) <= MAX_BODY_BYTES // 2


def _without_study(envelope: Envelope) -> Envelope:
    """The envelope as a step carries it: the signed study went with the opening."""
    blobs = {name: blob for name, blob in envelope.blobs.items() if name != STUDY}
    return Envelope(header=envelope.header, blobs=blobs)


def _same(envelope: Envelope) -> tuple[object, ...]:
    """Equal for envelopes of the same header and the same blobs (the very objects)."""
    return envelope.header, *sorted((name, id(blob)) for name, blob in envelope.blobs.items())


def _refusal(answer: Answer) -> str:
    """The word of a refusal; empty for the answer that ends a phase, and where none came."""
    if answer.envelope is None:
        return ""
    try:
        return Reply.parse(answer.envelope.header).code
    except ProtocolError:
        return ""
