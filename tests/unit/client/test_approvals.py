"""What people said, in the guard's own order: nothing by default, each statement once."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fedward_client.approvals import KINDS, Standing
from fedward_client.settings import Approver
from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.errors import FedwardError, PolicyRefused, ProtocolError, SignatureRefused
from fedward_common.trust.signing import SigningKey
from fedward_common.trust.statements import Statement
from tests.support.guard_site import STEWARD, STEWARD_NAME, a_study, about, statement

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
STUDY = a_study()
ADA = Approver(name=STEWARD_NAME, public_key=STEWARD.public_hex)
BO_KEY = SigningKey.generate()
BO = Approver(name="Bo", public_key=BO_KEY.public_hex)


def a_standing(*approvers: Approver) -> Standing:
    return Standing(site="north", approvers=approvers or (ADA, BO))


def say(standing: Standing, said: Statement, *, at: datetime | None = None) -> None:
    standing.accept(standing.check(said.canonical), at=at or said.time)


def approves(**said: Any) -> Statement:
    return about(STUDY, "study-approval", **({"now": NOON} | said))


def revokes(**said: Any) -> Statement:
    return about(STUDY, "study-revocation", **({"now": NOON} | said))


def test_nothing_is_approved_or_paused_before_somebody_says_so() -> None:
    standing = a_standing()

    assert standing.approval(STUDY.digest) is None
    assert standing.pause is None
    assert not standing.allows_bundle("0" * 64)
    assert standing.plugins("anything") == frozenset()
    assert standing.history() == ()


def test_the_statement_that_the_guard_accepted_last_holds_whatever_the_signers_clock() -> None:
    """A revocation by somebody whose clock is a day behind still revokes."""
    standing = a_standing()
    say(standing, approves())

    say(standing, revokes(now=NOON - timedelta(days=1)), at=NOON + timedelta(minutes=1))

    assert standing.approval(STUDY.digest) is None
    revocation = standing.revocation(STUDY.digest)
    assert revocation is not None
    assert revocation.statement.person == STEWARD_NAME


def test_a_statement_is_accepted_once_so_an_old_approval_cannot_come_again() -> None:
    standing = a_standing()
    approval = approves()
    say(standing, approval)
    say(standing, revokes())

    with pytest.raises(PolicyRefused, match="accepted before"):
        standing.check(approval.canonical)


def test_an_approval_that_was_signed_before_a_revocation_and_never_used_is_refused() -> None:
    standing = a_standing()
    kept_back = approves(now=NOON - timedelta(hours=1))
    say(standing, approves())
    say(standing, revokes())

    with pytest.raises(PolicyRefused, match="found it older"):
        standing.check(kept_back.canonical)
    say(standing, approves(now=NOON + timedelta(seconds=1)))
    assert standing.approval(STUDY.digest) is not None


def test_a_revocation_dated_in_the_future_does_not_shut_out_later_approvals() -> None:
    standing = a_standing()
    say(standing, approves())
    say(standing, revokes(now=NOON + timedelta(days=9999)), at=NOON)

    say(standing, approves(now=NOON + timedelta(minutes=1)))

    assert standing.approval(STUDY.digest) is not None


def test_a_second_persons_revocation_ends_the_first_ones_approval() -> None:
    standing = a_standing()
    say(standing, approves())

    say(standing, revokes(person="Bo", key=BO_KEY))

    assert standing.approval(STUDY.digest) is None


def test_an_approval_is_of_one_digest() -> None:
    standing = a_standing()

    say(standing, approves())

    assert standing.approval(a_study(clip_norm=1.1).digest) is None


@pytest.mark.parametrize(
    "said",
    [
        approves(key=SigningKey.generate()),
        approves(person="Somebody"),
        approves(person="Bo"),
        approves(person="Bo", key=SigningKey.generate()),
    ],
    ids=["another key", "another name", "ada's key as bo", "bo's name and another key"],
)
def test_only_a_listed_person_with_their_own_key_is_heard(said: Statement) -> None:
    with pytest.raises(PolicyRefused, match="under \\[\\[approvers\\]\\]"):
        a_standing().check(said.canonical)


def test_a_statement_about_another_site_is_refused() -> None:
    with pytest.raises(ProtocolError, match="about site north"):
        a_standing().check(approves(site="south").canonical)


def test_any_changed_byte_is_refused() -> None:
    data = approves().canonical
    standing = a_standing()

    for place in range(0, len(data), 7):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(FedwardError):
            standing.check(changed)


def test_a_pause_with_the_signature_of_a_resume_is_refused() -> None:
    resume = statement("resume", now=NOON)
    forged = resume.model_copy(update={"kind": "pause"})

    with pytest.raises(SignatureRefused):
        a_standing().check(forged.canonical)


@pytest.mark.parametrize(
    "said",
    [
        statement("site-grant", now=NOON),
        statement("pause", now=NOON, why="holidays"),
        statement("study-approval", now=NOON),
        statement("study-approval", now=NOON, study=STUDY.digest),
        Statement.sign(
            "bundle-approval", {"site": "north", "bundle": 1}, person="Bo", key=BO_KEY, now=NOON
        ),
    ],
    ids=["kind", "a fact more", "no study", "a fact less", "a fact of another type"],
)
def test_a_statement_of_another_kind_or_with_other_facts_is_refused(said: Statement) -> None:
    with pytest.raises(ProtocolError):
        a_standing().check(said.canonical)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"null", b'{"kind":1}', b'{"kind":"pause"}', b"[" * 60_000]
)
def test_what_is_no_statement_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="expected"):
        a_standing().check(data)


def test_who_left_the_list_approves_nothing_any_more_and_stays_revoked_and_paused() -> None:
    """A person leaves the hospital: site.toml loses the name, the guard starts again."""
    approval = about(STUDY, person="Bo", key=BO_KEY, now=NOON)
    pause = statement("pause", person="Bo", key=BO_KEY, now=NOON)
    without_bo = a_standing(ADA)
    for said in (approval, pause):
        without_bo.accept(said, at=NOON)

    assert without_bo.approval(STUDY.digest) is None
    assert without_bo.pause is not None
    with pytest.raises(PolicyRefused):
        without_bo.check(approval.canonical)


def test_pause_and_resume_follow_each_other() -> None:
    standing = a_standing()
    found = []
    for minute, kind in enumerate(("pause", "pause", "resume", "pause", "resume")):
        say(standing, statement(kind, now=NOON + timedelta(minutes=minute)))
        found.append(standing.pause is not None)

    assert found == [True, True, False, True, False]


def test_a_plugin_is_approved_by_name_version_and_hash_together() -> None:
    standing = a_standing()
    facts = {"model": "unet", "package": "a-package", "version": "1.0", "sha256": "1" * 64}
    say(standing, statement("plugin-approval", now=NOON, **facts))

    assert standing.plugins("unet") == {("a-package", "1.0", "1" * 64)}
    say(standing, statement("plugin-revocation", now=NOON, **facts))
    assert standing.plugins("unet") == frozenset()


def test_every_kind_that_opens_has_one_that_closes_the_same() -> None:
    subjects: dict[str, int] = {}
    for about_what, _ in KINDS.values():
        subjects[about_what] = subjects.get(about_what, 0) + 1

    assert set(subjects.values()) == {2}


def test_a_statement_without_a_signature_is_refused() -> None:
    unsigned = approves().model_dump(mode="json") | {"signature": ""}

    with pytest.raises(ProtocolError):
        a_standing().check(canonical_json(unsigned))
    assert sha256_hex(canonical_json(unsigned)) != approves().sha256
