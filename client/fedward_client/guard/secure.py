"""The guard's part in secret sums: keys, noise and masks, where no worker can leave them out.

The worker hands over whole numbers of the site's patients; what leaves is their noised, masked
form, and shares by the protocol's rules. Secrets are in memory only: after a restart the site
counts as dropped until the next full set-up. The caller serialises the calls.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from fedward_client.guard.memory import UNMASKED
from fedward_client.guard.notes import note
from fedward_client.guard.receipts import Live
from fedward_client.ports import Journal, Shapes, Signer
from fedward_common.errors import ProtocolError
from fedward_common.ids import SiteId
from fedward_common.privacy.randomness import RandomSource
from fedward_common.secagg.messages import (
    Adverts,
    Boxes,
    Keys,
    Member,
    Opened,
    Opening,
    Session,
    Signed,
    Survivors,
)
from fedward_common.secagg.participant import Participant, Phase
from fedward_common.secagg.refusals import Reason, SecAggRefused
from fedward_common.secagg.sums import last_sum, sum_number, sum_plan
from fedward_common.study.spec import StudySpec
from fedward_common.trust.signing import key_sha256
from fedward_common.wire import Instruction

MAX_STUDIES: Final = 16
KEPT_SUMS: Final = 2


@dataclass(kw_only=True, slots=True)
class _Running:
    """One study's roster, and this site's parts in its latest sums."""

    members: tuple[Member, ...]
    parties: dict[int, Participant] = field(default_factory=dict)
    masked: set[int] = field(default_factory=set)
    """Sums with a vector of this site; they outlive their parties, of which only a few are kept."""
    attempts: dict[int, int] = field(default_factory=dict)
    """The newest set-up of each sum."""


@dataclass(frozen=True, kw_only=True)
class SecureSums:
    """A site's parts in the secret sums of its studies.

    `unmasked` are the (study, sum) that the journal noted as opened.
    """

    site: SiteId
    key: Signer
    log: Journal
    shapes: Shapes
    noise: Callable[[], RandomSource]
    random_bytes: Callable[[int], bytes]
    unmasked: set[tuple[str, int]]
    _running: OrderedDict[str, _Running] = field(default_factory=OrderedDict)

    def answer(self, instruction: Instruction, study: StudySpec, message: bytes) -> bytes:
        """The payload that answers a step without patient data.

        Raises:
            SecAggRefused: the coordinator asks for what it may not have; the reason is in the
                journal, and this site takes no further part in that sum.
        """
        try:
            self._require_newest(instruction)
            match instruction.kind:
                case "advertise":
                    return self._advertise(instruction, study, message)
                case "share":
                    party = self._party(study, instruction.round)
                    return party.share(Adverts.parse(message).adverts).canonical
                case "sign":
                    return self._sign(instruction, study, message)
                case "unmask":
                    return self._unmask(instruction, study, message)
        except SecAggRefused as error:
            self._note_refusal(instruction, error)
            raise
        raise ProtocolError("instruction: expected a step of secure aggregation, found another")

    def is_current(self, instruction: Instruction) -> bool:
        """Whether the answer that was given to a set-up step still fits this site's part in it."""
        running = self._running.get(instruction.study)
        party = None if running is None else running.parties.get(instruction.round)
        expected = Phase.ADVERTISED if instruction.kind == "advertise" else Phase.SHARED
        return party is not None and party.phase is expected

    def require_ready(self, instruction: Instruction, study: StudySpec, boxes: bytes) -> None:
        """Returns when a vector of this sum could be masked; asked before anything is charged.

        `boxes` are the other sites' encrypted shares, which every mask needs.

        Raises:
            SecAggRefused: no set-up of this sum, its vector was masked before, or the shares do not
                open; the journal says whose.
        """
        party = self._party(study, sum_number(study, instruction.kind, instruction.round))
        if party.phase is not Phase.SHARED:
            raise SecAggRefused(
                Reason.PHASE, "expected a sum that is set up and has no vector of this site yet"
            )
        try:
            party.require_boxes(Boxes.parse(boxes).boxes)
        except SecAggRefused as error:
            self._note_refusal(instruction, error)
            raise

    def mask(self, live: Live, payload: bytes, boxes: bytes) -> bytes:
        """The noised and masked vector of `payload`, and nothing of it in the clear.

        1. it is one int64 for each number of the sum; 2. each is cut at the public +-Q (rules 8);
        3. this site's noise is added, in whole numbers, where the study places it here; 4. all
        masks are added, bound to the instruction: they cancel only among sites that answered the
        same one, with the same model; the set-up is used up.

        Raises:
            ProtocolError: another length. SecAggRefused: the shares do not open.
        """
        kind, round_number = live.instruction.kind, live.instruction.round
        shapes = self.shapes(live.study) if kind == "train" else {}
        plan = sum_plan(live.study, kind, round_number, shapes=shapes)
        if len(payload) != 8 * plan.size:
            raise ProtocolError(
                f"sum: expected {plan.size} whole numbers of 8 bytes, found {len(payload)} bytes"
            )
        values = plan.grid.saturate(np.frombuffer(payload, dtype="<i8").astype(np.int64))
        if plan.noise_std:
            values += plan.grid.noise(plan.size, std=plan.noise_std, source=self.noise())
        party = self._party(live.study, sum_number(live.study, kind, round_number))
        try:
            masked = party.mask(
                Boxes.parse(boxes).boxes, plan.grid.to_ring(values), bound=live.instruction.key
            )
        except SecAggRefused as error:
            self._note_refusal(live.instruction, error)
            raise
        self._running[live.study.digest].masked.add(party.session.round)
        return masked.astype(masked.dtype.newbyteorder("<")).tobytes()

    def _advertise(self, instruction: Instruction, study: StudySpec, message: bytes) -> bytes:
        members = _members(study, Keys.parse(message))
        running = self._running.setdefault(study.digest, _Running(members=members))
        self._running.move_to_end(study.digest)
        while len(self._running) > MAX_STUDIES:
            self._running.popitem(last=False)
        party = self._new_party(study, running, instruction.round, attempt=instruction.attempt)
        return party.advertise().canonical

    def _sign(self, instruction: Instruction, study: StudySpec, message: bytes) -> bytes:
        number = instruction.round
        signature = self._party(study, number).sign_survivors(Survivors.parse(message).survivors)
        advert = None
        if number < last_sum(study):
            running = self._running[study.digest]
            party = self._new_party(study, running, number + 1, attempt=instruction.attempt)
            advert = party.advertise()
        return Signed(signature=signature, advert=advert).canonical

    def _unmask(self, instruction: Instruction, study: StudySpec, message: bytes) -> bytes:
        number, opening = instruction.round, Opening.parse(message)
        unmasking = self._party(study, number).unmask(opening.signatures)
        envelopes = None
        if opening.adverts:
            try:
                envelopes = self._party(study, number + 1).share(opening.adverts)
            except SecAggRefused as error:
                # The sum that is due is opened all the same; the next one needs a set-up.
                self._note_refusal(instruction, error)
        return Opened(unmasking=unmasking, envelopes=envelopes).canonical

    def _party(self, study: StudySpec, number: int) -> Participant:
        running = self._running.get(study.digest)
        party = None if running is None else running.parties.get(number)
        if party is None:
            raise SecAggRefused(
                Reason.PHASE,
                "expected a sum that was set up here since the guard's start, found none",
            )
        return party

    def _require_newest(self, instruction: Instruction) -> None:
        """Returns when no later set-up took the place of the one that the instruction is of.

        What was long on its way must not end this site's part in the set-up that is alive.
        """
        running = self._running.get(instruction.study)
        newest = 0 if running is None else running.attempts.get(instruction.round, 0)
        if instruction.attempt < newest:
            raise SecAggRefused(
                Reason.PHASE,
                f"expected a step of set-up {newest}, found one of {instruction.attempt}",
            )

    def _note_refusal(self, instruction: Instruction, error: SecAggRefused) -> None:
        sender = {"site": error.site} if error.site else {}
        note(self.log, "secagg.refused", instruction, code=error.reason.value, **sender)

    def _new_party(
        self, study: StudySpec, running: _Running, number: int, *, attempt: int
    ) -> Participant:
        """A part with fresh secrets; an older one of that sum is gone, unless it masked already."""
        if not 1 <= number <= last_sum(study):
            raise SecAggRefused(Reason.OTHER_ROUND, "expected a sum of the study, found another")
        if number in running.masked or (study.digest, number) in self.unmasked:
            raise SecAggRefused(
                Reason.ANSWERED_BEFORE, "expected a sum without a vector of this site, found one"
            )
        for old in sorted(running.parties)[: -KEPT_SUMS + 1]:
            del running.parties[old]
        party = Participant(
            session=Session(study=study.digest, round=number, members=running.members),
            site=self.site,
            key=self.key,
            thresholds=study.thresholds,
            random_bytes=self.random_bytes,
            claim=lambda: self._claim(study, number),
        )
        running.parties[number] = party
        running.attempts[number] = attempt
        return party

    def _claim(self, study: StudySpec, number: int) -> bool:
        """Notes, on disk, that this site opens a sum; False when it did before."""
        if (study.digest, number) in self.unmasked:
            return False
        self.log.append(UNMASKED, study=study.digest, round=number)
        self.unmasked.add((study.digest, number))
        return True


def _members(study: StudySpec, keys: Keys) -> tuple[Member, ...]:
    """The roster of the signed study, with the keys that have its digests (rules 12).

    Raises:
        SecAggRefused: a key is not the one that the study names.
    """
    right = {site.id: site.key_sha256 for site in study.sites}
    found = {site: key_sha256(key) for site, key in keys.keys.items()}
    if found != right:
        raise SecAggRefused(
            Reason.WRONG_KEY, "expected the keys that the study names, found others"
        )
    return tuple(Member(site=SiteId(s.id), public_key=keys.keys[s.id]) for s in study.sites)
