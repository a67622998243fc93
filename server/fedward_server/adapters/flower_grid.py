"""The `Fleet` of a study over Flower's Grid: push, kick the edge, pull replies that are whole."""

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from flwr.app import Message
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from fedward_common.canonical import sha256_hex
from fedward_common.errors import ProtocolError
from fedward_common.ids import SiteId
from fedward_common.study.spec import StudySpec
from fedward_common.wire import CONTROL_KINDS, Envelope, Instruction
from fedward_server.adapters.flower_records import from_records, to_records
from fedward_server.adapters.readiness import readable
from fedward_server.adapters.reply_pulls import Pulled, ReplyPulls
from fedward_server.fleet import Answer

SWEEP_SECONDS: Final = 10.0
"""How often every open message is asked about: errors that SuperLink makes itself pass no edge.

Asking takes a reply out of SuperLink, with the instruction it answers, even while its objects are
on their way; one that then has to be announced again is not known there any more. So a sweep must
not be the way in which replies are found.
"""
DEAF_SECONDS: Final = 0.1
"""How often without an edge that tells of replies."""
WHOLE_AT_ONCE: Final = 2
"""Replies fetched side by side: each is a model in memory until it is added up."""
LAST_LOOK_SECONDS: Final = 0.5
"""Before nothing is told of, what SuperLink has already gets so long to be here."""
AWAKE_SECONDS: Final = 1.0
"""A process that does not wake for longer looks dead to who watches it."""
TTL_MARGIN_SECONDS: Final = 60.0
MAX_LATE: Final = 64
FLOWER_KINDS: Final = {
    "statistics": "query",
    "phase": "query",
    **dict.fromkeys(CONTROL_KINDS, "query"),
}
"""Kinds of ours that Flower knows by another name; train and evaluate are the same."""
UNREADABLE: Final = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    DecodeError,
)
"""What Flower raises while it puts a reply together from objects that are not what it expects. A
site writes those objects, so one of them could otherwise end a study for all."""


def nothing_heard(seconds: float, beside: int) -> list[int] | None:
    """Stands in for the edge's word of replies where no edge gives it."""
    readable(beside, seconds=min(seconds, DEAF_SECONDS))
    return None


class FlowerFleet:
    """The study's sites behind Flower's Grid.

    Addresses only nodes whose public key is named in the study (rules 15): a node that registered
    itself gets no message. A site for which `member` says no is not online: whoever was revoked is
    asked nothing more, and no round waits for it. A reply that cannot be read is a lost answer,
    never an exception. A reply is pulled when the edge has seen its last object pass; what passes
    no edge (Flower's own errors) is found by a sweep now and then. A reply that never becomes
    whole holds up nothing: its pull is a thread of its own, and is given up when a later exchange
    than the next begins.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        study: StudySpec,
        kick: Callable[[Sequence[int]], object],
        member: Callable[[SiteId], bool] = lambda _site: True,
        ttl_seconds: float | None = None,
        heard: Callable[[float, int], Sequence[int] | None] = nothing_heard,
    ) -> None:
        """`heard` waits so many seconds, or until a descriptor is readable.

        It gives the nodes that replied; None if it is deaf.
        """
        self._grid = grid
        self._pulls = ReplyPulls(grid, at_once=2 * len(study.sites) + MAX_LATE)
        self._member = member
        self._kick = kick
        lives = study.deadline_seconds if ttl_seconds is None else ttl_seconds
        self._ttl = lives + TTL_MARGIN_SECONDS
        self._by_key = {site.node_key_sha256: SiteId(site.id) for site in study.sites}
        self._nodes: dict[SiteId, int] = {}
        self._pending: dict[str, SiteId] = {}
        self._late: dict[str, SiteId] = {}
        self._look_for_late = False
        self._heard = heard
        self._whole: deque[str] = deque()
        self._again: set[str] = set()
        self._sweep_at = 0.0

    def online(self) -> frozenset[SiteId]:
        """The study's sites that are connected now."""
        self._nodes = {
            self._by_key[key]: node.node_id
            for node in self._grid.get_nodes()
            if (key := sha256_hex(node.public_key)) in self._by_key
            and self._member(self._by_key[key])
        }
        return frozenset(self._nodes)

    def send(self, envelopes: Mapping[SiteId, Envelope]) -> None:
        """Hands one envelope to each site that is known; an unknown one stays unanswered."""
        self._pulls.give_up(list(self._late))
        self._late = dict(list((self._late | self._pending).items())[-MAX_LATE:])
        self._pending.clear()
        self._look_for_late = True
        self._whole.clear()
        self._again.clear()
        self.add(envelopes)

    def add(self, envelopes: Mapping[SiteId, Envelope]) -> None:
        """As `send`, beside what was sent before and is not answered yet."""
        targets = [site for site in envelopes if site in self._nodes]
        messages = [self._message(site, envelopes[site]) for site in targets]
        if not messages:
            return
        self._note(
            self._heard(0.0, self._pulls.fileno()) or ()
        )  # connected before the first reply can come
        for site, message_id in zip(targets, self._grid.push_messages(messages), strict=True):
            if message_id:
                self._pending[message_id] = site
        self._sweep_at = time.monotonic() + SWEEP_SECONDS
        self._kick([self._nodes[site] for site in targets])

    def send_again(self, site: SiteId, envelope: Envelope) -> None:
        """Hands a site the same once more, after the way there lost it; forgets nothing."""
        self.add({site: envelope})

    def _message(self, site: SiteId, envelope: Envelope) -> Message:
        instruction = Instruction.parse(envelope.header)
        return Message(
            to_records(envelope),
            self._nodes[site],
            FLOWER_KINDS.get(instruction.kind, instruction.kind),
            ttl=self._ttl,
            group_id=str(instruction.round),
        )

    def receive(self, *, timeout_seconds: float) -> list[Answer]:
        """The next answers as soon as one is there; none after the timeout."""
        limit = time.monotonic() + timeout_seconds
        if self._look_for_late:  # once in each exchange
            self._look_for_late = False
            self._start(self._late)
        while True:
            if answers := self._taken():
                return answers
            now = time.monotonic()
            if now >= limit:
                return self._last_look()
            self._start_whole(at_once=WHOLE_AT_ONCE)
            self._listen(max(0.0, min(limit, self._sweep_at, now + AWAKE_SECONDS) - now))

    def close(self) -> None:
        """Gives up what is under way."""
        self._pulls.close()

    def _last_look(self) -> list[Answer]:
        """What has come by now."""
        self._listen(0.0)
        self._start_whole(at_once=len(self._whole))
        limit = time.monotonic() + LAST_LOOK_SECONDS
        answers: list[Answer] = []
        while self._pulls.young(self._pending.keys() | self._late.keys()):
            if (left := limit - time.monotonic()) <= 0:
                break
            self._pulls.wait(left)
            answers += self._taken()
        return answers

    def _listen(self, seconds: float) -> None:
        """Waits for the edge's word, or a pull that ended, at most so long."""
        nodes = self._heard(seconds, self._pulls.fileno())
        if nodes is None or time.monotonic() >= self._sweep_at:
            self._sweep()
        if nodes:
            self._note(nodes)

    def _sweep(self) -> None:
        self._sweep_at = time.monotonic() + SWEEP_SECONDS
        self._start(self._pending)

    def _start(self, message_ids: Collection[str]) -> None:
        for message_id in message_ids:
            self._pulls.start(message_id)

    def _start_whole(self, *, at_once: int) -> None:
        """Fetches what is said to be whole, a few at a time."""
        while self._whole and self._pulls.young(self._pending) < max(1, at_once):
            message_id = self._whole.popleft()
            if message_id in self._pending and not self._pulls.start(message_id):
                self._again.add(message_id)  # it was asked for a moment too early

    def _taken(self) -> list[Answer]:
        """The answers whose pulls ended."""
        answers: list[Answer] = []
        for pulled in self._pulls.take():
            late = pulled.message_id not in self._pending
            site = (self._late if late else self._pending).get(pulled.message_id)
            if site is None:
                continue
            answer = self._answer(site, pulled)
            if answer is None:
                if pulled.message_id in self._again:
                    self._again.discard(pulled.message_id)
                    self._whole.append(pulled.message_id)
                continue
            (self._late if late else self._pending).pop(pulled.message_id)
            answers.append(Answer(site=site, envelope=None, late=True) if late else answer)
        return answers

    def _answer(self, site: SiteId, pulled: Pulled) -> Answer | None:
        """What a pull brought; None where the reply is not there yet."""
        try:
            replies = pulled.replies()
        except UNREADABLE as error:
            return Answer(site=site, envelope=None, lost=f"unreadable: {type(error).__name__}")
        if not replies:
            return None
        if replies[0].has_error():
            return Answer(site=site, envelope=None, lost=f"flower error {replies[0].error.code}")
        try:
            return Answer(site=site, envelope=from_records(replies[0].content))
        except ProtocolError as error:
            return Answer(site=site, envelope=None, lost=str(error))

    def _note(self, nodes: Sequence[int]) -> None:
        """Notes that the replies of these nodes are whole."""
        self._whole.extend(
            message_id
            for message_id, site in self._pending.items()
            if self._nodes.get(site) in nodes
        )
