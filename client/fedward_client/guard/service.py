"""What the guard decides: whether an instruction may run, what may be sealed, what may leave.

No patient record ever comes here. The worker is another process (in a hospital: another user); all
it can get from the guard is a receipt, and all the gateway lets out is what was sealed with one.
Trusted for a study's data is nevertheless the worker itself: the guard sees that an update has the
study's shapes, not that noise is in it.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from fedward_client.guard.client import Grant, StoredReply
from fedward_client.guard.payloads import charged_event, check_payload
from fedward_client.guard.receipts import Live, Receipts, Refusal, Refusals
from fedward_client.guard.replies import PAYLOAD, Replies, SealedReply
from fedward_client.policy import SitePolicy
from fedward_client.ports import Clock, Journal, ObjectIds, Shapes, Signer
from fedward_common.canonical import sha256_hex
from fedward_common.errors import (
    REFUSAL_CODES,
    FedwardError,
    LedgerError,
    ProtocolError,
    SignatureRefused,
)
from fedward_common.ids import SiteId
from fedward_common.privacy.accounting import epsilon_admission
from fedward_common.privacy.ledger import Charge, Ledger, Purpose, Reservation
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import StudySpec
from fedward_common.trust.signing import key_sha256
from fedward_common.wire import Envelope, Instruction, Reply


@dataclass(frozen=True, kw_only=True)
class GuardService:
    """One site's guard. Safe to call from several threads: one decision at a time."""

    site: SiteId
    policy: SitePolicy
    ledger: Ledger
    replies: Replies
    log: Journal
    key: Signer
    shapes: Shapes
    object_ids: ObjectIds
    clock: Clock
    _receipts: Receipts = field(default_factory=Receipts)
    _refusals: Refusals = field(default_factory=Refusals)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def begin(self, instruction: bytes, signed_study: bytes) -> Grant | StoredReply:
        """A receipt for one answer, or the answer that was sealed before. When it returns:

        1. the instruction parses and names the digest of the signed study beside it;
        2. the study's lead signed that study, and the roster is the study's (rules 12);
        3. the study names this site with this guard's own key;
        4. the cohort is sites of the study, each once, and this site is in it;
        5. the round is one of the study's; an evaluation is one of its releases;
        6. the site's policy permits the study, now;
        7. the slot was not answered; if it was, under the same key, the stored bytes come again;
        8. the study's whole T_max is reserved and this round is charged, on disk; an instruction
           that was charged before is not charged again;
        9. no older receipt of the slot is good any more.

        Raises:
            FedwardError: the class says which: protocol (1, 2, 4, 5, 7), signature (2, 3), policy
                (6), budget or ledger (8).
        """
        parsed = Instruction.parse(instruction)
        try:
            with self._lock:
                study = self._verified(parsed, signed_study)
                self.policy.permits(study)  # 6.
                return self._stored(parsed) or self._granted(parsed, study)
        except FedwardError as error:
            self._note("instruction.refused", parsed, code=error.code)
            raise

    def seal(self, receipt: str, payload: bytes) -> Envelope:
        """The signed reply with `payload`; it may leave once, unchanged. Uses the receipt up.

        Raises:
            ProtocolError: the receipt is not live, or the payload is not exactly what the study
                releases (names, shapes, finite numbers, one byte form without room for more).
            LedgerError: it cannot be stored.
        """
        with self._lock:
            live = self._receipts.get(receipt)
        check_payload(live, payload, shapes=self.shapes)
        kind = live.instruction.kind
        envelope = self._signed(live.instruction, kind=kind, payload=payload)
        object_ids = self.object_ids(envelope)
        with self._lock:
            self._receipts.get(receipt)  # not voided while the payload was looked at
            self._keep(live.instruction, kind, envelope, object_ids)
        return envelope

    def refuse(self, instruction: bytes, code: str) -> Envelope:
        """The signed refusal of an instruction; it may leave once, unchanged.

        After a charge the refusal is the round's answer, and stays it. Before, it is only a word:
        the instruction may still be granted later, when a person changed the policy. After an
        update the only word is `protocol`, whatever was asked for.

        Raises:
            ProtocolError: no instruction or no known code.
        """
        parsed = Instruction.parse(instruction)
        if code not in REFUSAL_CODES:
            raise ProtocolError(f"refusal: expected one of {sorted(REFUSAL_CODES)}, found another")
        with self._lock:
            sealed = self.replies.find(parsed.slot)
            if sealed is not None and sealed.key == parsed.key:
                if sealed.kind != "refusal":
                    # The update may have left and been deleted since: one fixed word, so that the
                    # coordinator hears something, and nothing that a worker could choose.
                    return self._said(parsed, "protocol")
                self.replies.set_released(sealed, None)
                return Envelope(header=sealed.header)
            return self._refused(parsed, code)

    def release(self, message_id: str, object_ids: Sequence[str]) -> bool:
        """Whether the message with exactly these content objects may leave.

        True once for a sealed envelope, and again for the same message (a retry of the transport);
        False for anything that was not sealed here, changed, or already left in another message.
        """
        wanted = frozenset(object_ids)
        with self._lock:
            sealed = self.replies.find_by_objects(wanted)
            found = sealed or self._refusals.find_by_objects(wanted)
            allowed = found is not None and found.released_to in (None, message_id)
            if allowed and sealed is not None and sealed.released_to is None:
                self.replies.set_released(sealed, message_id)
            elif allowed and isinstance(found, Refusal):
                found.released_to = message_id
            action = "reply.released" if allowed else "reply.held"
            self.log.append(action, message_id=message_id, objects=len(wanted))
            return allowed

    def journal(self, direction: str, route: str, kind: str, sha256: str, bytes: int) -> None:
        """Writes down one object that came in or goes out; on disk when this returns."""
        self.log.append(
            "object", direction=direction, route=route, kind=kind, sha256=sha256, bytes=bytes
        )

    def bundle_allowed(self, sha256: str) -> bool:
        """Whether the hospital approved the app bundle."""
        allowed = self.policy.allows_bundle(sha256)
        self.log.append("bundle.asked", bundle_sha256=sha256, allowed=allowed)
        return allowed

    def forget_old(self) -> None:
        """Deletes the bytes of answers that the site has kept for long enough (rules 5)."""
        with self._lock:
            self.replies.prune()

    def _verified(self, instruction: Instruction, signed_study: bytes) -> StudySpec:
        """Steps 1 to 5 of `begin`."""
        # 1. and 2.
        study = SignedStudy.parse(signed_study).verify()
        if study.digest != instruction.study:
            raise ProtocolError("instruction: expected the signed study it names, found another")
        if study.roster_sha256 != instruction.roster_sha256:
            raise ProtocolError("instruction: expected the roster of the study, found another")
        # 3.
        own = study.site(self.site)
        if own is None:
            raise ProtocolError(f"study {study.id}: expected site {self.site} in it, found none")
        if own.key_sha256 != key_sha256(self.key.public_hex):
            raise SignatureRefused(
                f"study {study.id}: expected this guard's key for site {self.site}, found another. "
                "A changed key needs a new study digest and a new approval"
            )
        # 4.
        cohort, members = instruction.cohort, {site.id for site in study.sites}
        if len(set(cohort)) != len(cohort) or not set(cohort) <= members or self.site not in cohort:
            raise ProtocolError(
                f"instruction: expected a cohort of the study's sites with {self.site} in it, each "
                "once, found another"
            )
        # 5.
        if instruction.round > study.rounds:
            raise ProtocolError(
                f"instruction: expected a round of 1 to {study.rounds}, found {instruction.round}"
            )
        charged_event(instruction, study)
        return study

    def _stored(self, instruction: Instruction) -> StoredReply | None:
        """Step 7 of `begin`: the answer of before, armed to leave again."""
        sealed = self.replies.find(instruction.slot)
        if sealed is None:
            return None
        if sealed.key != instruction.key:
            raise ProtocolError(
                f"instruction: expected what round {instruction.round} was answered for, found "
                "something else. A round is answered once"
            )
        self.replies.prune()
        envelope = self.replies.envelope(sealed)
        if envelope is None:
            raise ProtocolError(
                f"instruction: round {instruction.round} was answered, and the answer has been "
                "deleted since. A round is answered once"
            )
        self.replies.set_released(sealed, None)
        self._note("reply.repeated", instruction)
        return StoredReply(envelope=envelope)

    def _granted(self, instruction: Instruction, study: StudySpec) -> Grant:
        """Steps 8 and 9 of `begin`."""
        self._reserve(study)
        purpose: Purpose = "round" if instruction.kind == "train" else "release"
        charge = self.ledger.charge(
            [charged_event(instruction, study)],
            study=study.digest,
            slot=instruction.slot,
            key=instruction.key,
            purpose=purpose,
        )
        self._note_charge(instruction, charge)
        self.replies.forget_before(study.digest, slot=instruction.slot)
        receipt = self._receipts.issue(Live(instruction=instruction, study=study))
        return Grant(receipt=receipt, site=self.site)

    def _reserve(self, study: StudySpec) -> None:
        before = self.ledger.head()
        reservation = Reservation.of(study)
        self.ledger.reserve(reservation)
        after = self.ledger.head()
        if after != before:
            self.log.append(
                "study.reserved",
                study=study.digest,
                study_id=study.id,
                rounds=study.rounds,
                epsilon=epsilon_admission([reservation.event], delta=reservation.delta),
                epsilon_is="admission",
                delta=reservation.delta,
                ledger_seq=after.seq,
                head_sha256=after.sha256,
            )

    def _note_charge(self, instruction: Instruction, charge: Charge) -> None:
        head = self.ledger.head()
        self._note(
            "round.charged",
            instruction,
            repeated=charge.repeated,
            ledger_seq=head.seq,
            head_sha256=head.sha256,
        )

    def _refused(self, instruction: Instruction, code: str) -> Envelope:
        charge = self._charge_if_readable(instruction)
        if charge is None or charge.key != instruction.key:
            return self._said(instruction, code)
        envelope = self._signed(instruction, kind="refusal", payload=b"", code=code)
        self._keep(instruction, "refusal", envelope, self.object_ids(envelope))
        self._note("reply.refused", instruction, code=code)
        return envelope

    def _said(self, instruction: Instruction, code: str) -> Envelope:
        """A refusal that is remembered in memory only; the first word for an instruction stays."""
        known = self._refusals.find(instruction.key)
        if known is not None:
            known.released_to = None
            return known.envelope
        envelope = self._signed(instruction, kind="refusal", payload=b"", code=code)
        refusal = Refusal(envelope=envelope, object_ids=self.object_ids(envelope))
        self._refusals.keep(instruction.key, refusal)
        self._note("reply.refused", instruction, code=code)
        return envelope

    def _charge_if_readable(self, instruction: Instruction) -> Charge | None:
        try:
            return self.ledger.find(instruction.slot)
        except LedgerError:
            # Nothing is granted with a damaged ledger; that much the coordinator may be told.
            return None

    def _signed(
        self,
        instruction: Instruction,
        *,
        kind: Literal["train", "evaluate", "refusal"],
        payload: bytes,
        code: str = "",
    ) -> Envelope:
        reply = Reply(
            kind=kind,
            site=self.site,
            key=instruction.key,
            payload_sha256=sha256_hex(payload),
            code=code,
            public_key=self.key.public_hex,
        )
        signature = self.key.sign(reply.signed_bytes).hex()
        header = reply.model_copy(update={"signature": signature}).canonical
        return Envelope(header=header, blobs={} if kind == "refusal" else {PAYLOAD: payload})

    def _keep(
        self,
        instruction: Instruction,
        kind: Literal["train", "evaluate", "refusal"],
        envelope: Envelope,
        object_ids: frozenset[str],
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
            payload_sha256=sha256_hex(payload),
            object_ids=object_ids,
            sealed_at=self.clock(),
        )
        self.replies.keep(sealed, payload)
        self._receipts.void(instruction.slot)
        self._note(
            "reply.sealed",
            instruction,
            payload_sha256=sealed.payload_sha256,
            bytes=len(payload),
            status=kind,
        )

    def _note(self, action: str, instruction: Instruction, **fields: object) -> None:
        self.log.append(
            action,
            kind=instruction.kind,
            study=instruction.study,
            round=instruction.round,
            attempt=instruction.attempt,
            **fields,
        )
