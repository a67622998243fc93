"""Whether an instruction may run here: what is proven, what is reserved and what is charged."""

from dataclasses import dataclass
from functools import lru_cache

from fedward_client.exclusions import exclusions_digest
from fedward_client.guard.client import Grant, StoredReply
from fedward_client.guard.notes import note
from fedward_client.guard.payloads import charged_event
from fedward_client.guard.receipts import Live, Receipts
from fedward_client.guard.replies import Replies
from fedward_client.ports import Journal, Signer
from fedward_client.settings import SiteSettings
from fedward_common.canonical import sha256_hex
from fedward_common.errors import LedgerError, ProtocolError, SignatureRefused
from fedward_common.ids import Digest, SiteId
from fedward_common.privacy.accounting import epsilon_admission
from fedward_common.privacy.ledger import Charge, Ledger, Purpose, Reservation
from fedward_common.privacy.mechanism import alone_study, release_event
from fedward_common.secagg.sums import last_sum
from fedward_common.study.evaluation import validation_rounds
from fedward_common.study.harmonisation import harmonisation_of
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import StudySpec
from fedward_common.trust.signing import key_sha256
from fedward_common.wire import CONTROL_KINDS, Instruction, KnownRows


def verified_study(signed_study: bytes, *, site: SiteId, key: Signer) -> StudySpec:
    """The study in `signed_study`, after proving that its lead signed it and that it means us.

    1. The study's lead signed it. 2. It names this site with this guard's own key.

    Raises:
        ProtocolError, SignatureRefused: which of these is not so.
    """
    # 1.
    study = _signed_by_its_lead(signed_study)
    # 2.
    own = study.site(site)
    if own is None:
        raise ProtocolError(f"study {study.id}: expected site {site} in it, found none")
    if own.key_sha256 != key_sha256(key.public_hex):
        raise SignatureRefused(
            f"study {study.id}: expected this guard's key for site {site}, found another. "
            "A changed key needs a new study digest and a new approval"
        )
    return study


@lru_cache(maxsize=4)
def _signed_by_its_lead(signed_study: bytes) -> StudySpec:
    """The study; what the bytes prove they always prove, and a study asks for many rounds."""
    return SignedStudy.parse(signed_study).verify()


def require_of_study(instruction: Instruction, study: StudySpec, *, site: SiteId) -> None:
    """Returns when the instruction is one of `study` that this site may get.

    1. It names the study's digest and its roster. 2. Its cohort is sites of the study, each once,
    and this site is in it. 3. Its round is one of the study's, its kind one that the study has; an
    evaluation comes after the last round or after one that the study validates (rules 7: a declared
    number of times, by default once, the final model).

    Raises:
        ProtocolError: which of these is not so.
    """
    # 1.
    if study.digest != instruction.study:
        raise ProtocolError("instruction: expected the signed study it names, found another")
    if study.roster_sha256 != instruction.roster_sha256:
        raise ProtocolError("instruction: expected the roster of the study, found another")
    # 2.
    cohort, members = instruction.cohort, {one.id for one in study.sites}
    if len(set(cohort)) != len(cohort) or not set(cohort) <= members or site not in cohort:
        raise ProtocolError(
            f"instruction: expected a cohort of the study's sites with {site} in it, each "
            "once, found another"
        )
    # 3.
    if instruction.kind in CONTROL_KINDS:
        if not study.secure_sum or instruction.round > last_sum(study):
            raise ProtocolError("instruction: expected a secret sum of the study, found another")
        return
    if instruction.round > study.rounds:
        raise ProtocolError(
            f"instruction: expected a round of 1 to {study.rounds}, found {instruction.round}"
        )
    charged_event(instruction, study)
    evaluated = (*validation_rounds(study), study.rounds)
    if instruction.kind == "evaluate" and instruction.round not in evaluated:  # rules 7
        raise ProtocolError(
            f"instruction: expected the final model's evaluation, after round {study.rounds}, or a "
            f"validation that the study declares, found one after round {instruction.round}"
        )


@dataclass(frozen=True, kw_only=True)
class Admission:
    """Grants what was verified and permitted: against the ledger, once per slot."""

    site: SiteId
    ledger: Ledger
    replies: Replies
    receipts: Receipts
    log: Journal

    def require_known(self, known_rows: bytes) -> None:
        """Returns when the ledger has the row of this site that the coordinator knows of.

        Raises:
            LedgerError: it has not: an older ledger was put back, and would spend again what it
                had spent. ProtocolError: these are no known rows.
        """
        known = KnownRows.parse(known_rows).rows.get(self.site)
        if known is not None and not self.ledger.holds(known):
            raise LedgerError(
                f"ledger: expected the row {known[:12]} that the coordinator has seen of it, found "
                "none: an older ledger was put back. Restore the newest copy, then ask the "
                "coordinator for `fedward-server site forget-ledger`"
            )

    def stored(self, instruction: Instruction) -> StoredReply | None:
        """The answer that was sealed before, armed to leave again; None for a slot without one.

        Raises:
            ProtocolError: the slot was answered for something else, or the bytes are gone.
        """
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
        note(self.log, "reply.repeated", instruction)
        return StoredReply(envelope=envelope)

    def require_constants(self, instruction: Instruction, study: StudySpec, state: bytes) -> None:
        """Returns when a site that harmonises has its constants, or never sent what used any.

        Raises:
            LedgerError: they are lost: drawn again they would be another release.
            ProtocolError: an evaluation before the first round, which draws them.
        """
        if state or harmonisation_of(study) is None:
            return
        if instruction.kind != "train":
            raise ProtocolError(
                f"study {study.id}: expected this site's location and scale from a round of "
                "training before an evaluation, found none"
            )
        if self.replies.has_update(study.digest):
            raise LedgerError(
                f"study {study.id}: expected the location and scale that this site keeps since "
                "its first round, found none. They are not drawn again; restore the guard's folder"
            )

    def grant(
        self, instruction: Instruction, study: StudySpec, *, plugin_sha256: str | None
    ) -> Grant:
        """A receipt, after the study is reserved and this instruction is charged, on disk.

        Raises:
            BudgetExceeded, LedgerError, ProtocolError: it cannot be charged.
        """
        self._reserve(study)
        if instruction.kind == "train":
            self._charge_constants(study)
        purpose: Purpose = "round" if instruction.kind == "train" else "release"
        alone = alone_study(study)
        charge = self.ledger.charge(
            [charged_event(instruction, study)],
            alone=[] if alone is None else [charged_event(instruction, alone)],
            study=study.digest,
            slot=instruction.slot,
            key=instruction.key,
            purpose=purpose,
        )
        self._note_charge(instruction, charge)
        self.replies.forget_before(study.digest, slot=instruction.slot)
        receipt = self.receipts.issue(Live(instruction=instruction, study=study))
        return Grant(receipt=receipt, site=self.site, plugin_sha256=plugin_sha256)

    def _charge_constants(self, study: StudySpec) -> None:
        """A site's location and scale, charged once a study and before a record is read."""
        harmonisation = harmonisation_of(study)
        if harmonisation is None:
            return
        slot = f"{study.digest}/harmonise/0"
        self.ledger.charge(
            [release_event(harmonisation)],
            study=study.digest,
            slot=slot,
            key=Digest(sha256_hex(slot.encode())),
            purpose="release",
        )

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
        note(
            self.log,
            "round.charged",
            instruction,
            repeated=charge.repeated,
            ledger_seq=head.seq,
            head_sha256=head.sha256,
        )


class ExclusionWatch:
    """Notes in the journal when the list of patients who object changed; never how many or who.

    A list that is not named any more is noted as the digest of no bytes.
    """

    def __init__(
        self, settings: SiteSettings, log: Journal, *, key: Signer, noted: str | None
    ) -> None:
        self._path = settings.exclusions
        self._log = log
        self._key = key
        self._noted = noted

    def look(self) -> None:
        """Returns when the list is as it must be; a change since the last look is in the journal.

        Raises:
            DataError: it is not; nothing may be trained without it.
        """
        if self._path is None and self._noted is None:
            return
        found = sha256_hex(b"") if self._path is None else exclusions_digest(self._path, self._key)
        if found != self._noted:
            self._log.append("exclusions.changed", sha256=found)
            self._noted = found
