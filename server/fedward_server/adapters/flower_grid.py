"""The `Fleet` of a study over Flower's Grid: push, kick the edge, pull one reply at a time."""

import time
from collections.abc import Callable, Mapping, Sequence
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
from fedward_server.fleet import Answer

PULL_SECONDS: Final = 0.1
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


class FlowerFleet:
    """The study's sites behind Flower's Grid.

    Addresses only nodes whose public key is named in the study (rules 15): a node that registered
    itself gets no message. A site for which `member` says no is not online: whoever was revoked is
    asked nothing more, and no round waits for it. A reply that cannot be read is a lost answer,
    never an exception.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        study: StudySpec,
        kick: Callable[[Sequence[int]], object],
        member: Callable[[SiteId], bool] = lambda _site: True,
        ttl_seconds: float | None = None,
    ) -> None:
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
        self.add(envelopes)

    def add(self, envelopes: Mapping[SiteId, Envelope]) -> None:
        """As `send`, beside what was sent before and is not answered yet."""
        targets = [site for site in envelopes if site in self._nodes]
        messages = [self._message(site, envelopes[site]) for site in targets]
        if not messages:
            return
        for site, message_id in zip(targets, self._grid.push_messages(messages), strict=True):
            if message_id:
                self._pending[message_id] = site
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
        """The answers that arrived; waits up to the timeout for a first one."""
        limit = time.monotonic() + timeout_seconds
        if self._look_for_late:
            self._look_for_late = False
            if late := self._come_late():
                return late
        while True:
            answers = [a for message_id in list(self._pending) for a in self._pull(message_id)]
            if answers or time.monotonic() >= limit:
                return answers
            time.sleep(PULL_SECONDS)

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
