"""Whom a run may ask: members under the node keys that the signed study names."""

from dataclasses import replace

import pytest

from fedward_common.ids import SiteId
from fedward_common.study.spec import StudySpec
from fedward_server.members import is_named_member
from fedward_server.ports import SiteRecord, SiteStatus
from tests.support.guard_site import KEYS, a_study
from tests.support.pki import Authority
from tests.support.roster import InMemoryRegistry

NAME = SiteId("north")


@pytest.fixture(scope="module")
def records() -> tuple[SiteRecord, SiteRecord]:
    """The record of north, and of north when it enrolled again under other keys."""
    authority = Authority()
    return (
        authority.site(NAME).record,
        replace(authority.site(SiteId("other")).record, site_id=NAME),
    )


@pytest.fixture(scope="module")
def study(records: tuple[SiteRecord, SiteRecord]) -> StudySpec:
    """A study that names north's first node key."""
    plain = a_study(sites=KEYS)
    named = {"node_key_sha256": records[0].node_key_sha256}
    sites = tuple(s.model_copy(update=named if s.id == NAME else {}) for s in plain.sites)
    return plain.model_copy(update={"sites": sites})


def test_a_member_under_the_key_that_the_study_names_may_be_asked(
    records: tuple[SiteRecord, SiteRecord], study: StudySpec
) -> None:
    assert is_named_member(InMemoryRegistry(records[0]), study, NAME)


def test_who_enrolled_again_under_other_keys_or_was_revoked_may_not(
    records: tuple[SiteRecord, SiteRecord], study: StudySpec
) -> None:
    first, again = records
    revoked = replace(first, status=SiteStatus.REVOKED)

    for registry in (InMemoryRegistry(again), InMemoryRegistry(revoked), InMemoryRegistry()):
        assert not is_named_member(registry, study, NAME)
    assert not is_named_member(InMemoryRegistry(first), study, SiteId("elsewhere"))
