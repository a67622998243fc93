"""What the guard decides, without sockets: the real service over the fakes of its ports."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fedward_client.approvals import Standing
from fedward_client.guard.client import Grant, StoredReply
from fedward_client.guard.replies import Replies
from fedward_client.guard.service import GuardService
from fedward_client.guard.shelf import StudyShelf
from fedward_client.guard.statements import Statements
from fedward_client.guard.states import States
from fedward_client.guard.traffic import Traffic
from fedward_client.policy import Paused, SitePolicy
from fedward_client.ports import Passing
from fedward_client.settings import Approver, PolicyRules
from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.errors import BudgetExceeded, LedgerError, PolicyRefused, ProtocolError
from fedward_common.ids import SiteId
from fedward_common.study.spec import StudySpec
from fedward_common.trust.signing import verify
from fedward_common.wire import Reply
from tests.support.guard_site import (
    BUNDLE,
    KEYS,
    STEWARD,
    STEWARD_NAME,
    a_study,
    about,
    counts,
    instruction,
    object_ids,
    signed,
    site_values,
    statement,
    stopping_study,
    update,
    update_shapes,
)
from tests.support.ledger_fakes import InMemoryLedger, MemoryJournal, Ticking

STUDY = a_study()
BEFORE = datetime(2025, 12, 31, tzinfo=UTC)


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
        standing = self.policy.standing
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
            statements=Statements(
                folder=self.folder.parent / "approvals",
                standing=standing,
                log=self.journal,
                clock=self.clock,
            ),
            shelf=StudyShelf(
                folder=self.folder.parent / "studies",
                approved=lambda digest: standing.approval(digest) is not None,
            ),
            traffic=Traffic(rules=self.policy.rules, clock=self.clock),
            exclusions=lambda: None,
            plugin=lambda study: None,
            states=States(folder=self.folder.parent / "site-state"),
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
    rules = PolicyRules.model_validate(site_values(**changes)["policy"])
    standing = Standing(
        site="north", approvers=[Approver(name=STEWARD_NAME, public_key=STEWARD.public_hex)]
    )
    for study in studies:
        standing.accept(standing.check(about(study, now=BEFORE).canonical), at=BEFORE)
    return SitePolicy(rules=rules, source="site.toml", standing=standing)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(folder=tmp_path / "replies", policy=policy(STUDY))


def test_a_payload_whose_record_was_never_written_is_gone_after_a_restart(site: Site) -> None:
    """Killed between the two files: protected bytes that nothing names stay for no 24 hours."""
    kept = site.guard.seal(site.receipt(), update())
    orphan = site.folder / f"{'a' * 64}.payload"
    orphan.write_bytes(update())

    site.restarted()

    assert not orphan.exists()
    assert site.guard.begin(instruction(STUDY), signed(STUDY)) == StoredReply(envelope=kept)


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
        "study.seen",
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

    with pytest.raises(ProtocolError, match="final model's evaluation"):
        site.guard.begin(instruction(STUDY, 4, kind="evaluate"), signed(STUDY))
    with pytest.raises(ProtocolError, match="A round is answered once"):
        site.guard.begin(instruction(STUDY, 5, attempt=1, kind="evaluate"), signed(STUDY))

    assert Reply.parse(envelope.header).kind == "evaluate"
    assert site.ledger.accounts()[0].charged("release") == 1


def test_each_validation_is_answered_once_and_none_that_is_not_declared(tmp_path: Path) -> None:
    study = stopping_study(epsilon=4.0)
    limits = {"max_epsilon_per_study": 9.0, "max_epsilon_total": 9.0}
    site = Site(folder=tmp_path / "replies", policy=policy(study, max_evaluations=3, **limits))

    for number in (2, 4, 5):
        grant = site.guard.begin(instruction(study, number, kind="evaluate"), signed(study))
        assert isinstance(grant, Grant)
        site.guard.seal(grant.receipt, counts())
    for number in (1, 3):
        with pytest.raises(ProtocolError, match="a validation that the study declares"):
            site.guard.begin(instruction(study, number, kind="evaluate"), signed(study))
    with pytest.raises(ProtocolError, match="A round is answered once"):
        site.guard.begin(instruction(study, 4, attempt=1, kind="evaluate"), signed(study))

    assert site.ledger.accounts()[0].charged("release") == 3


def test_a_study_without_evaluation_cannot_be_evaluated(tmp_path: Path) -> None:
    study = a_study(releases=0)
    site = Site(folder=tmp_path / "replies", policy=policy(study))

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
    envelope = site.guard.refuse(instruction(STUDY), "data")
    ids = sorted(object_ids(envelope))

    reply = Reply.parse(envelope.header)
    assert (reply.kind, reply.code, envelope.blobs) == ("refusal", "data", {})
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
    first = site.guard.refuse(instruction(STUDY), "data")

    assert site.guard.refuse(instruction(STUDY), "model") == first


def test_a_worker_says_no_word_that_only_the_guard_can_find_out(site: Site) -> None:
    """Each word that a hijacked worker may choose is a way out for bits."""
    said = site.guard.refuse(instruction(STUDY), "budget")

    assert Reply.parse(said.header).code == "internal"


def test_where_the_guard_said_no_the_word_is_the_guards(site: Site) -> None:
    site.policy = policy(STUDY, min_noise=9.0)
    guard = site.restarted()
    with pytest.raises(PolicyRefused, match="min_noise"):
        guard.begin(instruction(STUDY), signed(STUDY))

    said = guard.refuse(instruction(STUDY), "data")

    assert Reply.parse(said.header).code == "policy"


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
    site = Site(folder=tmp_path / "replies", policy=policy(study))

    with pytest.raises(BudgetExceeded, match=r"declared epsilon 0\.5"):
        site.guard.begin(instruction(study), signed(study))

    assert site.journal.actions() == ["study.seen", "instruction.refused"]


def test_a_study_above_the_total_of_the_hospital_is_refused(tmp_path: Path) -> None:
    """Each study fits on its own: 0.6, 0.6 and 1.8 at delta 1e-4. Together they do not."""
    small = [a_study(epsilon=1.0), a_study(id="lung", epsilon=1.0)]
    large = a_study(id="liver", rounds=45, epsilon=1.82)
    limits = {"max_epsilon_per_study": 1.82, "max_epsilon_total": 1.82}
    site = Site(folder=tmp_path / "replies", policy=policy(*small, large, **limits, min_noise=2.0))
    for study in small:
        site.guard.begin(instruction(study), signed(study))

    with pytest.raises(BudgetExceeded, match="max_epsilon_total"):
        site.guard.begin(instruction(large), signed(large))

    assert len(site.ledger.accounts()) == 2


def test_bundles_and_objects_are_written_down(site: Site) -> None:
    assert site.guard.bundle_allowed(BUNDLE)
    assert not site.guard.bundle_allowed("0" * 64)
    site.guard.journal(passing("1" * 64, kind="hello", run="77", certificate_sha256="2" * 64))

    assert site.journal.events[-1] == (
        "object",
        {
            "direction": "out",
            "route": "push-object",
            "kind": "hello",
            "sha256": "1" * 64,
            "bytes": 4096,
            "run": "77",
            "certificate_sha256": "2" * 64,
        },
    )
    assert site.journal.actions()[:2] == ["bundle.asked", "bundle.asked"]


def passing(sha256: str, *, bytes: int = 4096, kind: str = "object", **more: Any) -> Passing:
    return Passing(
        direction="out", route="push-object", kind=kind, sha256=sha256, bytes=bytes, **more
    )


def say(site: Site, kind: str) -> None:
    """What the approver says about the study, or the site, now."""
    now = site.clock()
    said = about(STUDY, kind, now=now) if "study" in kind else statement(kind, now=now)
    site.guard.record(said.canonical)


def last_held(site: Site) -> tuple[str, object, object]:
    action, fields = site.journal.events[-1]
    return action, fields["code"], fields["reason"]


# What the policy says is asked again for every message that goes out.


def test_an_object_of_a_released_reply_is_written_down_with_its_study_and_round(
    site: Site,
) -> None:
    ids = sorted(object_ids(site.guard.seal(site.receipt(3), update())))
    assert site.guard.release("a" * 64, ids)

    for sha256 in (*ids, "a" * 64):
        site.guard.journal(passing(sha256))

    written = [fields for action, fields in site.journal.events if action == "object"]
    assert {(fields["study"], fields["round"]) for fields in written} == {(STUDY.digest, 3)}
    assert len(written) == len(ids) + 1


def test_a_pause_holds_a_sealed_reply_and_the_rest_of_one_that_is_on_its_way(site: Site) -> None:
    first = sorted(object_ids(site.guard.seal(site.receipt(1), update())))
    assert site.guard.release("message-1", first)
    site.guard.journal(passing(first[0]))
    second = sorted(object_ids(site.guard.seal(site.receipt(2), update(0.25))))

    say(site, "pause")

    with pytest.raises(Paused):
        site.guard.journal(passing(first[1]))
    assert last_held(site)[:2] == ("object.held", "paused")
    with pytest.raises(Paused):
        site.guard.release("message-2", second)
    action, code, why = last_held(site)
    assert (action, code) == ("reply.held", "paused")
    assert STEWARD_NAME in str(why)
    with pytest.raises(Paused):
        site.guard.begin(instruction(STUDY, 3), signed(STUDY))
    assert site.charged == 2


def test_what_a_pause_held_leaves_after_the_end_of_the_pause(site: Site) -> None:
    ids = sorted(object_ids(site.guard.seal(site.receipt(), update())))
    say(site, "pause")
    with pytest.raises(Paused):
        site.guard.release("message-1", ids)

    say(site, "resume")

    assert site.guard.release("message-1", ids)
    site.guard.journal(passing(ids[0]))


def test_a_task_that_runs_when_somebody_pauses_seals_nothing_and_says_paused(site: Site) -> None:
    receipt = site.receipt()
    say(site, "pause")

    with pytest.raises(Paused):
        site.guard.seal(receipt, update())
    said = site.guard.refuse(instruction(STUDY), "internal")

    assert Reply.parse(said.header).code == "paused"
    # The one word leaves, so that the coordinator need not wait for its deadline.
    assert site.guard.release("message-1", sorted(object_ids(said)))
    site.guard.journal(passing(sorted(object_ids(said))[0]))


def test_a_pause_holds_what_belongs_to_no_message_that_the_guard_knows(site: Site) -> None:
    say(site, "pause")

    for kind in ("object", "reply", "error-reply"):
        with pytest.raises(Paused):
            site.guard.journal(passing("1" * 64, kind=kind))
    # A certificate is renewed all the same: it says nothing of a study.
    site.guard.journal(passing("1" * 64, kind="renewal"))


def test_a_pause_outlives_the_guards_process(site: Site) -> None:
    ids = sorted(object_ids(site.guard.seal(site.receipt(), update())))
    say(site, "pause")

    guard = site.restarted()

    with pytest.raises(Paused):
        guard.release("message-1", ids)


def test_a_revocation_holds_a_reply_that_was_sealed_before_it(site: Site) -> None:
    ids = sorted(object_ids(site.guard.seal(site.receipt(), update())))
    say(site, "study-revocation")

    with pytest.raises(PolicyRefused, match="revoked digest"):
        site.guard.release("message-1", ids)

    assert last_held(site)[1] == "not-approved"


def test_a_revoked_study_starts_no_round_and_may_be_approved_again(site: Site) -> None:
    say(site, "study-revocation")
    with pytest.raises(PolicyRefused):
        site.receipt()

    say(site, "study-approval")

    assert site.receipt() != ""


def test_an_old_approval_that_comes_again_after_a_revocation_is_refused(site: Site) -> None:
    old = about(STUDY, now=site.clock()).canonical
    site.guard.record(old)
    say(site, "study-revocation")

    with pytest.raises(PolicyRefused, match="accepted before"):
        site.guard.record(old)
    with pytest.raises(PolicyRefused):
        site.receipt()
    assert site.journal.actions().count("statement.refused") == 1


def test_ethics_that_ended_between_training_and_sending_hold_the_reply(tmp_path: Path) -> None:
    study = a_study().model_copy(update={"ethics_valid_until": "2026-01-01"})
    site = Site(folder=tmp_path / "replies", policy=policy(study))
    grant = site.guard.begin(instruction(study), signed(study))
    assert isinstance(grant, Grant)
    ids = sorted(object_ids(site.guard.seal(grant.receipt, update())))

    site.clock.skip(days=1)

    with pytest.raises(PolicyRefused, match="valid until 2026-01-01"):
        site.guard.release("message-1", ids)
    with pytest.raises(PolicyRefused, match="valid until 2026-01-01"):
        site.guard.begin(instruction(study, 2), signed(study))
    assert site.charged == 1


def test_outside_its_hours_a_site_neither_starts_nor_sends(site: Site) -> None:
    site.policy = policy(STUDY, allowed_hours=["00:00-01:00"])
    guard = site.restarted()
    ids = sorted(object_ids(guard.seal(site.receipt(), update())))
    site.clock.skip(hours=2)

    with pytest.raises(PolicyRefused, match="allowed_hours"):
        guard.release("message-1", ids)
    with pytest.raises(PolicyRefused, match="allowed_hours"):
        site.receipt(2)
    assert last_held(site)[1] == "hours"


def test_bytes_beyond_the_limit_of_a_round_stay_here(site: Site) -> None:
    site.policy = policy(STUDY, max_bytes_per_round=5000)
    guard = site.restarted()
    ids = sorted(object_ids(guard.seal(site.receipt(1), update())))
    assert guard.release("message-1", ids)
    guard.journal(passing(ids[0]))

    with pytest.raises(PolicyRefused, match="max_bytes_per_round"):
        guard.journal(passing(ids[1]))
    # Another round has its own.
    other = sorted(object_ids(guard.seal(site.receipt(2), update(0.25))))
    assert guard.release("message-2", other)
    guard.journal(passing(next(one for one in other if one not in ids)))


def test_bytes_beyond_the_limit_of_a_day_stay_here_until_the_next(site: Site) -> None:
    site.policy = policy(STUDY, max_bytes_per_day=4200)
    guard = site.restarted()
    guard.journal(passing("1" * 64, kind="renewal"))
    ids = sorted(object_ids(guard.seal(site.receipt(), update())))

    with pytest.raises(PolicyRefused, match="max_bytes_per_day"):
        guard.release("message-1", ids)
    site.clock.skip(days=1)

    assert guard.release("message-1", ids)


def test_a_reply_whose_study_is_not_known_any_more_does_not_leave(site: Site) -> None:
    ids = sorted(object_ids(site.guard.seal(site.receipt(), update())))
    for path in (site.folder.parent / "studies").glob("*.json"):
        path.unlink()
    guard = site.restarted()

    with pytest.raises(PolicyRefused, match="folder of studies"):
        guard.release("message-1", ids)


def test_of_studies_that_nobody_approved_only_the_latest_are_kept(site: Site) -> None:
    site.receipt()
    for number in range(20):
        study = a_study(id=f"s{number}")
        with pytest.raises(PolicyRefused):
            site.guard.begin(instruction(study), signed(study))

    kept = {path.stem for path in (site.folder.parent / "studies").glob("*.json")}

    assert STUDY.digest in kept
    assert len(kept) <= 17


def test_an_approval_may_bring_its_study_and_no_other(site: Site) -> None:
    study = a_study(id="lung")
    now = site.clock()

    with pytest.raises(ProtocolError, match="one in the statement"):
        site.guard.record(about(study, now=now).canonical, signed(STUDY))
    site.guard.record(about(study, now=now).canonical, signed(study))

    assert site.guard.shelf.find(study.digest) == study
