"""A guard killed, or on a full disk, at every file operation of a round: one charge, one answer."""

import errno
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fedward_client.guard.client import Grant, StoredReply
from fedward_client.guard.main import RunningGuard, start_guard
from fedward_client.ports import Passing
from fedward_client.settings import load_site_settings
from fedward_common.errors import FedwardError
from fedward_common.log.events import read_events, verify
from fedward_common.trust.private_files import DRAFT
from fedward_common.wire import Envelope
from tests.support.guard_site import (
    GuardSite,
    a_study,
    instruction,
    make_site,
    object_ids,
    signed,
    update,
    update_shapes,
)

STUDY = a_study()
ASKED = instruction(STUDY)
STEPS = ("open", "os.rename", "os.remove", "os.truncate", "sqlite3.connect")


def opened(folder: Path) -> RunningGuard:
    site = GuardSite(folder=folder, settings=load_site_settings(folder / "site.toml"))
    return start_guard(site.settings, object_ids=object_ids, shapes=update_shapes)


def whole_round(guard: RunningGuard) -> Envelope:
    """Begin, train, seal, release, journal: what worker and gateway ask in one round."""
    begun = guard.service.begin(ASKED, signed(STUDY))
    if isinstance(begun, Grant):
        sealed = guard.service.seal(begun.receipt, update())
    else:
        assert isinstance(begun, StoredReply)
        sealed = begun.envelope
    ids = sorted(object_ids(sealed))
    assert guard.service.release("m1", ids)
    for one in ids:
        guard.service.journal(
            Passing(direction="out", route="push-object", kind="object", sha256=one, bytes=10)
        )
    return sealed


def killed_at(folder: Path, number: int) -> bool:
    """Whether a guard in a process of its own was killed at its file operation of that number."""
    child = os.fork()
    if child == 0:
        seen = 0
        real = os.fsync

        def count() -> None:
            nonlocal seen
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

        def synced(descriptor: int) -> None:
            count()
            real(descriptor)
            count()

        try:
            guard = opened(folder)
            os.fsync = synced  # type: ignore[assignment]
            sys.addaudithook(lambda event, _: count() if event in STEPS else None)
            whole_round(guard)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.fixture
def template() -> Iterator[Path]:
    # A short path: the guard's sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="kg") as name:
        make_site(Path(name) / "t", STUDY)
        yield Path(name) / "t"


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_a_guard_killed_at_any_file_operation_charges_once_and_answers_once(
    template: Path, stride: int
) -> None:
    number, killed = 0, True
    while killed:
        number += stride
        folder = template.with_name(str(number))
        shutil.copytree(template, folder)
        killed = killed_at(folder, number)

        guard = opened(folder)
        try:
            first = whole_round(guard)
            again = guard.service.begin(ASKED, signed(STUDY))
            (account,) = guard.service.ledger.accounts()
        finally:
            guard.close()

        journal = folder / "state" / "audit" / "site.jsonl"
        verify(journal)
        charged = [e for e in read_events(journal) if e.action == "round.charged"]
        assert account.charged("round") == 1
        assert [e.fields["repeated"] for e in charged].count(False) <= 1
        assert isinstance(again, StoredReply)
        assert again.envelope == first
        assert not [p for p in (folder / "state").rglob(".*") if DRAFT.fullmatch(p.name)]
        shutil.rmtree(folder)

    assert number > 20


def test_a_guard_whose_disk_is_full_at_any_write_refuses_and_goes_on_when_there_is_space(
    template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, full = 0, True
    real = os.fsync
    while full:
        number += 1
        folder = template.with_name(str(number))
        shutil.copytree(template, folder)
        guard = opened(folder)
        left = number

        def synced(descriptor: int) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", synced)
        try:
            with suppress(FedwardError):
                whole_round(guard)
            full = left <= 0
            monkeypatch.setattr(os, "fsync", real)
            guard.close()
            guard = opened(folder)
            whole_round(guard)
            (account,) = guard.service.ledger.accounts()
        finally:
            monkeypatch.setattr(os, "fsync", real)
            guard.close()

        verify(folder / "state" / "audit" / "site.jsonl")
        assert account.charged("round") == 1
        assert not [p for p in (folder / "state").rglob(".*") if DRAFT.fullmatch(p.name)]
        shutil.rmtree(folder)

    assert number > 8
