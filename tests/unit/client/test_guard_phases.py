"""A phase at the guard: permitted as a round, free of charge, over when its answer left."""

import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fedward_client.guard.client import Grant, GuardClient, StoredReply
from fedward_client.guard.main import start_guard
from fedward_common.canonical import sha256_hex
from fedward_common.errors import PolicyRefused, ProtocolError
from fedward_common.log.events import read_events
from fedward_common.wire import Envelope, Reply
from tests.support.guard_site import (
    GuardSite,
    instruction,
    make_site,
    object_ids,
    signed,
    update,
    update_shapes,
)
from tests.support.phase_sites import a_streaming_study

STUDY = a_streaming_study("phases")


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        yield Path(made)


@pytest.fixture
def site(folder: Path) -> Iterator[GuardSite]:
    made = make_site(folder / "north", STUDY)
    with closing(start_guard(made.settings, object_ids=object_ids, shapes=update_shapes)):
        yield made


def opened(guard: GuardClient, **changes: Any) -> Envelope:
    answer = guard.begin(instruction(STUDY, kind="phase", **changes), signed(STUDY))
    assert isinstance(answer, StoredReply)
    return answer.envelope


def actions(site: GuardSite) -> list[str]:
    return [event.action for event in read_events(site.settings.audit_path)]


def test_opening_a_phase_charges_nothing_and_its_answer_is_empty_and_signed(
    site: GuardSite,
) -> None:
    envelope = opened(site.worker)

    reply = Reply.parse(envelope.header)
    assert (reply.kind, reply.code, envelope.blobs) == ("phase", "", {})
    assert reply.payload_sha256 == sha256_hex(b"")
    assert "phase.opened" in actions(site)
    assert not {"round.charged", "study.reserved"} & set(actions(site))


def test_each_step_is_charged_by_itself(site: GuardSite) -> None:
    opened(site.worker)

    for number in (1, 2):
        grant = site.worker.begin(instruction(STUDY, number), signed(STUDY))
        assert isinstance(grant, Grant)
        site.worker.seal(grant.receipt, update())

    assert actions(site).count("round.charged") == 2


def test_a_phase_is_open_until_its_answer_leaves(site: GuardSite) -> None:
    assert not site.gateway.phase_open(STUDY.digest)
    envelope = opened(site.worker)
    assert site.gateway.phase_open(STUDY.digest)

    assert site.gateway.release("message-1", sorted(object_ids(envelope)))

    assert not site.gateway.phase_open(STUDY.digest)
    assert not site.gateway.release("message-2", sorted(object_ids(envelope)))


def test_an_older_answer_does_not_end_a_newer_phase(site: GuardSite) -> None:
    older = opened(site.worker, attempt=1)
    opened(site.worker, attempt=2)

    assert site.gateway.release("message-1", sorted(object_ids(older)))

    assert site.gateway.phase_open(STUDY.digest)


def test_a_phase_that_was_opened_cannot_be_sealed_with_anything_else(site: GuardSite) -> None:
    envelope = opened(site.worker)

    with pytest.raises(ProtocolError, match="receipt"):
        site.worker.seal(sha256_hex(envelope.header), update())


@pytest.mark.parametrize(
    "policy",
    [{"allow_phases": False}, {"paused": True}, {"min_noise": 9.0}],
    ids=["no phases here", "paused", "a study that the policy refuses"],
)
def test_a_policy_may_refuse_a_phase(folder: Path, policy: dict[str, Any]) -> None:
    site = make_site(folder / "north", STUDY, **policy)
    with closing(start_guard(site.settings, object_ids=object_ids, shapes=update_shapes)):
        with pytest.raises(PolicyRefused):
            opened(site.worker)

        assert not site.gateway.phase_open(STUDY.digest)


def test_without_phases_the_rounds_of_the_study_go_on_by_messages(folder: Path) -> None:
    site = make_site(folder / "north", STUDY, allow_phases=False)
    with closing(start_guard(site.settings, object_ids=object_ids, shapes=update_shapes)):
        assert isinstance(site.worker.begin(instruction(STUDY), signed(STUDY)), Grant)


def test_a_study_that_nobody_approved_opens_no_phase(folder: Path) -> None:
    site = make_site(folder / "north")
    guard = start_guard(site.settings, object_ids=object_ids, shapes=update_shapes)
    with closing(guard), pytest.raises(PolicyRefused):
        opened(site.worker)
