"""A hospital restored from a backup with everything the guard compares: the coordinator's word."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedward_client.guard.client import Grant, StoredReply
from fedward_client.guard.main import RunningGuard, start_guard
from fedward_common.errors import LedgerError, ProtocolError
from fedward_common.wire import KnownRows, Reply
from tests.support.guard_site import (
    GuardSite,
    a_study,
    instruction,
    make_site,
    object_ids,
    signed,
    update,
)

STUDY, OTHER = a_study(), a_study(id="other", noise_multiplier=6.0)


@pytest.fixture
def site(tmp_path: Path) -> GuardSite:
    return make_site(tmp_path / "site", STUDY, OTHER)


def started(site: GuardSite) -> RunningGuard:
    return start_guard(site.settings, object_ids=object_ids)


def answered(site: GuardSite, number: int) -> Reply:
    grant = site.worker.begin(instruction(STUDY, number), signed(STUDY))
    assert isinstance(grant, Grant)
    return Reply.parse(site.worker.seal(grant.receipt, update()).header)


def rows(**known: str | None) -> bytes:
    return KnownRows(rows={name: row for name, row in known.items() if row}).canonical


@pytest.fixture
def restored(site: GuardSite, tmp_path: Path) -> Iterator[tuple[RunningGuard, str]]:
    """A guard whose whole state is that after round 1, and the row it showed after round 2."""
    running = started(site)
    answered(site, 1)
    running.close()
    state = site.settings.folders.state
    shutil.copytree(state, tmp_path / "backup")
    running = started(site)
    shown = answered(site, 2).ledger_sha256
    running.close()
    shutil.rmtree(state)
    shutil.copytree(tmp_path / "backup", state)
    running = started(site)
    assert shown is not None
    yield running, shown
    running.close()


def test_a_restored_ledger_is_refused_by_its_own_guard_before_anything_is_charged(
    site: GuardSite, restored: tuple[RunningGuard, str]
) -> None:
    """Another study would carry the old copy past the row that was seen: it is asked for none."""
    running, shown = restored
    before = running.service.ledger.head()

    for study, number in ((STUDY, 2), (OTHER, 1), (STUDY, 1)):
        with pytest.raises(LedgerError, match="older ledger was put back"):
            site.worker.begin(instruction(study, number), signed(study), rows(north=shown))

    assert running.service.ledger.head() == before


def test_the_refusal_s_word_is_ledger(site: GuardSite, restored: tuple[RunningGuard, str]) -> None:
    _, shown = restored
    with pytest.raises(LedgerError):
        site.worker.begin(instruction(STUDY, 2), signed(STUDY), rows(north=shown))

    refusal = Reply.parse(site.worker.refuse(instruction(STUDY, 2), "internal").header)

    assert (refusal.kind, refusal.code) == ("refusal", "ledger")


def test_a_ledger_that_went_on_has_every_row_that_was_seen(site: GuardSite) -> None:
    running = started(site)
    first = answered(site, 1)
    answered(site, 2)

    known = rows(north=first.ledger_sha256, south="0" * 64)
    again = site.worker.begin(instruction(STUDY, 2), signed(STUDY), known)
    grant = site.worker.begin(instruction(STUDY, 3), signed(STUDY), known)

    running.close()
    assert isinstance(grant, Grant)
    assert isinstance(again, StoredReply)


@pytest.mark.parametrize("damaged", [b"{}", b'{"rows":{"north":"1"}}', b'{"rows":[]}'])
def test_what_is_no_list_of_known_rows_is_refused(site: GuardSite, damaged: bytes) -> None:
    running = started(site)

    with pytest.raises(ProtocolError, match="KnownRows"):
        site.worker.begin(instruction(STUDY), signed(STUDY), damaged)

    assert running.service.ledger.accounts() == ()
    running.close()
