"""What becomes the site's answer to an instruction: sealed once, signed by the guard's key."""

import threading
from dataclasses import dataclass
from typing import Final

from fedward_client.guard.notes import note
from fedward_client.guard.payloads import check_payload
from fedward_client.guard.receipts import (
    Live,
    Reasons,
    Receipts,
    Refusal,
    Refusals,
    Step,
    Steps,
)
from fedward_client.guard.replies import PAYLOAD, Replies, SealedReply
from fedward_client.guard.secure import SecureSums
from fedward_client.guard.states import States, check_constants, check_state
from fedward_client.policy import SitePolicy
from fedward_client.ports import Clock, Journal, ObjectIds, Shapes, Signer
from fedward_common.canonical import sha256_hex
from fedward_common.channel.blobs import SUFFIX, in_transit
from fedward_common.errors import REFUSAL_CODES, LedgerError, PolicyRefused, ProtocolError
from fedward_common.ids import SiteId
from fedward_common.privacy.ledger import Charge, Ledger
from fedward_common.privacy.ledger_values import Head
from fedward_common.secagg.refusals import Reason, SecAggRefused
from fedward_common.study.spec import StudySpec
from fedward_common.wire import Envelope, Instruction, Octets, Reply, ReplyKind

EMPTY: Final = frozenset({"refusal", "phase"})
"""Kinds of answers that carry nothing besides their header."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Seals payloads and refusals. `lock` keeps one decision at a time."""

    site: SiteId
    policy: SitePolicy
    ledger: Ledger
    replies: Replies
    receipts: Receipts
    refusals: Refusals
    reasons: Reasons
    log: Journal
    key: Signer
    shapes: Shapes
    object_ids: ObjectIds
    clock: Clock
    lock: threading.RLock
    secure: SecureSums
    steps: Steps
    states: States

    def seal(
        self, receipt: str, payload: Octets, boxes: bytes = b"", *, state: bytes = b""
    ) -> Envelope:
        """The signed reply with `payload`; it may leave once, unchanged. Uses the receipt up.

        In a study with secure sums `payload` is whole numbers for this process alone, and what is
        signed is their noised and masked form; `boxes` are the other sites' encrypted shares.
        `state` is kept for the next round once the answer is on disk. Of a large payload the
        message carries the manifest; the bytes leave by `Release.blob`.

        Raises:
            PolicyRefused: the policy does not permit the study any more, or not now.
            ProtocolError: the receipt is not live, or the payload is not exactly what the study
                releases (names, shapes, finite numbers, one byte form without room for more).
            LedgerError: it cannot be stored.
        """
        with self.lock:
            live = self._live(receipt)
        trained = live.instruction.kind == "train"
        if trained or state:
            check_state(live.study, state, shapes=self.shapes)
            check_constants(live.study, state, before=self.states.find(live.study))
        if live.study.secure_sum:
            with self.lock:
                self._live(receipt)
                payload = self.secure.mask(live, bytes(payload), boxes)
                envelope = self._sealed(receipt, live, payload)
        else:
            check_payload(live, payload, shapes=self.shapes)
            envelope = self._sealed(receipt, live, payload)
        if trained and state:
            self.states.keep(live.study, state)
        return envelope

    def _sealed(self, receipt: str, live: Live, payload: Octets) -> Envelope:
        kind = live.instruction.kind
        envelope = self._signed(live.instruction, kind=kind, payload=payload)
        carried = in_transit(envelope, live.instruction.study)
        object_ids = self.object_ids(carried)
        manifest = bytes(carried.blobs.get(PAYLOAD + SUFFIX, b""))
        with self.lock:
            self._live(receipt)  # not voided, and nobody paused, while the payload was looked at
            self._keep(live.instruction, kind, envelope, object_ids, manifest=manifest)
        return carried

    def step(self, instruction: Instruction, study: StudySpec, message: bytes) -> Envelope:
        """The signed answer to a step of secure aggregation; it may leave once, unchanged.

        The same instruction again gets the same bytes. A signature of a survivor list and shares
        are given once; a set-up that did not mask anything may be repeated in another attempt.

        Raises:
            SecAggRefused: as `SecureSums.answer`.
        """
        with self.lock:
            before = self.steps.find(instruction.slot)
            once = instruction.kind in ("sign", "unmask")
            repeated = before is not None and before.key == instruction.key
            if before is not None and repeated and (once or self.secure.is_current(instruction)):
                before.released_to = None
                return before.envelope
            if before is not None and once:
                raise SecAggRefused(
                    Reason.ANSWERED_BEFORE,
                    "expected what this step was answered for, found something else",
                )
            payload = self.secure.answer(instruction, study, message)
            kind = instruction.kind
            envelope = self._signed(instruction, kind=kind, payload=payload)
            self.steps.keep(
                instruction.slot,
                Step(
                    key=instruction.key,
                    envelope=envelope,
                    object_ids=self.object_ids(envelope),
                    study=instruction.study,
                    round=instruction.round,
                    kind=kind,
                ),
            )
            digest = sha256_hex(payload)
            note(self.log, "secagg.answered", instruction, payload_sha256=digest)
            return envelope

    def refuse(self, instruction: Instruction, code: str) -> Envelope:
        """The signed refusal of an instruction; it may leave once, unchanged.

        After a charge the refusal is the round's answer, and stays it. Before, it is only a word:
        the instruction may still be granted later, when a person changed the policy. After an
        update the only word is `protocol`, whatever was asked for. Where the guard itself said no,
        the word is the guard's.

        Raises:
            ProtocolError: no known code.
        """
        if code not in REFUSAL_CODES:
            raise ProtocolError(f"refusal: expected one of {sorted(REFUSAL_CODES)}, found another")
        with self.lock:
            sealed = self.replies.find(instruction.slot)
            if sealed is not None and sealed.key == instruction.key:
                if sealed.kind != "refusal":
                    # The update may have left and been deleted since: one fixed word, so that the
                    # coordinator hears something, and nothing that a worker could choose.
                    return self._said(instruction, "protocol")
                self.replies.set_released(sealed, None)
                return Envelope(header=sealed.header)
            return self._refused(instruction, self.reasons.word(instruction.key, code))

    def phase(self, instruction: Instruction) -> tuple[Envelope, frozenset[str]]:
        """The answer that ends a phase, and the ids of its objects: signed, empty, sealed at once.

        It says no more than that this site took part; the worker chooses only when it leaves.
        """
        envelope = self._signed(instruction, kind="phase", payload=b"")
        object_ids = self.object_ids(envelope)
        refusal = Refusal(
            envelope=envelope,
            object_ids=object_ids,
            study=instruction.study,
            round=instruction.round,
        )
        self.refusals.keep(instruction.key, refusal)
        return envelope, object_ids

    def _live(self, receipt: str) -> Live:
        """What a receipt stands for, if the policy still permits it."""
        live = self.receipts.get(receipt)
        try:
            self.policy.permits(live.study, now=self.clock(), kind=live.instruction.kind)
        except PolicyRefused as error:
            self.reasons.keep(live.instruction.key, error.code)
            raise
        return live

    def _refused(self, instruction: Instruction, code: str) -> Envelope:
        charge = self._charge_if_readable(instruction)
        if charge is None or charge.key != instruction.key:
            return self._said(instruction, code)
        envelope = self._signed(instruction, kind="refusal", payload=b"", code=code)
        self._keep(instruction, "refusal", envelope, self.object_ids(envelope))
        note(self.log, "reply.refused", instruction, code=code)
        return envelope

    def _said(self, instruction: Instruction, code: str) -> Envelope:
        """A refusal that is remembered in memory only; the first word for an instruction stays."""
        known = self.refusals.find(instruction.key)
        if known is not None:
            known.released_to = None
            return known.envelope
        envelope = self._signed(instruction, kind="refusal", payload=b"", code=code)
        refusal = Refusal(
            envelope=envelope,
            object_ids=self.object_ids(envelope),
            study=instruction.study,
            round=instruction.round,
        )
        self.refusals.keep(instruction.key, refusal)
        note(self.log, "reply.refused", instruction, code=code)
        return envelope

    def _charge_if_readable(self, instruction: Instruction) -> Charge | None:
        try:
            return self.ledger.find(instruction.slot)
        except LedgerError:
            # Nothing is granted with a damaged ledger; that much the coordinator may be told.
            return None

    def _signed(
        self, instruction: Instruction, *, kind: ReplyKind, payload: Octets, code: str = ""
    ) -> Envelope:
        head = self._head()
        reply = Reply(
            kind=kind,
            site=self.site,
            key=instruction.key,
            payload_sha256=sha256_hex(payload),
            code=code,
            public_key=self.key.public_hex,
            ledger_seq=None if head is None else head.seq,
            ledger_sha256=None if head is None else head.sha256,
        )
        signature = self.key.sign(reply.signed_bytes).hex()
        header = reply.model_copy(update={"signature": signature}).canonical
        return Envelope(header=header, blobs={} if kind in EMPTY else {PAYLOAD: payload})

    def _head(self) -> Head | None:
        """The ledger's last row, for the reply: a ledger that is put back later is found out."""
        try:
            head = self.ledger.head()
        except LedgerError:
            return None
        return head if head.seq else None

    def _keep(
        self,
        instruction: Instruction,
        kind: ReplyKind,
        envelope: Envelope,
        object_ids: frozenset[str],
        *,
        manifest: bytes = b"",
    ) -> None:
        """Makes `envelope` the answer of its slot, on disk, and uses up the slot's receipt."""
        payload = envelope.blobs.get(PAYLOAD, b"")
        sealed = SealedReply(
            slot=instruction.slot,
            study=instruction.study,
            round=instruction.round,
            key=instruction.key,
            kind=kind,
            header=envelope.header,
            payload_sha256=Reply.parse(envelope.header).payload_sha256,  # as it was signed above
            object_ids=object_ids,
            sealed_at=self.clock(),
            manifest=manifest,
        )
        self.replies.keep(sealed, payload)
        self.receipts.void(instruction.slot)
        note(
            self.log,
            "reply.sealed",
            instruction,
            payload_sha256=sealed.payload_sha256,
            bytes=len(payload),
            status=kind,
        )
