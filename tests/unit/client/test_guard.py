"""What the guard decides, without sockets: the real service over the fakes of its ports."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedward_client.guard.client import Grant, StoredReply
from fedward_client.guard.replies import Replies
from fedward_client.guard.service import GuardService
from fedward_client.policy import SitePolicy
from fedward_client.settings import PolicyRules
from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.errors import BudgetExceeded, LedgerError, PolicyRefused, ProtocolError
from fedward_common.ids import SiteId
from fedward_common.study.spec import StudySpec
from fedward_common.trust.signing import verify
from fedward_common.wire import Reply
from tests.support.guard_site import (
    BUNDLE,
    KEYS,
    a_study,
    counts,
    instruction,
    object_ids,
    signed,
    site_values,
    update,
    update_shapes,
)
from tests.support.ledger_fakes import InMemoryLedger, MemoryJournal, Ticking

STUDY = a_study()


@dataclass(kw_only=True)
class Site:
    """A guard in memory (its replies in a folder), and what it wrote down."""

    folder: Path
    policy: SitePolicy
    clock: Ticking = field(default_factory=Ticking)
    journal: MemoryJournal = field(default_factory=MemoryJournal)
    quota_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        self.ledger = InMemoryLedger(limits=self.policy.limits)
        self.guard = self.restarted()

    def restarted(self) -> GuardService:
        """The guard after its process ended: ledger and replies stay, memory does not."""
        self.guard = GuardService(
            site=SiteId("north"),
            policy=self.policy,
            ledger=self.ledger,
            replies=Replies(
                self.folder, quota_bytes=self.quota_bytes, keep_seconds=24 * 3600, clock=self.clock
            ),
            log=self.journal,
            key=KEYS["north"],
            shapes=update_shapes,
            object_ids=object_ids,
            clock=self.clock,
        )
        return self.guard

    @property
    def charged(self) -> int:
        return sum(len(account.charges) for account in self.ledger.accounts())

    def receipt(self, number: int = 1, **changes: Any) -> str:
        grant = self.guard.begin(instruction(STUDY, number, **changes), signed(STUDY))
        assert isinstance(grant, Grant)
        return grant.receipt


def policy(*studies: StudySpec, **changes: Any) -> SitePolicy:
    rules = PolicyRules.model_validate(site_values(*studies, **changes)["policy"])
    return SitePolicy(rules=rules, source="site.toml")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(folder=tmp_path / "replies", policy=policy(STUDY))


def test_a_round_is_charged_before_the_grant_and_its_reply_leaves_once(site: Site) -> None:
    receipt = site.receipt()
    charged = site.charged
    envelope = site.guard.seal(receipt, update())

    reply = Reply.parse(envelope.header)
    verify(KEYS["north"].public_hex, bytes.fromhex(reply.signature), reply.signed_bytes)
    assert charged == 1
    assert (reply.kind, reply.site) == ("train", "north")
    assert reply.payload_sha256 == sha256_hex(update())
    assert site.guard.release("message-1", sorted(object_ids(envelope)))
    assert site.guard.release("message-1", sorted(object_ids(envelope)))
    assert not site.guard.release("message-2", sorted(object_ids(envelope)))
    assert site.journal.actions() == [
        "study.reserved",
        "round.charged",
        "reply.sealed",
        "reply.released",
        "reply.released",
        "reply.held",
    ]


def test_the_whole_study_is_reserved_at_the_first_round(site: Site) -> None:
    site.receipt()

    (account,) = site.ledger.accounts()
    assert (account.reservation.rounds, account.reservation.releases) == (5, 1)
    assert account.reservation.study == STUDY.digest


def test_the_same_instruction_gets_the_stored_bytes_and_no_charge(site: Site) -> None:
    envelope = site.guard.seal(site.receipt(), update())
    ids = sorted(object_ids(envelope))
    assert site.guard.release("message-1", ids)

    again = site.guard.begin(instruction(STUDY), signed(STUDY))

    assert again == StoredReply(envelope=envelope)
    assert site.charged == 1
    assert site.guard.release("message-2", ids)


def test_stored_bytes_survive_a_restart(site: Site) -> None:
    envelope = site.guard.seal(site.receipt(), update())

    guard = site.restarted()

    assert guard.release("message-1", sorted(object_ids(envelope)))
    assert guard.begin(instruction(STUDY), signed(STUDY)) == StoredReply(envelope=envelope)
    assert site.charged == 1


def test_what_left_before_a_restart_does_not_leave_again_after_it(site: Site) -> None:
    envelope = site.guard.seal(site.receipt(), update())
    ids = sorted(object_ids(envelope))
    assert site.guard.release("message-1", ids)

    guard = site.restarted()

    assert not guard.release("message-2", ids)
    assert guard.release("message-1", ids)


def test_charged_but_not_sealed_gets_a_new_receipt_and_voids_the_old(site: Site) -> None:
    first = site.receipt()
    second = site.receipt()

    with pytest.raises(ProtocolError, match="receipt"):
        site.guard.seal(first, update())
    site.guard.seal(second, update())

    assert site.charged == 1


def test_a_receipt_is_used_once(site: Site) -> None:
    receipt = site.receipt()
    site.guard.seal(receipt, update())

    with pytest.raises(ProtocolError, match="receipt"):
        site.guard.seal(receipt, update(0.25))


def test_a_receipt_is_lost_with_the_process_and_costs_nothing(site: Site) -> None:
    receipt = site.receipt()
    site.restarted()

    with pytest.raises(ProtocolError):
        site.guard.seal(receipt, update())
    site.guard.seal(site.receipt(), update())

    assert site.charged == 1


@pytest.mark.parametrize(
    "change",
    [
        {"attempt": 1},
        {"model_sha256": "0" * 64},
        {"cohort": ["north", "south"]},
        {"cohort": ["south", "north", "west"]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_anything_different_for_a_charged_round_is_refused(
    site: Site, change: dict[str, Any]
) -> None:
    site.receipt()

    with pytest.raises(ProtocolError):
        site.guard.begin(instruction(STUDY, **change), signed(STUDY))

    assert site.charged == 1


def test_anything_different_for_an_answered_round_is_refused(site: Site) -> None:
    site.guard.seal(site.receipt(), update())

    with pytest.raises(ProtocolError, match="answered once"):
        site.guard.begin(instruction(STUDY, attempt=1), signed(STUDY))


def test_an_answer_that_was_deleted_is_not_given_again(site: Site) -> None:
    site.guard.seal(site.receipt(), update())
    site.clock.skip(hours=25)

    with pytest.raises(ProtocolError, match="deleted since"):
        site.guard.begin(instruction(STUDY), signed(STUDY))

    assert site.charged == 1


def test_the_next_round_deletes_the_bytes_of_the_one_before(site: Site) -> None:
    site.guard.seal(site.receipt(1), update())
    site.receipt(2)

    with pytest.raises(ProtocolError, match="deleted since"):
        site.guard.begin(instruction(STUDY, 1), signed(STUDY))
    assert list(site.folder.glob("*.payload")) == []


def test_stored_bytes_keep_to_the_quota_and_to_their_user(site: Site) -> None:
    site.quota_bytes = len(update()) + 10
    guard = site.restarted()
    guard.seal(site.receipt(), update())
    other = a_study(id="lung")
    site.policy = policy(STUDY, other)
    guard = site.restarted()
    grant = guard.begin(instruction(other), signed(other))
    assert isinstance(grant, Grant)
    guard.seal(grant.receipt, update())

    assert len(list(site.folder.glob("*.payload"))) == 1
    assert site.folder.stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in site.folder.iterdir()} == {0o600}


def test_a_payload_above_the_quota_is_refused(site: Site) -> None:
    site.quota_bytes = 10
    site.restarted()

    with pytest.raises(ProtocolError, match="reply_quota_bytes"):
        site.guard.seal(site.receipt(), update())


def test_a_stored_payload_that_was_changed_is_not_given_out(site: Site) -> None:
    site.guard.seal(site.receipt(), update())
    (payload,) = site.folder.glob("*.payload")
    payload.write_bytes(update(0.75))

    with pytest.raises(ProtocolError):
        site.guard.begin(instruction(STUDY), signed(STUDY))


def test_a_damaged_record_of_an_answer_stops_the_guard(site: Site) -> None:
    site.guard.seal(site.receipt(), update())
    (record,) = site.folder.glob("*.json")
    record.write_bytes(b"{}")

    with pytest.raises(LedgerError, match="answered twice"):
        site.restarted()


def test_the_evaluation_is_charged_once_for_the_study(site: Site) -> None:
    receipt = site.receipt(5, kind="evaluate")
    envelope = site.guard.seal(receipt, counts())

    with pytest.raises(BudgetExceeded, match="one release too many"):
        site.guard.begin(instruction(STUDY, 4, kind="evaluate"), signed(STUDY))

    assert Reply.parse(envelope.header).kind == "evaluate"
    assert site.ledger.accounts()[0].charged("release") == 1


def test_a_study_without_evaluation_cannot_be_evaluated(tmp_path: Path) -> None:
    study = a_study(releases=0)
    site = Site(folder=tmp_path, policy=policy(study))

    with pytest.raises(ProtocolError, match="release an evaluation"):
        site.guard.begin(instruction(study, kind="evaluate"), signed(study))

    assert site.charged == 0


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        counts(4),
        counts() + b" ",
        canonical_json({"counts": [[1.0] * 5]}),
        canonical_json({"counts": [[1.0] * 5, [1.0] * 5], "note": "Ada"}),
        canonical_json({"counts": [["1"] * 5, [1.0] * 5]}),
        canonical_json({"counts": [[True] * 5, [1.0] * 5]}),
        b'{"counts":[[1,1,1,1,NaN],[1,1,1,1,1]]}',
        b'{"counts":[[1,1,1,1,1e999],[1,1,1,1,1]]}',
        b"[" * 100_000,
    ],
    ids=range(11),
)
def test_an_evaluation_of_any_other_shape_is_not_sealed(site: Site, payload: bytes) -> None:
    receipt = site.receipt(5, kind="evaluate")

    with pytest.raises(ProtocolError, match="evaluation"):
        site.guard.seal(receipt, payload)

    # The receipt is still good for the right payload.
    site.guard.seal(receipt, counts())


def test_a_refusal_before_the_charge_leaves_once_and_binds_to_nothing(site: Site) -> None:
    envelope = site.guard.refuse(instruction(STUDY), "policy")
    ids = sorted(object_ids(envelope))

    reply = Reply.parse(envelope.header)
    assert (reply.kind, reply.code, envelope.blobs) == ("refusal", "policy", {})
    assert site.guard.release("message-1", ids)
    assert not site.guard.release("message-2", ids)
    assert site.receipt() != ""


def test_a_refusal_after_the_charge_is_the_answer_of_the_round(site: Site) -> None:
    receipt = site.receipt()
    envelope = site.guard.refuse(instruction(STUDY), "data")

    with pytest.raises(ProtocolError, match="receipt"):
        site.guard.seal(receipt, update())
    assert site.guard.begin(instruction(STUDY), signed(STUDY)) == StoredReply(envelope=envelope)
    assert site.restarted().begin(instruction(STUDY), signed(STUDY)) == StoredReply(
        envelope=envelope
    )
    assert site.guard.refuse(instruction(STUDY), "internal") == envelope
    assert site.charged == 1


def test_after_an_update_the_only_word_is_protocol_and_the_update_stays(site: Site) -> None:
    """A worker cannot tell the coordinator anything by the word it picks after its update."""
    sealed = site.guard.seal(site.receipt(), update())

    words = [site.guard.refuse(instruction(STUDY), code) for code in ("data", "internal")]

    assert {Reply.parse(word.header).code for word in words} == {"protocol"}
    assert site.guard.begin(instruction(STUDY), signed(STUDY)) == StoredReply(envelope=sealed)


def test_a_conflicting_instruction_can_be_refused_with_a_word(site: Site) -> None:
    site.guard.seal(site.receipt(), update())

    envelope = site.guard.refuse(instruction(STUDY, attempt=1), "protocol")

    assert site.guard.release("message-1", sorted(object_ids(envelope)))


def test_the_first_word_of_a_refusal_stays(site: Site) -> None:
    first = site.guard.refuse(instruction(STUDY), "policy")

    assert site.guard.refuse(instruction(STUDY), "data") == first


@pytest.mark.parametrize("code", ["", "because Ada is 63", "error", "start"])
def test_only_the_known_words_refuse(site: Site, code: str) -> None:
    with pytest.raises(ProtocolError):
        site.guard.refuse(instruction(STUDY), code)


def test_refusals_do_not_pile_up(site: Site) -> None:
    first = site.guard.refuse(instruction(STUDY, model_sha256=sha256_hex(b"0")), "data")
    for number in range(1, 70):
        site.guard.refuse(instruction(STUDY, model_sha256=sha256_hex(b"%d" % number)), "data")

    assert not site.guard.release("message-1", sorted(object_ids(first)))


def test_part_of_an_envelope_or_more_than_it_does_not_leave(site: Site) -> None:
    ids = sorted(object_ids(site.guard.seal(site.receipt(), update())))

    assert not site.guard.release("m", ids[:1])
    assert not site.guard.release("m", [*ids, "0" * 64])
    assert not site.guard.release("m", [])
    assert site.guard.release("m", ids)


def test_a_policy_that_changed_its_mind_stops_also_the_stored_reply(site: Site) -> None:
    site.guard.seal(site.receipt(), update())
    site.policy = policy()
    guard = site.restarted()

    with pytest.raises(PolicyRefused):
        guard.begin(instruction(STUDY), signed(STUDY))


def test_a_study_that_declares_less_than_its_noise_costs_is_refused(tmp_path: Path) -> None:
    study = a_study(epsilon=0.5)
    site = Site(folder=tmp_path, policy=policy(study))

    with pytest.raises(BudgetExceeded, match=r"declared epsilon 0\.5"):
        site.guard.begin(instruction(study), signed(study))

    assert site.journal.actions() == ["instruction.refused"]


def test_a_study_above_the_total_of_the_hospital_is_refused(tmp_path: Path) -> None:
    """Each study fits on its own: 0.6, 0.6 and 1.8 at delta 1e-4. Together they do not."""
    small = [a_study(epsilon=1.0), a_study(id="lung", epsilon=1.0)]
    large = a_study(id="liver", rounds=45, epsilon=1.9)
    limits = {"max_epsilon_per_study": 1.9, "max_epsilon_total": 1.9}
    site = Site(folder=tmp_path, policy=policy(*small, large, **limits, min_noise=2.0))
    for study in small:
        site.guard.begin(instruction(study), signed(study))

    with pytest.raises(BudgetExceeded, match="max_epsilon_total"):
        site.guard.begin(instruction(large), signed(large))

    assert len(site.ledger.accounts()) == 2


def test_bundles_and_objects_are_written_down(site: Site) -> None:
    assert site.guard.bundle_allowed(BUNDLE)
    assert not site.guard.bundle_allowed("0" * 64)
    site.guard.journal("out", "/api/v0/fleet/push-object", "object", "1" * 64, 4096)

    assert site.journal.events[-1] == (
        "object",
        {
            "direction": "out",
            "route": "/api/v0/fleet/push-object",
            "kind": "object",
            "sha256": "1" * 64,
            "bytes": 4096,
        },
    )
    assert site.journal.actions()[:2] == ["bundle.asked", "bundle.asked"]
