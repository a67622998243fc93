"""The `Fleet` of a study over Flower's Grid: push, kick the edge, pull replies that are whole."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from google.protobuf.message import DecodeError

from fedward_common.canonical import sha256_hex
from fedward_common.errors import ProtocolError, StartError
from fedward_common.ids import SiteId
from fedward_common.study.spec import StudySpec
from fedward_common.wire import CONTROL_KINDS, Envelope, Instruction
from fedward_server.adapters.flower_records import from_records, to_records
from fedward_server.fleet import Answer

SWEEP_SECONDS: Final = 2.0
"""How often every open message is asked about: errors that SuperLink makes itself pass no edge."""
DEAF_SECONDS: Final = 0.1
"""How often without an edge that tells of replies."""
OBJECT_BACKOFF_SECONDS: Final = 0.02
"""A reply may be announced a moment before its objects are stored; Flower waits 1 s."""
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


def quicken() -> None:
    """Shortens Flower's wait for an object that is not stored yet, in this process.

    Private names: `pull_objects.__kwdefaults__["initial_backoff"]`, which HttpGrid uses.
    """
    defaults = pull_objects.__kwdefaults__
    if defaults is None or "initial_backoff" not in defaults:
        raise StartError("flower: expected pull_objects with a default initial_backoff")
    defaults["initial_backoff"] = OBJECT_BACKOFF_SECONDS


def nothing_heard(seconds: float) -> list[int] | None:
    """Stands in for the edge's word of replies where no edge gives it."""
    time.sleep(min(seconds, DEAF_SECONDS))
    return None


class FlowerFleet:
    """The study's sites behind Flower's Grid.

    Addresses only nodes whose public key is named in the study (rules 15): a node that registered
    itself gets no message. A site for which `member` says no is not online: whoever was revoked is
    asked nothing more, and no round waits for it. A reply that cannot be read is a lost answer,
    never an exception. Replies are pulled one by one, each when the edge has seen its last object
    pass; what passes no edge (Flower's own errors) is found by a sweep every two seconds.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        study: StudySpec,
        kick: Callable[[Sequence[int]], object],
        member: Callable[[SiteId], bool] = lambda _site: True,
        ttl_seconds: float | None = None,
        heard: Callable[[float], Sequence[int] | None] = nothing_heard,
    ) -> None:
        """`heard` waits so many seconds and gives the nodes that replied; None if it is deaf."""
        self._grid = grid
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
        self._late = dict(list((self._late | self._pending).items())[-MAX_LATE:])
        self._pending.clear()
        self._look_for_late = True
        self._whole.clear()
        self.add(envelopes)

    def add(self, envelopes: Mapping[SiteId, Envelope]) -> None:
        """As `send`, beside what was sent before and is not answered yet."""
        targets = [site for site in envelopes if site in self._nodes]
        messages = [self._message(site, envelopes[site]) for site in targets]
        if not messages:
            return
        self._note(self._heard(0.0) or ())  # connected before the first reply can come
        for site, message_id in zip(targets, self._grid.push_messages(messages), strict=True):
            if message_id:
                self._pending[message_id] = site
        self._sweep_at = time.monotonic() + SWEEP_SECONDS
        self._kick([self._nodes[site] for site in targets])

    def send_again(self, site: SiteId, envelope: Envelope) -> None:
        """Hands a site the same once more, after the way there lost it; forgets nothing."""
        self.add({site: envelope})

    def _come_late(self) -> list[Answer]:
        """The answers to instructions that were given up; asked for once in each exchange."""
        if not self._late:
            return []
        try:
            replies = list(self._grid.pull_messages(list(self._late)))
        except UNREADABLE:
            self._late.clear()
            return []
        sites = [self._late.pop(reply.metadata.reply_to_message_id, None) for reply in replies]
        return [Answer(site=site, envelope=None, late=True) for site in sites if site is not None]

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
        """The next answer as soon as it is there; none after the timeout."""
        limit, late = time.monotonic() + timeout_seconds, False
        if self._look_for_late:
            self._look_for_late = False
            if came := self._come_late():
                return came
        while True:
            while self._whole:
                message_id = self._whole.popleft()
                if message_id in self._pending and (answers := self._pull(message_id)):
                    return answers
            if late:
                return []
            now = time.monotonic()
            late = now >= limit
            nodes = self._heard(max(0.0, min(limit, self._sweep_at) - now))
            if nodes is None or time.monotonic() >= self._sweep_at:
                self._sweep_at = time.monotonic() + SWEEP_SECONDS
                self._whole.extend(self._pending)
            else:
                self._note(nodes)

    def _note(self, nodes: Sequence[int]) -> None:
        """Notes that the replies of these nodes are whole."""
        self._whole.extend(
            message_id
            for message_id, site in self._pending.items()
            if self._nodes.get(site) in nodes
        )

    def _pull(self, message_id: str) -> list[Answer]:
        """The answer to one message if it is there; its objects are dropped once it is returned."""
        try:
            replies = list(self._grid.pull_messages([message_id]))
        except UNREADABLE as error:
            site = self._pending.pop(message_id)
            return [Answer(site=site, envelope=None, lost=f"unreadable: {type(error).__name__}")]
        if not replies:
            return []
        site = self._pending.pop(message_id)
        reply = replies[0]
        if reply.has_error():
            return [Answer(site=site, envelope=None, lost=f"flower error {reply.error.code}")]
        try:
            return [Answer(site=site, envelope=from_records(reply.content))]
        except ProtocolError as error:
            return [Answer(site=site, envelope=None, lost=str(error))]
