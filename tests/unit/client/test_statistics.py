"""A site's answer to a statistics instruction, and what the guard lets through as one."""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from fedward_client.guard.client import Grant
from fedward_client.guard.payloads import charged_event, check_payload
from fedward_client.guard.receipts import Live
from fedward_client.statistics import statistics_payload
from fedward_client.train_round import Worker
from fedward_client.training.trainer import PerformanceFlags
from fedward_common.arrays import tensors_to_bytes
from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.errors import ConfigError, ProtocolError
from fedward_common.privacy.mechanism import encode_event, release_event
from fedward_common.privacy.statistics import SystemIntegers
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import StudySpec
from fedward_common.study.statistics import ColumnStatistics
from fedward_common.trust.signing import SigningKey, key_sha256
from fedward_common.wire import Envelope, Instruction
from tests.support.statistics import NoNoise, a_release, rows_of, statistics_study
from tests.support.studies import make_spec

LEAD = SigningKey.generate()
MOMENTS = a_release(columns=["age"], statistics=["count", "missing", "mean", "variance"])
COUNTED = a_release(
    columns=["pain"], statistics=["histogram"], mechanism="discrete-laplace", noise_multiplier=1.0
)
STUDY = statistics_study(releases=[MOMENTS, COUNTED], lead_key_sha256=key_sha256(LEAD.public_hex))
NOTHING = tensors_to_bytes({})
ROWS = rows_of(*((f"p{n}", str(20 + 2 * n), str(1 + n % 3)) for n in range(40)))


def instruct(kind: str = "statistics", number: int = 1, study: StudySpec = STUDY) -> Instruction:
    return Instruction.model_validate(
        {
            "kind": kind,
            "study": study.digest,
            "round": number,
            "attempt": 0,
            "model_sha256": sha256_hex(NOTHING),
            "cohort": [site.id for site in study.sites],
            "roster_sha256": study.roster_sha256,
        }
    )


@dataclass
class FakeGuard:
    asked: list[str] = field(default_factory=list)

    def begin(
        self, instruction: bytes, signed_study: bytes, known_rows: bytes = b"", boxes: bytes = b""
    ) -> Grant:
        self.asked.append("begin")
        return Grant(receipt="r1", site="north")

    def seal(self, receipt: str, payload: bytes) -> Envelope:
        self.asked.append("seal")
        return Envelope(header=b"sealed", blobs={"payload": payload})

    def refuse(self, instruction: bytes, code: str) -> Envelope:
        self.asked.append(f"refuse {code}")
        return Envelope(header=b"refusal")


@dataclass
class FakeSource:
    guard: FakeGuard

    def rows(self, study: StudySpec) -> list[dict[str, str]]:
        self.guard.asked.append("read")
        return ROWS

    def records(self, study: StudySpec, *, part: str) -> PatientRecords:
        raise NotImplementedError


def answer(number: int) -> tuple[FakeGuard, Envelope]:
    guard = FakeGuard()
    worker = Worker(
        guard=guard,
        source=FakeSource(guard),
        flags=PerformanceFlags(),
        randomness=NoNoise,
    )
    envelope = Envelope(
        header=instruct(number=number).canonical,
        blobs={"model": NOTHING, "study": SignedStudy.sign(STUDY, LEAD).canonical},
    )
    return guard, worker.answer(envelope)


def test_the_answer_is_the_release_s_sums_and_the_table_is_read_after_the_charge() -> None:
    guard, envelope = answer(1)

    assert guard.asked == ["begin", "read", "seal"]
    assert json.loads(envelope.blobs["payload"])["values"][:2] == [40, None]


@pytest.mark.parametrize("number", [1, 2])
def test_the_guard_lets_the_answer_of_the_worker_through(number: int) -> None:
    _, envelope = answer(number)

    check_payload(
        Live(instruction=instruct(number=number), study=STUDY),
        envelope.blobs["payload"],
        shapes=lambda _: {},
    )


@pytest.mark.parametrize(
    "payload",
    [
        b"{}",
        b'{"values": [20,11,1,2]}',  # not canonical
        b'{"note":"p7","values":[20,11,1,2]}',
        b'{"values":[20,11,1]}',
        b'{"values":[20,11,1,2,3]}',
        b'{"values":[9.5,11,1,2]}',
        b'{"values":[20,11,1,2.0001]}',
        b'{"values":[20,11,1,"2"]}',
        b'{"values":[20,11,1,1e400]}',
        b'{"values":[null,11,1,2]}',
        tensors_to_bytes({}),
    ],
)
def test_any_other_form_of_an_answer_is_not_sealed(payload: bytes) -> None:
    live = Live(instruction=instruct(), study=STUDY)

    with pytest.raises(ProtocolError):
        check_payload(live, payload, shapes=lambda _: {})


def test_a_fraction_of_a_patient_is_not_sealed_where_whole_numbers_are_released() -> None:
    live = Live(instruction=instruct(number=2), study=STUDY)

    with pytest.raises(ProtocolError, match="multiples of 1/1"):
        check_payload(live, b'{"values":[12.5,13,14]}', shapes=lambda _: {})


def test_each_instruction_costs_its_own_release() -> None:
    for number, release in enumerate(STUDY.releases, start=1):
        event = charged_event(instruct(number=number), STUDY)

        assert encode_event(event) == encode_event(release_event(release))


@pytest.mark.parametrize(
    ("instruction", "study"),
    [
        (instruct("train"), STUDY),
        (instruct("evaluate"), STUDY),
        (instruct(number=3), STUDY),
        (instruct(study=make_spec()), make_spec()),
    ],
    ids=["training", "evaluation", "one release too many", "a training study"],
)
def test_an_instruction_that_the_study_does_not_have_is_refused(
    instruction: Instruction, study: StudySpec
) -> None:
    with pytest.raises(ProtocolError):
        charged_event(instruction, study)


def test_a_study_that_declares_less_delta_room_than_it_needs_is_refused() -> None:
    dp: dict[str, Any] = {"kind": "releases-only", "epsilon": 9.0, "delta": 9e-3}
    study = statistics_study(releases=[MOMENTS], dp=dp)

    with pytest.raises(ConfigError, match=r"dp\.delta"):
        charged_event(instruct(study=study), study)


def test_the_payload_has_one_byte_form() -> None:
    release = STUDY.releases[0]
    assert isinstance(release, ColumnStatistics)

    payload = statistics_payload(release, STUDY, ROWS, noise=NoNoise(), integers=SystemIntegers())

    assert canonical_json(json.loads(payload)) == payload
