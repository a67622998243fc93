"""Attacks on a site's gate that a review of guard, approvals and data found open: closed now."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedward_client.cli import app
from fedward_client.data.tabular import CsvSource
from fedward_client.data_entries import CsvFile
from fedward_client.guard.client import Grant
from fedward_client.guard.main import RunningGuard, start_guard
from fedward_client.guard.memory import Remembered
from fedward_client.guard.statements import Statements
from fedward_client.policy import NotApproved, SitePolicy
from fedward_client.ports import Passing
from fedward_client.studies import study_report
from fedward_client.study_text import diff_text, list_text, study_text
from fedward_common.errors import ConfigError, DataError, LedgerError, PolicyRefused
from fedward_common.log.events import Event, utc_now
from fedward_common.processes import offline_environment
from fedward_common.study.spec import StudySpec
from fedward_common.study.statistics import ColumnStatistics, ReleasesOnly
from tests.support.guard_site import (
    GuardSite,
    a_study,
    about,
    carry,
    instruction,
    make_site,
    object_ids,
    signed,
    statement,
    update,
)

STUDY = a_study()
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def site(tmp_path: Path) -> GuardSite:
    return make_site(tmp_path, STUDY)


@pytest.fixture
def guard(site: GuardSite) -> Iterator[RunningGuard]:
    running = start_guard(site.settings, object_ids=object_ids)
    yield running
    running.close()


def receipt(site: GuardSite, number: int = 1) -> str:
    grant = site.worker.begin(instruction(STUDY, number), signed(STUDY))
    assert isinstance(grant, Grant)
    return grant.receipt


def out(sha256: str, kind: str) -> Passing:
    return Passing(direction="out", route="push-object", kind=kind, sha256=sha256, bytes=12)


def by_another_column(study: StudySpec, column: str = "visit") -> StudySpec:
    """The same study, but a patient is whoever has the same `column`."""
    data = study.data.model_dump() | {"patient_key": column}
    return study.model_copy(update={"data": type(study.data).model_validate(data)})


# A lead that chooses who is one patient.


def test_a_study_that_takes_another_column_for_the_patient_is_refused(site: GuardSite) -> None:
    """Its epsilon would be per visit, and nobody on the list of exclusions would be left out."""
    study = by_another_column(STUDY)
    policy = SitePolicy.of(site.settings)

    found = [str(one) for one in policy.objections(study, now=NOW)]

    assert any("for who is one patient, patient_key in [[data]]" in one for one in found)
    assert not any("one patient" in str(one) for one in policy.objections(STUDY, now=NOW))


def test_an_excluded_patient_does_not_come_back_by_another_column(tmp_path: Path) -> None:
    path = tmp_path / "patients.csv"
    path.write_text("patient,visit,age,pressure,disease\np1,v1,60,120,0\np2,v2,61,121,1\n")
    table = CsvFile(path=path, patient_key="patient")
    source = CsvSource([table], excluded=lambda: frozenset({"p1"}))

    assert [row["patient"] for row in source.rows(STUDY)] == ["p2"]
    with pytest.raises(DataError, match="who is one patient"):
        source.rows(by_another_column(STUDY))


def test_a_list_of_exclusions_needs_the_column_that_its_ids_stand_in(tmp_path: Path) -> None:
    table = {"kind": "csv", "path": "patients.csv"}

    with pytest.raises(ConfigError, match="patient_key"):
        make_site(tmp_path, top={"exclusions": "exclusions.csv", "data": [table]})


def test_a_line_of_a_patients_note_is_not_silently_a_row_of_another_patient(
    tmp_path: Path,
) -> None:
    """What `fedward-client rehearse` reads: the engineer hears of it before a study runs."""
    path = tmp_path / "patients.csv"
    path.write_text('note,patient,age,pressure,disease\n"x\ny,p9,60,120,0\n",p1,61,121,1\n')
    source = CsvSource([CsvFile(path=path)])

    with pytest.raises(DataError, match="line break"):
        source.checked_records(STUDY, part="train")


# Texts of a study before the eyes of who approves it.


def test_no_text_of_a_study_writes_over_what_its_approver_is_shown(site: GuardSite) -> None:
    forged = "Heart\n  epsilon 0.01 (admission)\x1b[8m\x1b[2K\r\u202e\x9b1A"
    study = STUDY.model_copy(update={"title": forged})
    report = study_report(site.settings, study, now=NOW)
    lists = [{"digest": "0" * 64, "status": "waiting", "by": None, "id": "heart", "title": forged}]
    change = {"field": "title", "before": "Heart", "after": forged}

    shown = [
        study_text(report),
        list_text(lists),
        diff_text({"id": "heart", "before": "1", "after": "2", "changes": [change]}),
    ]

    for text in shown:
        assert all(line.isprintable() for line in text.split("\n"))
        assert not any(line.startswith("  epsilon 0.01") for line in text.split("\n"))


def test_a_study_is_approved_by_more_digits_than_a_coordinator_can_search_for(
    site: GuardSite,
) -> None:
    """It chooses what lies on the shelf; 8 digits of a digest are found in an hour."""
    folder = site.settings.studies_folder
    folder.mkdir(parents=True)
    (folder / f"{STUDY.digest}.json").write_bytes(signed(STUDY))
    asked = ["--config", str(site.settings.source), "--approver", "x", "--key", "none.pem"]

    def approve(digits: int) -> str:
        command = ["studies", "approve", STUDY.digest[:digits], *asked]
        return str(CliRunner().invoke(app, command).exception)

    assert "at least 32 digits" in approve(31)
    assert "key file none.pem" in approve(32)


# A site's own minimum.


@pytest.mark.parametrize(("of_the_study", "refused"), [(1, True), (9, True), (10, False)])
def test_a_study_below_the_sites_minimum_cell_size_is_refused(
    site: GuardSite, of_the_study: int, refused: bool
) -> None:
    release = ColumnStatistics(
        columns=("age",),
        statistics=("count",),
        noise_multiplier=5.0,
        min_cell_size=of_the_study,
    )
    plan = ReleasesOnly(epsilon=1.0, delta=1e-4)
    study = STUDY.model_copy(update={"dp": plan, "releases": (release,)})

    found = [str(one) for one in SitePolicy.of(site.settings).objections(study, now=NOW)]

    assert any("min_cell_size" in one for one in found) is refused


# Objects of no message.


@pytest.mark.usefixtures("guard")
def test_an_object_of_no_message_that_the_guard_let_out_does_not_leave(site: GuardSite) -> None:
    for kind in ("object", "reply"):
        with pytest.raises(PolicyRefused, match="of no message"):
            site.gateway.journal(out("1" * 64, kind))


@pytest.mark.usefixtures("guard")
def test_the_object_of_an_error_that_flower_fixes_leaves_after_its_line(site: GuardSite) -> None:
    site.gateway.journal(out("2" * 64, "error-reply"))

    site.gateway.journal(out("2" * 64, "object"))


def test_a_restart_does_not_let_a_revoked_studys_objects_out(
    site: GuardSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More messages than a guard remembers: the objects of the oldest were anybody's."""
    monkeypatch.setattr("fedward_client.guard.release.MAX_MESSAGES", 1)
    running = start_guard(site.settings, object_ids=object_ids)
    first = sorted(object_ids(site.worker.seal(receipt(site, 1), update())))
    second = sorted(object_ids(site.worker.seal(receipt(site, 2), update(0.25))))
    assert site.gateway.release("message-1", first)
    assert site.gateway.release("message-2", second)
    site.admin.record(about(STUDY, "study-revocation").canonical)
    running.close()
    running = start_guard(site.settings, object_ids=object_ids)

    for sha256 in (*first, *second):
        with pytest.raises(PolicyRefused):
            site.gateway.journal(out(sha256, "object"))

    running.close()


@pytest.mark.usefixtures("guard")
def test_an_approval_that_is_dated_ahead_is_refused(site: GuardSite) -> None:
    """Kept back, it would be newer than any revocation until then."""
    later = datetime.now(UTC) + timedelta(days=1)

    for said in (about(a_study(id="lung"), now=later), statement("resume", now=later)):
        with pytest.raises(PolicyRefused, match="signed by now"):
            site.admin.record(said.canonical)

    site.admin.record(statement("pause", now=later).canonical)


# Somebody who can write where the site is started.


def test_a_module_in_the_working_folder_is_not_what_a_process_of_the_site_runs(
    tmp_path: Path,
) -> None:
    for name in ("argparse", "structlog", "asyncio"):
        (tmp_path / f"{name}.py").write_text("import os; os._exit(77)")

    done = subprocess.run(
        [sys.executable, "-m", "fedward_common.bridge", "--help"],
        cwd=tmp_path,
        env=offline_environment(),
        capture_output=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 0


# Somebody who edits state/, and disks that are full.


def test_without_the_journal_a_revoked_study_does_not_come_back(site: GuardSite) -> None:
    """Journal and revocation deleted together: the approval alone would be left."""
    running = start_guard(site.settings, object_ids=object_ids)
    receipt(site)
    revoked = site.admin.record(about(STUDY, "study-revocation").canonical)
    running.close()
    (site.settings.approvals_folder / f"{revoked}.json").unlink()
    shutil.rmtree(site.settings.audit_path.parent)

    with pytest.raises(LedgerError, match="journal"):
        start_guard(site.settings, object_ids=object_ids)


class FullDisk:
    """A journal that takes no line."""

    def append(self, action: str, **fields: object) -> None:
        raise LedgerError("log: expected to write an event, found no space")


def test_an_approval_that_failed_is_not_in_force_after_the_next_start(site: GuardSite) -> None:
    study = a_study(id="lung")
    running = start_guard(site.settings, object_ids=object_ids)
    statements = running.service.statements
    failing = Statements(
        folder=statements.folder, standing=statements.standing, log=FullDisk(), clock=utc_now
    )
    with pytest.raises(LedgerError):
        failing.record(about(study).canonical)
    running.close()

    running = start_guard(site.settings, object_ids=object_ids)

    with pytest.raises(NotApproved):
        site.worker.begin(instruction(study), signed(study))
    running.close()


def test_a_pause_that_failed_is_in_force_after_the_next_start(site: GuardSite) -> None:
    running = start_guard(site.settings, object_ids=object_ids)
    statements = running.service.statements
    failing = Statements(
        folder=statements.folder, standing=statements.standing, log=FullDisk(), clock=utc_now
    )
    with pytest.raises(LedgerError):
        failing.record(statement("pause").canonical)
    running.close()

    running = start_guard(site.settings, object_ids=object_ids)

    with pytest.raises(PolicyRefused, match="paused this site"):
        receipt(site)
    running.close()


@pytest.mark.parametrize("number", range(4))
def test_of_two_carried_statements_of_one_second_the_revocation_holds(
    tmp_path: Path, number: int
) -> None:
    study = a_study(id=f"study-{number}")
    site = make_site(tmp_path)
    for kind in ("study-revocation", "study-approval"):
        carry(site, about(study, kind, now=NOW))

    running = start_guard(site.settings, object_ids=object_ids)

    with pytest.raises(NotApproved, match="revoked"):
        site.worker.begin(instruction(study), signed(study))
    running.close()


def test_a_slot_whose_answer_was_only_repeated_in_the_journal_is_answered_once() -> None:
    """The line of its sealing was lost to a full disk, and its record is deleted afterwards."""
    fields: dict[str, Any] = {"study": STUDY.digest, "kind": "train", "round": 2}
    memory = Remembered()

    memory.note(
        Event(seq=1, time=NOW.isoformat(), action="reply.repeated", fields=fields, sha256="0" * 64)
    )

    assert memory.answered == {f"{STUDY.digest}/train/2"}
