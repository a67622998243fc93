"""What the guard decides: whether an instruction may run, what may be sealed, what may leave.

No patient record ever comes here. The worker is another process (in a hospital: another user); all
it can get from the guard is a receipt, and all the gateway lets out is what was sealed with one.
Trusted for a study's data is nevertheless the worker itself: the guard sees that an update has the
study's shapes, not that noise is in it.
"""

import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from fedward_client.approvals import read_statement
from fedward_client.guard.admission import Admission, require_of_study, verified_study
from fedward_client.guard.answers import Answers
from fedward_client.guard.client import Grant, StoredReply
from fedward_client.guard.notes import note, reason
from fedward_client.guard.phases import Phases
from fedward_client.guard.receipts import Reasons, Receipts, Refusals, Steps
from fedward_client.guard.release import OutgoingBlob, Release
from fedward_client.guard.replies import Replies
from fedward_client.guard.secure import SecureSums
from fedward_client.guard.shelf import StudyShelf
from fedward_client.guard.statements import Statements
from fedward_client.guard.states import States
from fedward_client.guard.traffic import Traffic
from fedward_client.policy import SitePolicy
from fedward_client.ports import Clock, Journal, ObjectIds, Passing, Shapes, Signer
from fedward_common.canonical import sha256_hex
from fedward_common.channel.blob_files import BlobFile
from fedward_common.errors import FedwardError, ProtocolError
from fedward_common.ids import SiteId
from fedward_common.privacy.ledger import Ledger
from fedward_common.privacy.randomness import Csprng, RandomSource
from fedward_common.study.spec import StudySpec
from fedward_common.trust.statements import Statement
from fedward_common.wire import CONTROL_KINDS, Envelope, Instruction, Octets


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
    statements: Statements
    shelf: StudyShelf
    traffic: Traffic
    exclusions: Callable[[], None]
    plugin: Callable[[StudySpec], str | None]
    states: States
    unmasked: set[tuple[str, int]] = field(default_factory=set)
    noise: Callable[[], RandomSource] = Csprng
    random_bytes: Callable[[int], bytes] = secrets.token_bytes
    _steps: Steps = field(default_factory=Steps)
    _receipts: Receipts = field(default_factory=Receipts)
    _refusals: Refusals = field(default_factory=Refusals)
    _reasons: Reasons = field(default_factory=Reasons)
    _phases: Phases = field(default_factory=Phases)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def begin(
        self, instruction: bytes, signed_study: bytes, known_rows: bytes = b"", boxes: bytes = b""
    ) -> Grant | StoredReply:
        """A receipt for one answer, or the answer that was sealed before. When it returns:

        1. the instruction parses, and names the digest and roster of the signed study beside it;
        2. the study's lead signed that study (rules 12);
        3. the study names this site with this guard's own key;
        4. the cohort is sites of the study, each once, and this site is in it;
        5. the round is one of the study's; an evaluation is one of its releases;
        6. the site's policy permits the study, now, and a named person approved it, and the plugin
           that builds its model if one does;
        7. the list of patients who object is as it must be, and the ledger has the row that the
           coordinator saw last (`known_rows`): no older copy was put back;
        8. the slot was not answered; if it was, under the same key, the stored bytes come again;
        9. a secret sum is set up, so that the answer can be masked, where the study asks for one:
           the other sites' shares in `boxes` open;
        10. the study's whole T_max is reserved and this round is charged, on disk; an instruction
           that was charged before is not charged again;
        11. no older receipt of the slot is good any more.

        An instruction that opens a phase passes 1 to 7 and is charged nothing: its answer, which
        ends the phase, is sealed at once and empty. Each step of the phase comes here by itself.

        Raises:
            FedwardError: the class says which: protocol (1, 2, 4, 5, 8), signature (2, 3), policy
                (6), data or ledger (7), protocol (9), budget or ledger (10).
        """
        parsed = Instruction.parse(instruction)
        try:
            with self._lock:
                study = self._verified(parsed, signed_study)
                if parsed.kind in CONTROL_KINDS:
                    raise ProtocolError("instruction: expected one to begin, found a step")
                self.policy.permits(study, now=self.clock(), kind=parsed.kind)  # 6.
                plugin = self.plugin(study)
                self.exclusions()  # 7.
                self._admission.require_known(known_rows)
                if parsed.kind == "phase":
                    return self._open_phase(parsed)
                stored = self._admission.stored(parsed)
                if stored is None and study.secure_sum:
                    self._secure.require_ready(parsed, study, boxes)  # 9.
                state = self.states.find(study)
                if stored is None:
                    self._admission.require_constants(parsed, study, state)
                answer = stored or self._admission.grant(parsed, study, plugin_sha256=plugin)
                if isinstance(answer, Grant):
                    answer = replace(answer, state=state)
                self._reasons.forget(parsed.key)
                return answer
        except FedwardError as error:
            self._reasons.keep(parsed.key, error.code)
            note(self.log, "instruction.refused", parsed, **reason(error))
            raise

    def seal(
        self, receipt: str, payload: Octets, boxes: bytes = b"", *, state: bytes = b""
    ) -> Envelope:
        """As `Answers.seal`."""
        return self._answers.seal(receipt, payload, boxes, state=state)

    def step(self, instruction: bytes, signed_study: bytes, message: bytes) -> Envelope:
        """The signed answer to a step of secure aggregation. When it returns:

        1. as in `begin`, the instruction parses, is of this signed study and of this site, and the
        policy permits and a person approved it; 2. the message has the digest in the instruction;
        3. the protocol's rules were kept (`SecureSums`).

        Raises:
            FedwardError: the class says which; SecAggRefused: 3.
        """
        parsed = Instruction.parse(instruction)
        try:
            with self._lock:
                study = self._verified(parsed, signed_study)
                if parsed.kind not in CONTROL_KINDS:
                    raise ProtocolError("instruction: expected a step of secure aggregation")
                self.policy.permits(study, now=self.clock())
                if sha256_hex(message) != parsed.model_sha256:
                    raise ProtocolError("step: expected the message that the instruction names")
                answer = self._answers.step(parsed, study, message)
                self._reasons.forget(parsed.key)
                return answer
        except FedwardError as error:
            self._reasons.keep(parsed.key, error.code)
            note(self.log, "instruction.refused", parsed, **reason(error))
            raise

    def refuse(self, instruction: bytes, code: str) -> Envelope:
        """As `Answers.refuse`, of an instruction that still must parse."""
        return self._answers.refuse(Instruction.parse(instruction), code)

    def release(self, message_id: str, object_ids: Sequence[str]) -> bool:
        """As `Release.message`."""
        with self._lock:
            allowed = self._release.message(message_id, object_ids)
            if allowed:
                self._phases.released(frozenset(object_ids))
            return allowed

    def journal(self, passing: Passing) -> None:
        """As `Release.journal`."""
        with self._lock:
            self._release.journal(passing)

    def blob(self, message_id: str) -> OutgoingBlob | None:
        """As `Release.blob`."""
        with self._lock:
            return self._release.blob(message_id)

    def require_blob(self, blob: str) -> None:
        """As `Release.require_blob`."""
        with self._lock:
            self._release.require_blob(blob)

    def phase_open(self, study: str) -> bool:
        """Whether the gateway may open a stream for a phase of this study."""
        with self._lock:
            return self._phases.is_open(study)

    def bundle_allowed(self, sha256: str) -> bool:
        """Whether the hospital approved the app bundle."""
        allowed = self.policy.allows_bundle(sha256)
        self.log.append("bundle.asked", bundle_sha256=sha256, allowed=allowed)
        return allowed

    def record(self, statement: bytes, signed_study: bytes = b"") -> Statement:
        """What a person of this site says, in force when this returns.

        With an approval the signed study may come along, so that it can be shown, and compared with
        its next version, before its lead asks for the first round.

        Raises:
            FedwardError: as `Statements.record`; ProtocolError: it comes with another study.
        """
        study = None
        if signed_study:
            study = verified_study(signed_study, site=self.site, key=self.key)
            if study.digest != read_statement(statement).facts.get("study"):
                raise ProtocolError("study: expected the one in the statement, found another")
        with self._lock:
            accepted = self.statements.record(statement)
            if study is not None:
                self.shelf.put(study, signed_study)
            return accepted

    def room_for(self, receipt: str, size: int) -> BlobFile | None:
        """An empty file for an update while it comes in, which its answer then is on disk; None
        where it comes in through memory: without a live receipt, above the quota, and where secure
        sums are taken, because what comes there is not noised and masked yet (rules 5).

        Raises:
            StorageError: the disk has no room.
        """
        with self._lock:
            live = self._receipts.find(receipt)
            if live is None or live.study.secure_sum or live.instruction.kind != "train":
                return None
            return self.replies.room(size)

    def forget_old(self) -> None:
        """Deletes the bytes of answers that the site has kept for long enough (rules 5)."""
        with self._lock:
            self.replies.prune()

    def _open_phase(self, instruction: Instruction) -> StoredReply:
        envelope, object_ids = self._answers.phase(instruction)
        self._phases.open(instruction, object_ids)
        self._reasons.forget(instruction.key)
        note(self.log, "phase.opened", instruction)
        return StoredReply(envelope=envelope)

    def _verified(self, instruction: Instruction, signed_study: bytes) -> StudySpec:
        """Steps 1 to 5 of `begin`; the study is on the shelf then, for people to read."""
        study = verified_study(signed_study, site=self.site, key=self.key)
        require_of_study(instruction, study, site=self.site)
        if self.shelf.put(study, signed_study):
            self.log.append("study.seen", study=study.digest, study_id=study.id)
        return study

    @cached_property
    def _admission(self) -> Admission:
        return Admission(
            site=self.site,
            ledger=self.ledger,
            replies=self.replies,
            receipts=self._receipts,
            log=self.log,
        )

    @cached_property
    def _secure(self) -> SecureSums:
        return SecureSums(
            site=self.site,
            key=self.key,
            log=self.log,
            shapes=self.shapes,
            noise=self.noise,
            random_bytes=self.random_bytes,
            unmasked=self.unmasked,
        )

    @cached_property
    def _answers(self) -> Answers:
        return Answers(
            site=self.site,
            policy=self.policy,
            ledger=self.ledger,
            replies=self.replies,
            receipts=self._receipts,
            refusals=self._refusals,
            reasons=self._reasons,
            log=self.log,
            key=self.key,
            shapes=self.shapes,
            object_ids=self.object_ids,
            clock=self.clock,
            lock=self._lock,
            secure=self._secure,
            steps=self._steps,
            states=self.states,
        )

    @cached_property
    def _release(self) -> Release:
        return Release(
            policy=self.policy,
            replies=self.replies,
            refusals=self._refusals,
            steps=self._steps,
            shelf=self.shelf,
            traffic=self.traffic,
            log=self.log,
            clock=self.clock,
        )
