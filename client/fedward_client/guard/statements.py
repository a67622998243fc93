"""The statements of the site's people on disk, and what they add up to.

One file per statement, named by its digest. The order that counts is that of the guard's journal,
not of any clock. A file that the journal does not know yet (carried here, or written just before a
crash) is checked like any other and taken in at the guard's start.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from fedward_client.approvals import OPENING, Standing, read_statement
from fedward_client.guard.memory import RECORDED
from fedward_client.ports import Clock, Journal
from fedward_common.errors import ConfigError, FedwardError, LedgerError, PolicyRefused
from fedward_common.trust.private_files import write_private
from fedward_common.trust.statements import MAX_STATEMENT_BYTES, Statement

AHEAD: Final = timedelta(minutes=5)
"""So far the clock of who signs may be before the guard's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Statements:
    """The accepted statements of one site: each is in a file and in the journal."""

    folder: Path
    standing: Standing
    log: Journal
    clock: Clock

    def load(self, noted: Mapping[str, datetime]) -> None:
        """Takes in every statement in the folder: those of the journal, then the new ones.

        Raises:
            LedgerError: one that the journal noted is gone. It may be the revocation.
            ConfigError: a new file is no statement that this site accepts.
        """
        for data in load_noted(self.folder, self.standing, noted):
            try:
                self._take(self.standing.check(data))
            except FedwardError as error:
                raise ConfigError(
                    f"{self.folder}: expected signed statements of this site's approvers, found "
                    f"another file. {error}"
                ) from error

    def record(self, data: bytes) -> Statement:
        """The statement in `data`, accepted: in force, on disk and in the journal on return.

        Raises:
            FedwardError: as `Standing.check`; nothing changed. LedgerError: it cannot be written.
        """
        try:
            statement = self.standing.check(data)
            self._require_said(statement)
        except FedwardError as error:
            self.log.append("statement.refused", code=error.code)
            raise
        path = self.folder / f"{statement.sha256}.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(path, data)
        except OSError as error:
            raise LedgerError(
                f"{self.folder}: expected to store a statement, found {error.strerror}"
            ) from error
        try:
            self._take(statement)
        except LedgerError:
            # Its signer hears that it failed: it must not come into force at the next start. What
            # lets less happen may.
            if statement.kind in OPENING:
                path.unlink(missing_ok=True)
            raise
        return statement

    def _require_said(self, statement: Statement) -> None:
        """Returns unless the statement lets more happen and is of a time still to come.

        One that is dated ahead, and kept back, would be newer than any revocation until then.

        Raises:
            PolicyRefused: it is.
        """
        if statement.kind in OPENING and statement.time > self.clock() + AHEAD:
            raise PolicyRefused(
                f"statement: expected one that was signed by now, found {statement.said_at}. Check "
                "the clocks of this machine and of the one that signed it, and sign it again"
            )

    def _take(self, statement: Statement) -> None:
        facts = {
            "study": statement.facts.get("study"),
            "study_id": statement.facts.get("study_id"),
            "bundle_sha256": statement.facts.get("bundle"),
        }
        self.log.append(
            RECORDED,
            kind=statement.kind,
            sha256=statement.sha256,
            key_sha256=statement.key_sha256,
            **{name: value for name, value in facts.items() if value is not None},
        )
        self.standing.accept(statement, at=self.clock())


def load_noted(folder: Path, standing: Standing, noted: Mapping[str, datetime]) -> list[bytes]:
    """Lets `standing` accept what the journal noted, in its order; the new statements, unchecked.

    New ones come by the time that stands in them, none of them was in force before; of two of the
    same second the one that lets less happen comes last, and holds.

    Raises:
        LedgerError: a statement that the journal noted is gone or changed.
        ConfigError: a file is no statement.
    """
    found = {path.stem: _statement(path) for path in sorted(folder.glob("*.json"))}
    missing = len(noted.keys() - {statement.sha256 for statement in found.values()})
    if missing:
        raise LedgerError(
            f"{folder}: expected every statement that the journal noted, found {missing} missing. "
            "Restore the newest copy: a missing one may be a revocation"
        )
    for sha256, at in noted.items():
        standing.accept(found[sha256], at=at)
    new = [statement for name, statement in found.items() if name not in noted]
    new.sort(key=lambda one: (one.said_at, one.kind not in OPENING, one.sha256))
    return [one.canonical for one in new]


def _statement(path: Path) -> Statement:
    try:
        with path.open("rb") as file:
            statement = read_statement(file.read(MAX_STATEMENT_BYTES + 1))
    except OSError as error:
        raise ConfigError(f"{path}: expected a statement, found {error.strerror}") from error
    except FedwardError as error:
        raise ConfigError(f"{path}: {error}") from error
    if path.stem != statement.sha256:
        raise ConfigError(f"{path}: expected a file named by its digest, found another name")
    return statement
