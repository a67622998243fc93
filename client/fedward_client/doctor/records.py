"""What the site keeps and what it reads: ledger, approvals, exclusions, tables."""

import csv
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from fedward_client.adapters.sqlite_ledger import LedgerFile, ledger_exists
from fedward_client.data_entries import (
    CsvFile,
    DataEntry,
    EventFiles,
    FhirServerUrl,
    OmopUrl,
)
from fedward_client.exclusions import parse_exclusions
from fedward_client.guard.main import noted_head, policy_of
from fedward_client.guard.shelf import read_studies
from fedward_client.settings import SiteSettings
from fedward_common.doctor import Finding, fail, ok, warn
from fedward_common.errors import DataError, FedwardError, LedgerError
from fedward_common.privacy.ledger_values import Head
from fedward_common.study.spec import StudySpec


def ledger(name: str, settings: SiteSettings) -> Finding:
    """Whether the budget ledger is whole and not behind what the journal noted of it."""
    path = settings.ledger_path
    restore = "Restore ledger and mark from the newest copy; never start a new ledger"
    try:
        noted = noted_head(settings)
    except LedgerError:
        noted = Head()  # the journal has a finding of its own
    if not ledger_exists(path):
        if noted.seq:
            return fail(name, f"{path}: the journal speaks of a ledger, there is none", restore)
        return ok(name, "none yet")
    try:
        file = LedgerFile(path)
        try:
            head, row = file.head, file.row_hash(noted.seq)
        finally:
            file.close()
    except LedgerError as error:
        return fail(name, str(error), restore)
    if noted.seq and row != noted.sha256:
        return fail(name, f"{path}: row {noted.seq} is not as the journal noted it", restore)
    return ok(name, f"{head.seq} rows, chain unbroken, mark and journal agree")


def approvals(name: str, settings: SiteSettings) -> Finding:
    """Whether somebody can approve here, and whether what was approved is signed and noted."""
    try:
        policy_of(settings)
    except (FedwardError, OSError) as error:
        return fail(
            name,
            " ".join(str(error).split()),
            "Restore state/approvals from the newest copy, or approve again",
        )
    people = len(settings.approvers)
    if not people:
        return warn(
            name,
            "no [[approvers]]: nobody can approve a study, or pause this site",
            "Run `fedward-client approver new` and put its two lines into the settings",
        )
    return ok(name, f"{people} people may approve; every statement is signed by one of them")


def exclusions(name: str, settings: SiteSettings) -> Finding:
    """Whether the list of patients who object is as it must be, where there is one."""
    if settings.exclusions is None:
        return ok(name, "no list is configured")
    try:
        parse_exclusions(settings.exclusions)
    except DataError as error:
        return fail(name, str(error), "Correct the file: a header patient_id, one id per line")
    return ok(name, "read")


def approved_studies(settings: SiteSettings, *, now: datetime) -> Iterator[StudySpec]:
    """The studies that this site has and that its policy allows now."""
    try:
        policy = policy_of(settings)
        studies = [study for _, study in read_studies(settings.studies_folder)]
    except (FedwardError, OSError):
        return  # `approvals` says so
    for study in studies:
        try:
            policy.permits(study, now=now)
        except FedwardError:
            continue
        yield study


def data_source(name: str, entry: DataEntry) -> Finding:
    """Whether a [[data]] is there to be read; whether it fits is a study's question."""
    if isinstance(entry, CsvFile):
        return csv_table(name, entry)
    if isinstance(entry, OmopUrl):
        return ok(name, "an OMOP database; `fedward-client data check STUDY` reads it")
    if isinstance(entry, FhirServerUrl):
        return ok(name, "a FHIR server; `fedward-client data check STUDY` asks it")
    paths = [entry.patients, entry.events] if isinstance(entry, EventFiles) else [entry.path]
    if not all(path.exists() for path in paths):
        return fail(name, "not there", "Correct the paths in this [[data]]")
    if any(_open_to_all(path) for path in paths):
        found = "every user of this host may read the patients' records"
        return warn(name, found, "Run: chmod -R o-rwx on the files of this [[data]]")
    return ok(name, f"{entry.kind}, there; `fedward-client data check STUDY` reads it")


def csv_table(name: str, table: CsvFile) -> Finding:
    """Whether the table can be read and has a header; whether it fits is a study's question."""
    path = table.path
    try:
        open_to_all = _open_to_all(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter=table.delimiter, strict=True)
            header = next((row for row in rows if row), None)
    except OSError as error:
        return fail(name, f"{error.strerror}", "Correct path in this [[data]], or its rights")
    except (UnicodeDecodeError, csv.Error):
        return fail(name, "no CSV text in UTF-8", "Save the table as CSV in UTF-8")
    if header is None:
        return fail(name, "empty", "Put in a header line and one line per record")
    if open_to_all:
        found = "every user of this host may read the patients' table"
        return warn(name, found, "Run: chmod o-rwx on the file of this [[data]]")
    return ok(name, f"readable, {len(header)} columns")


def _open_to_all(path: Path) -> bool:
    """Whether every user of this host may read the file, through every folder above it."""
    return bool(path.stat().st_mode & 0o004) and all(
        above.stat().st_mode & 0o001 for above in path.parents
    )
