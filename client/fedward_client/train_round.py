"""One instruction at a site: what is verified, what is charged, what runs, what may leave.

The guard decides and charges before any record is read; this module trains or evaluates and hands
the result to the guard, which seals it. Nothing here can make anything leave without the guard.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from fedward_client.guard.client import Grant, StoredReply
from fedward_client.harmonised import SiteConstants, records_of
from fedward_client.held_out import HeldOut
from fedward_client.kept_state import OpenedRound, own_weights, study_shapes
from fedward_client.secure_payload import (
    evaluation_numbers,
    statistics_numbers,
    training_numbers,
)
from fedward_client.statistics import RowSource, release_of, statistics_payload
from fedward_client.training.patient_dp.passed_checks import passed_checks
from fedward_client.training.trainer import ExecutedPlan, LocalTrainer, PerformanceFlags
from fedward_common.arrays import tensors_from_bytes, tensors_to_bytes
from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.errors import REFUSAL_CODES, FedwardError, ProtocolError, SignatureRefused
from fedward_common.ids import SiteId
from fedward_common.models.plugins import is_built_in, register_installed
from fedward_common.privacy.histogram import noisy_counts
from fedward_common.privacy.randomness import Csprng, RandomSource
from fedward_common.privacy.statistics import IntegerSource, SystemIntegers
from fedward_common.secagg.sums import sum_plan
from fedward_common.study.evaluation import evaluation_of
from fedward_common.study.kept import is_kept, round_shapes
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_common.wire import CONTROL_KINDS, KNOWN_ROWS, Envelope, Instruction, Octets

_log = structlog.get_logger(__name__)


class Guard(Protocol):
    """What a worker may ask of the guard."""

    def begin(
        self, instruction: bytes, signed_study: bytes, known_rows: bytes = b"", boxes: bytes = b""
    ) -> Grant | StoredReply:
        """A single-use receipt after the charge is durable, or the reply that was sealed before."""
        ...

    def seal(
        self, receipt: str, payload: bytes, boxes: bytes = b"", *, state: bytes = b""
    ) -> Envelope:
        """The signed envelope that may leave; in a secure study with the payload masked.

        `state` stays at the site for the study's next round.
        """
        ...

    def step(self, instruction: bytes, signed_study: bytes, message: bytes) -> Envelope:
        """The signed answer to a step of secure aggregation that may leave."""
        ...

    def refuse(self, instruction: bytes, code: str) -> Envelope:
        """A signed refusal that may leave."""
        ...


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Answers instructions with one site's guard, data and machine."""

    guard: Guard
    source: RowSource
    flags: PerformanceFlags
    randomness: Callable[[], RandomSource] = Csprng
    integers: Callable[[], IntegerSource] = SystemIntegers

    def answer(self, envelope: Envelope) -> Envelope:
        """The sealed answer to one instruction: an update, noised numbers, or a refusal by code.

        Raises:
            FedwardError: the guard cannot be reached or refuses to seal even a refusal.
        """
        try:
            return self._answer(envelope)
        except FedwardError as error:
            code = error.code if error.code in REFUSAL_CODES else "internal"
            # The word leaves, the sentence stays: errors of ours carry no value from patient data.
            _log.warning("instruction.refused", code=code, reason=str(error))
            return self.guard.refuse(envelope.header, code)

    def _answer(self, envelope: Envelope) -> Envelope:
        instruction = Instruction.parse(envelope.header)
        model, signed = _blob(envelope, "model"), bytes(_blob(envelope, "study"))
        if instruction.kind in CONTROL_KINDS:
            return self.guard.step(envelope.header, signed, bytes(model))
        # Before the charge: a model damaged on the way must not cost a patient anything.
        if sha256_hex(model) != instruction.model_sha256:
            raise SignatureRefused("model: expected the digest of the instruction, found another")
        # The guard verifies signature and approval; here the same bytes only become a value.
        study = SignedStudy.parse(signed).verify()
        _require_model(study, instruction, model)
        beside = (bytes(envelope.blobs.get(name, b"")) for name in (KNOWN_ROWS, "boxes"))
        grant = self.guard.begin(envelope.header, signed, *beside)
        if isinstance(grant, StoredReply):
            return grant.envelope
        if grant.plugin_sha256 is not None:
            passed_checks().separate()  # a plugin must not vouch for other studies
        register_installed(study.model.name, sha256=grant.plugin_sha256)
        if study.secure_sum:
            numbers, state = self._numbers(study, grant, instruction, model)
            return self._sealed(grant, numbers, bytes(_blob(envelope, "boxes")), state=state)
        payload, state = self._payload(study, grant, instruction, model)
        return self._sealed(grant, payload, state=state)

    def _sealed(self, grant: Grant, *blobs: bytes, state: bytes) -> Envelope:
        if not state:
            return self.guard.seal(grant.receipt, *blobs)
        return self.guard.seal(grant.receipt, *blobs, state=state)

    def _payload(
        self, study: StudySpec, grant: Grant, instruction: Instruction, model: Octets
    ) -> tuple[bytes, bytes]:
        """What leaves as it is, noised here, and what stays."""
        match instruction.kind:
            case "train":
                return self._train(study, grant, model, instruction.round)
            case "evaluate":
                return self._evaluate(study, grant, model), b""
            case "statistics":
                return self._statistics(study, instruction), b""
        raise ProtocolError(f"instruction: expected a known kind, found {instruction.kind}")

    def _numbers(
        self, study: StudySpec, grant: Grant, instruction: Instruction, model: Octets
    ) -> tuple[bytes, bytes]:
        """What the guard noises and masks, and what stays."""
        shapes = {} if instruction.kind == "statistics" else study_shapes(study)
        plan = sum_plan(study, instruction.kind, instruction.round, shapes=shapes)
        match instruction.kind:
            case "train":
                constants = self._constants(study, grant)
                opened = OpenedRound.of(study, model, grant.state or constants.state)
                numbers, ran, after = training_numbers(
                    study,
                    SiteId(grant.site),
                    self._trainer(study, SiteId(grant.site)),
                    weights=opened.weights,
                    records=records_of(study, self.source, constants, part="train"),
                    plan=plan,
                    round_number=instruction.round,
                    correction=opened.correction,
                )
                _require_executed(study, ran)
                return numbers, opened.state_after(after)
            case "evaluate":
                return evaluation_numbers(self._held_out(study, grant, model), plan=plan), b""
        release = release_of(instruction, study)
        rows = list(self.source.rows(study))
        return statistics_numbers(study, release, rows, plan=plan), b""

    def _train(
        self, study: StudySpec, grant: Grant, model: Octets, round_number: int
    ) -> tuple[bytes, bytes]:
        constants = self._constants(study, grant)
        opened = OpenedRound.of(study, model, grant.state or constants.state)
        update = self._trainer(study, SiteId(grant.site)).train(
            opened.weights,
            records_of(study, self.source, constants, part="train"),
            round_number=round_number,
            correction=opened.correction,
        )
        _require_executed(study, update.executed)
        leaves = {n: t for n, t in update.tensors.items() if not is_kept(study, n)}
        return tensors_to_bytes(leaves), opened.state_after(update.tensors)

    def _constants(self, study: StudySpec, grant: Grant) -> SiteConstants:
        return SiteConstants.of(study, self.source, state=grant.state, noise=self.randomness)

    def _trainer(self, study: StudySpec, site: SiteId) -> LocalTrainer:
        return LocalTrainer(
            study, site, sampling=self.randomness(), noise=self.randomness(), flags=self.flags
        )

    def _statistics(self, study: StudySpec, instruction: Instruction) -> bytes:
        return statistics_payload(
            release_of(instruction, study),
            study,
            self.source.rows(study),
            noise=self.randomness(),
            integers=self.integers(),
        )

    def _evaluate(self, study: StudySpec, grant: Grant, model: Octets) -> bytes:
        release = evaluation_of(study)
        if release is None:
            raise ProtocolError("evaluation: expected the study to release one, found none")
        noised = noisy_counts(
            self._held_out(study, grant, model).counts(),
            noise_multiplier=release.noise_std,
            noise=self.randomness(),
        )
        return canonical_json({"counts": noised.tolist()})

    def _held_out(self, study: StudySpec, grant: Grant, model: Octets) -> HeldOut:
        return HeldOut(
            study=study,
            weights=own_weights(study, model, grant.state),
            records=records_of(study, self.source, self._constants(study, grant), part="test"),
        )


def _require_model(study: StudySpec, instruction: Instruction, model: Octets) -> None:
    """Returns when the model can be worked with: asked before the round is charged.

    The names and shapes of a plugin's model are known only once the guard said that it is approved;
    no code of it runs here before.

    Raises:
        ProtocolError: a number that is not finite, or other tensors than the study's.
    """
    if instruction.kind not in ("train", "evaluate"):
        return
    shapes = study_shapes(study) if is_built_in(study.model.name) else None
    if shapes is not None and instruction.kind == "train":
        shapes = round_shapes(study, shapes)
    tensors_from_bytes(model, shapes=shapes)


def _require_executed(study: StudySpec, ran: ExecutedPlan) -> None:
    """Returns when what ran is what the study planned, and so what was charged."""
    plan = study.dp
    if not isinstance(plan, DpSgd) or (
        ran.steps != study.local_steps
        or ran.noise_multiplier != plan.noise_multiplier
        or ran.clip_norm != plan.clip_norm
        or ran.sampling_probability != plan.sampling_probability
    ):
        raise ProtocolError("training: expected the study's plan to have run, found otherwise")


def _blob(envelope: Envelope, name: str) -> Octets:
    if name not in envelope.blobs:
        raise ProtocolError(f"instruction: expected a blob {name!r}, found none")
    return envelope.blobs[name]
