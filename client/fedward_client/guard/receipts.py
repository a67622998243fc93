"""Receipts: who may seal which round, and refusals that wait to leave. Memory only, no I/O.

A receipt that is lost with the process costs nothing: the instruction comes again, is not charged
again, and gets a new one.
"""

import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, Final

from fedward_common.errors import REFUSAL_CODES, PolicyRefused, ProtocolError
from fedward_common.study.spec import StudySpec
from fedward_common.wire import Envelope, Instruction

MAX_REFUSALS: Final = 64
"""Refusals that wait at once. Each carries one of a few words; more of them would be a way out for
bits that a hijacked worker chooses."""
MAX_REASONS: Final = 256
MAX_STEPS: Final = 64
GUARD_WORDS: Final = frozenset(
    {"policy", "budget", "ledger", "paused", "hours", "ethics", "not-approved"}
)
"""Refusals that only the guard can find out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Live:
    """What a receipt stands for: an instruction of a study that was charged and not yet sealed."""

    instruction: Instruction
    study: StudySpec


class Receipts:
    """At most one live receipt per slot; a newer one voids the older."""

    def __init__(self) -> None:
        self._live: dict[str, Live] = {}
        self._by_slot: dict[str, str] = {}

    def issue(self, live: Live) -> str:
        """A new receipt, 256 random bits; an older one of the same slot is void."""
        self.void(live.instruction.slot)
        receipt = secrets.token_hex(32)
        self._live[receipt] = live
        self._by_slot[live.instruction.slot] = receipt
        return receipt

    def find(self, receipt: str) -> Live | None:
        """What a receipt stands for, if it is live."""
        return self._live.get(receipt)

    def get(self, receipt: str) -> Live:
        """What a live receipt stands for.

        Raises:
            ProtocolError: never issued, used, or void.
        """
        live = self._live.get(receipt)
        if live is None:
            raise ProtocolError(
                "receipt: expected one that is live, found one that was never issued, was used or "
                "is void. Begin the instruction again"
            )
        return live

    def void(self, slot: str) -> None:
        """Ends the live receipt of a slot, if there is one."""
        receipt = self._by_slot.pop(slot, None)
        if receipt is not None:
            del self._live[receipt]


@dataclass(kw_only=True, slots=True)
class Refusal:
    """A signed refusal of an instruction that cost nothing, and the message it left with."""

    envelope: Envelope
    object_ids: frozenset[str]
    study: str
    round: int
    kind: ClassVar[str] = "refusal"
    released_to: str | None = None


class Reasons:
    """Why the guard itself said no to an instruction: the word that leaves is its own.

    A worker cannot say a word that only the guard may find out; so a hijacked one has fewer to
    choose from.
    """

    def __init__(self) -> None:
        self._by_key: OrderedDict[str, str] = OrderedDict()

    def keep(self, key: str, code: str) -> None:
        """Remembers the latest reason of an instruction."""
        self._by_key[key] = code
        self._by_key.move_to_end(key)
        while len(self._by_key) > MAX_REASONS:
            self._by_key.popitem(last=False)

    def forget(self, key: str) -> None:
        """The instruction was granted after all."""
        self._by_key.pop(key, None)

    def word(self, key: str, said: str) -> str:
        """The word of REFUSAL_CODES that leaves when a worker says `said`."""
        own = self._by_key.get(key)
        if own is not None:
            return own if own in REFUSAL_CODES else PolicyRefused.code
        return "internal" if said in GUARD_WORDS else said


@dataclass(kw_only=True, slots=True)
class Step:
    """The signed answer to one step of secure aggregation, and the message it left with."""

    key: str
    envelope: Envelope
    object_ids: frozenset[str]
    study: str
    round: int
    kind: str
    released_to: str | None = None

    @property
    def bytes(self) -> int:
        """The size of its header and blobs."""
        return len(self.envelope.header) + sum(map(len, self.envelope.blobs.values()))


class Steps:
    """The latest answers to steps of secure aggregation, by slot. They are gone with the process:
    so are the secrets that they are about.
    """

    def __init__(self) -> None:
        self._by_slot: OrderedDict[str, Step] = OrderedDict()

    def find(self, slot: str) -> Step | None:
        """The answer of a slot, or None."""
        return self._by_slot.get(slot)

    def keep(self, slot: str, step: Step) -> None:
        """Remembers an answer; the oldest one beyond the limit is forgotten."""
        self._by_slot[slot] = step
        self._by_slot.move_to_end(slot)
        while len(self._by_slot) > MAX_STEPS:
            self._by_slot.popitem(last=False)

    def find_by_objects(self, object_ids: frozenset[str]) -> Step | None:
        """The answer that is carried by exactly these objects, or None."""
        return next((s for s in self._by_slot.values() if s.object_ids == object_ids), None)


class Refusals:
    """The latest refusals of instructions that were not charged, by idempotency key."""

    def __init__(self) -> None:
        self._by_key: OrderedDict[str, Refusal] = OrderedDict()

    def find(self, key: str) -> Refusal | None:
        """The refusal of an instruction, or None."""
        return self._by_key.get(key)

    def keep(self, key: str, refusal: Refusal) -> None:
        """Remembers a refusal; the oldest one beyond the limit is forgotten."""
        self._by_key[key] = refusal
        while len(self._by_key) > MAX_REFUSALS:
            self._by_key.popitem(last=False)

    def find_by_objects(self, object_ids: frozenset[str]) -> Refusal | None:
        """The refusal that is carried by exactly these objects, or None."""
        return next((r for r in self._by_key.values() if r.object_ids == object_ids), None)
