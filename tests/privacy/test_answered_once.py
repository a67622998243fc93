"""One charge, one answer: also for an operator who frees space or puts an older copy back."""

import shutil
from pathlib import Path

import pytest

from fedward_client.guard.client import Grant
from fedward_client.guard.main import start_guard
from fedward_common.errors import LedgerError
from tests.support.guard_site import (
    a_study,
    instruction,
    make_site,
    object_ids,
    signed,
    update,
    update_shapes,
)

STUDY = a_study()


def test_a_guard_whose_records_of_answers_are_gone_does_not_start(tmp_path: Path) -> None:
    """It granted the answered round again: fresh draws and noise for the charge of before."""
    site = make_site(tmp_path, STUDY)
    guard = start_guard(site.settings, object_ids=object_ids, shapes=update_shapes)
    grant = site.worker.begin(instruction(STUDY), signed(STUDY))
    assert isinstance(grant, Grant)
    site.worker.seal(grant.receipt, update())
    guard.close()

    shutil.rmtree(site.settings.replies_folder)

    with pytest.raises(LedgerError, match="answered twice"):
        start_guard(site.settings, object_ids=object_ids, shapes=update_shapes)
