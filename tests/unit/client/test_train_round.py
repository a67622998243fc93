"""One instruction at a site: nothing runs before the guard says yes, only sealed bytes leave."""

import json
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import structlog

from fedward_client.guard.client import Grant, StoredReply
from fedward_client.train_round import Worker
from fedward_client.training.trainer import PerformanceFlags
from fedward_common.arrays import tensors_from_bytes, tensors_to_bytes
from fedward_common.canonical import sha256_hex
from fedward_common.errors import BudgetExceeded, DataError, FedwardError, StartError
from fedward_common.models.registry import initial_tensors
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import StudySpec
from fedward_common.trust.signing import SigningKey, key_sha256
from fedward_common.wire import Envelope, Instruction
from tests.support.studies import SITES, make_spec

STORED = Envelope(header=b"stored", blobs={"payload": b"as before"})


@dataclass
class FakeGuard:
    """Says what it was asked, in order."""

    refusal: FedwardError | None = None
    stored: bool = False
    asked: list[str] = field(default_factory=list)
    sealed: list[bytes] = field(default_factory=list)

    def begin(
        self, instruction: bytes, signed_study: bytes, known_rows: bytes = b"", boxes: bytes = b""
    ) -> Grant | StoredReply:
        self.asked.append("begin")
        if self.refusal is not None:
            raise self.refusal
        return StoredReply(envelope=STORED) if self.stored else Grant(receipt="r1", site=SITES[0])

    def seal(self, receipt: str, payload: bytes) -> Envelope:
        self.asked.append(f"seal {receipt}")
        self.sealed.append(payload)
        return Envelope(header=b"sealed", blobs={"payload": payload})

    def refuse(self, instruction: bytes, code: str) -> Envelope:
        self.asked.append(f"refuse {code}")
        return Envelope(header=b"refusal " + code.encode())


@dataclass
class FakeSource:
    """A data source that notes when it is read."""

    guard: FakeGuard
    error: FedwardError | None = None

    def records(self, study: StudySpec, *, part: str) -> PatientRecords:
        self.guard.asked.append(f"read {part}")
        if self.error is not None:
            raise self.error
        return PatientRecords(
            features=np.array([[0.1, 0, 1], [-0.5, 1, 0], [0.9, 0, 0]], dtype=np.float32),
            labels=np.array([1, 0, 1], dtype=np.float32),
            patient=np.array([0, 1, 2], dtype=np.int64),
        )


LEAD = SigningKey.generate()
STUDY = make_spec(lead_key_sha256=key_sha256(LEAD.public_hex))
MODEL = tensors_to_bytes(initial_tensors(STUDY.model, inputs=3))


def instruct(kind: str = "train", **changes: object) -> Envelope:
    fields = {
        "kind": kind,
        "study": STUDY.digest,
        "round": 1,
        "attempt": 0,
        "model_sha256": sha256_hex(MODEL),
        "cohort": SITES,
        "roster_sha256": STUDY.roster_sha256,
    } | changes
    return Envelope(
        header=Instruction.model_validate(fields).canonical,
        blobs={"model": MODEL, "study": SignedStudy.sign(STUDY, LEAD).canonical},
    )


def worker(guard: FakeGuard, error: FedwardError | None = None) -> Worker:
    return Worker(guard=guard, source=FakeSource(guard, error), flags=PerformanceFlags())


def test_the_guard_is_asked_before_any_record_is_read() -> None:
    guard = FakeGuard()

    worker(guard).answer(instruct())

    assert guard.asked == ["begin", "read train", "seal r1"]


def test_an_update_has_the_models_tensors() -> None:
    guard = FakeGuard()

    answer = worker(guard).answer(instruct())

    sent, update = tensors_from_bytes(MODEL), tensors_from_bytes(answer.blobs["payload"])
    assert {n: t.shape for n, t in update.items()} == {n: t.shape for n, t in sent.items()}
    assert any((update[name] != sent[name]).any() for name in sent)


def test_an_evaluation_reads_held_out_patients_and_gives_noised_counts_only() -> None:
    guard = FakeGuard()

    worker(guard).answer(instruct("evaluate"))

    assert guard.asked == ["begin", "read test", "seal r1"]
    counts = json.loads(guard.sealed[0])
    assert list(counts) == ["counts"]
    assert np.shape(counts["counts"]) == (2, 4)


def test_what_was_sealed_before_comes_back_without_training() -> None:
    guard = FakeGuard(stored=True)

    assert worker(guard).answer(instruct()) == STORED
    assert guard.asked == ["begin"]


def test_a_refused_charge_reads_no_record() -> None:
    guard = FakeGuard(refusal=BudgetExceeded("no"))

    answer = worker(guard).answer(instruct())

    assert answer.header == b"refusal budget"
    assert guard.asked == ["begin", "refuse budget"]


def test_a_model_damaged_on_the_way_costs_no_charge() -> None:
    guard = FakeGuard()

    worker(guard).answer(instruct(model_sha256="0" * 64))

    assert guard.asked == ["refuse signature"]


SPOILT = {
    "not finite": tensors_to_bytes(
        {n: np.full_like(t, np.inf) for n, t in tensors_from_bytes(MODEL).items()}
    ),
    "other shapes": tensors_to_bytes({"linear.bias": np.zeros(7, dtype=np.float32)}),
    "no tensors": b"rubbish",
}


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("name", SPOILT)
def test_a_model_that_nobody_can_work_with_costs_no_charge(name: str, kind: str) -> None:
    """The coordinator's own mistake, or what one site made of the model: no patient pays."""
    guard, model = FakeGuard(), SPOILT[name]
    envelope = instruct(kind, model_sha256=sha256_hex(model))
    envelope.blobs["model"] = model

    worker(guard).answer(envelope)

    assert guard.asked == ["refuse protocol"]


def test_bad_data_leave_as_one_word() -> None:
    guard = FakeGuard()

    answer = worker(guard, DataError("column 'age': expected a number")).answer(instruct())

    assert answer == Envelope(header=b"refusal data")


def test_an_error_without_a_word_of_its_own_leaves_as_internal() -> None:
    guard = FakeGuard()

    worker(guard, StartError("something of this host")).answer(instruct())

    assert guard.asked[-1] == "refuse internal"


@pytest.mark.parametrize("blob", ["model", "study"])
def test_an_instruction_without_its_blobs_is_refused_before_a_charge(blob: str) -> None:
    guard = FakeGuard()
    envelope = instruct()
    del envelope.blobs[blob]

    worker(guard).answer(envelope)

    assert guard.asked == ["refuse protocol"]


def test_the_reason_of_a_refusal_stays_in_the_sites_own_log() -> None:
    guard = FakeGuard()

    with structlog.testing.capture_logs() as logs:
        worker(guard, DataError("table: expected the column 'age'")).answer(instruct())

    (line,) = logs
    assert (line["event"], line["code"]) == ("instruction.refused", "data")
    assert line["reason"] == "table: expected the column 'age'"


def hostile_models() -> dict[str, bytes]:
    """Models that a coordinator may send instead of the study's."""
    model = dict(tensors_from_bytes(MODEL))
    name = sorted(model)[0]
    spoiled = model[name].copy()
    spoiled.flat[0] = np.nan
    return {
        "an extra tensor": tensors_to_bytes(model | {"extra": np.zeros(4, np.float32)}),
        "another shape": tensors_to_bytes(model | {name: np.zeros((7, 7), np.float32)}),
        "not a number": tensors_to_bytes(model | {name: spoiled}),
        "ten times the size": tensors_to_bytes(model | {name: np.tile(model[name], 10)}),
        "no tensors": b"\x80\x04pickled",
    }


@pytest.mark.parametrize("what", sorted(hostile_models()))
def test_a_coordinators_model_that_is_not_the_studys_reads_no_record(
    what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    guard, model = FakeGuard(), hostile_models()[what]
    sent = instruct(model_sha256=sha256_hex(model))

    answer = worker(guard).answer(replace(sent, blobs={**sent.blobs, "model": model}))

    assert guard.asked == ["refuse protocol"]
    assert answer.header == b"refusal protocol"
    assert "instruction.refused" in capsys.readouterr().out
