"""The budget ledger in one SQLite file, with a mark beside it that only ever goes forward.

What is detected when the ledger is opened and before every charge: a changed, removed, added or
reordered row (hash chain), a missing, older or foreign database (the mark), a file that is not a
ledger. The chain is walked at opening and again whenever another connection wrote (SQLite counts
that); bytes that somebody changes past SQLite, under a running guard, are found when it is opened
again.
What is not: database and mark both put back together from the same older copy (the guard
compares with its journal, which then has to be put back, too), and whoever may act as the guard's
user and rewrites everything. Until the witnessed log exists nothing here is tamper-evident.
"""

import fcntl
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from dp_accounting import DpEvent

from fedward_client.adapters.ledger_mark import mark_path, read_mark, write_mark
from fedward_client.ports import Clock
from fedward_common.errors import LedgerError
from fedward_common.ids import Digest
from fedward_common.privacy.ledger import (
    FORMAT,
    Charge,
    Entry,
    Purpose,
    Reservation,
    StudyAccount,
    entry_body,
    row_sha256,
)
from fedward_common.privacy.ledger_state import LedgerState
from fedward_common.privacy.ledger_values import Head, Limits

BUSY_SECONDS: Final = 10.0

SCHEMA: Final = {
    "entries": (
        "CREATE TABLE entries (seq INTEGER PRIMARY KEY, slot TEXT UNIQUE, body BLOB NOT NULL, "
        "previous TEXT NOT NULL, sha256 TEXT NOT NULL)"
    ),
    "entries_no_update": (
        "CREATE TRIGGER entries_no_update BEFORE UPDATE ON entries "
        "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
    ),
    "entries_no_delete": (
        "CREATE TRIGGER entries_no_delete BEFORE DELETE ON entries "
        "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
    ),
}


def ledger_exists(path: Path) -> bool:
    """Whether there is a ledger, or the trace of one, at `path`."""
    return path.exists() or mark_path(path).exists()


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerView:
    """A verified ledger as its readers see it: the last row, every study, the filter's order, and
    the hash of every row, so that what was noted elsewhere can be compared.
    """

    head: Head = field(default_factory=Head)
    accounts: tuple[StudyAccount, ...] = ()
    order: float | None = None
    hashes: tuple[str, ...] = ()


def read_ledger(path: Path) -> LedgerView:
    """The ledger at `path`, verified; changes nothing.

    Raises:
        LedgerError: damaged, rolled back, missing, or not a ledger.
    """
    file = LedgerFile(path)
    try:
        with file.transaction():
            file.catch_up()
            return LedgerView(
                head=file.head,
                accounts=file.state.accounts(),
                order=file.state.order,
                hashes=file.row_hashes(),
            )
    finally:
        file.close()


def read_accounts(path: Path) -> tuple[Head, tuple[StudyAccount, ...]]:
    """The last row and every study of the ledger at `path`; raises as `read_ledger`."""
    view = read_ledger(path)
    return view.head, view.accounts


class SqliteLedger:
    """A `Ledger` in the file `path` with its mark in `path` + `.mark`. One process at a time.

    Guarantees: what `reserve` and `charge` return is on disk (WAL, synchronous=FULL) and inside
    the mark; a crash at any point leaves a charge too many, never one too few.
    """

    def __init__(self, path: Path, *, limits: Limits, clock: Clock) -> None:
        """Opens the ledger, or creates it when neither database nor mark exists.

        Raises:
            LedgerError: damaged, rolled back, missing beside its mark, in use, or not a ledger.
        """
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._in_use = _lock_file(path)
        try:
            if not ledger_exists(path):
                _create(path, time=self._now())
            self._file = LedgerFile(path)
            self._file.write_mark()
        except LedgerError:
            os.close(self._in_use)
            raise

    def close(self) -> None:
        """Closes the file; the ledger must not be used afterwards."""
        with self._lock:
            self._file.close()
            os.close(self._in_use)

    def reserve(self, reservation: Reservation) -> None:
        """Admits a study, durably; see `Ledger.reserve`."""
        with self._lock:
            with self._file.transaction():
                self._file.catch_up()
                entry = self._file.state.admit(reservation, limits=self._limits, time=self._now())
                if entry is None:
                    return
                head = self._file.insert(entry, slot=None)
            self._file.committed(entry, head)

    def charge(
        self,
        events: Sequence[DpEvent],
        *,
        study: Digest,
        slot: str,
        key: Digest,
        purpose: Purpose,
        alone: Sequence[DpEvent] = (),
    ) -> Charge:
        """Charges `events`, durably; see `Ledger.charge`."""
        with self._lock:
            with self._file.transaction():
                self._file.catch_up()
                result = self._file.state.draw(
                    events,
                    study=study,
                    slot=slot,
                    key=key,
                    purpose=purpose,
                    limits=self._limits,
                    time=self._now(),
                    alone=alone,
                )
                if isinstance(result, Charge):
                    return result
                head = self._file.insert(result, slot=slot)
            self._file.committed(result, head)
            charge = self._file.state.find(slot)
            if charge is None:
                raise LedgerError("ledger: expected the charge that was just written, found none")
            return charge

    def find(self, slot: str) -> Charge | None:
        """The charge of a slot, or None."""
        with self._current() as file:
            return file.state.find(slot)

    def accounts(self) -> tuple[StudyAccount, ...]:
        """Every study, in order of admission."""
        with self._current() as file:
            return file.state.accounts()

    def head(self) -> Head:
        """The last row."""
        with self._current() as file:
            return file.head

    def holds(self, row_sha256: str) -> bool:
        """Whether a row with this hash is in it."""
        with self._current() as file:
            return file.holds(row_sha256)

    def order(self) -> float | None:
        """The Renyi order of the filter over all studies; None before the first reservation."""
        with self._current() as file:
            return file.state.order

    def require(self, head: Head) -> None:
        """Returns when the ledger holds the row `head`, as the guard's journal last noted it.

        Raises:
            LedgerError: it does not: database and mark were both put back or replaced.
        """
        with self._current() as file:
            if head.seq > 0 and file.row_hash(head.seq) != head.sha256:
                raise LedgerError(
                    f"ledger: expected row {head.seq} as the journal noted it, found another or "
                    "none: an older ledger was put back. Restore the newest copy"
                )

    @contextmanager
    def _current(self) -> Iterator["LedgerFile"]:
        with self._lock, self._file.transaction():
            self._file.catch_up()
            yield self._file

    def _now(self) -> str:
        return self._clock().isoformat(timespec="milliseconds")


class LedgerFile:
    """The rows of an existing ledger, verified, and what they add up to. Decides nothing."""

    def __init__(self, path: Path) -> None:
        """Opens and verifies.

        Raises:
            LedgerError: damaged, rolled back, missing, or not a ledger.
        """
        self._path = path
        self.state = LedgerState()
        self.head = Head()
        self._walked_at: int | None = None
        # Read first: a writer moves the mark after its commit, so the database is never behind it.
        mark = read_mark(path)
        if not path.exists():
            raise LedgerError(
                f"ledger {path}: expected the database that its mark speaks of, found no file. "
                "Restore the newest copy; never start a new one"
            )
        self._database = _connect(path)
        try:
            with self.transaction():
                self._check_schema()
                self.catch_up()
                self._check_mark(mark)
        except LedgerError:
            self.close()
            raise

    def close(self) -> None:
        """Closes the database."""
        self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """BEGIN IMMEDIATE ... COMMIT; anything that goes wrong leaves the file as it was."""
        with _transaction(self._database, self._path):
            yield

    def catch_up(self) -> None:
        """Verifies the whole chain and brings `state` and `head` up to its end.

        At once where nobody but this connection wrote since the last time: a charge then costs the
        same in the first round of a ledger and in the hundred-thousandth.

        Raises:
            LedgerError: a row was changed, removed, added out of order, or means nothing.
        """
        (version,) = self._database.execute("PRAGMA data_version").fetchone()
        if version == self._walked_at and self._ends_at_head():
            return
        self._walk()
        self._walked_at = version

    def _ends_at_head(self) -> bool:
        last = self._database.execute(
            "SELECT seq, sha256 FROM entries ORDER BY seq DESC LIMIT 1"
        ).fetchone()
        return bool(last == (self.head.seq, self.head.sha256))

    def _walk(self) -> None:
        previous, seq, known = Head().sha256, 0, self.head
        for row_seq, slot, body, row_previous, sha256 in self._database.execute(
            "SELECT seq, slot, body, previous, sha256 FROM entries ORDER BY seq"
        ):
            seq += 1
            chained = (row_seq, row_previous) == (seq, previous) and isinstance(body, bytes)
            if not chained or row_sha256(seq=seq, previous=previous, body=body) != sha256:
                raise self._damaged(seq)
            if seq == known.seq and sha256 != known.sha256:
                raise self._damaged(seq)
            if seq > known.seq:
                self.state.apply(self._entry(body, seq=seq, slot=slot))
                self.head = Head(seq=seq, sha256=sha256)
            previous = sha256
        if seq == 0 or seq < known.seq:
            raise self._damaged(seq + 1)

    def insert(self, entry: Entry, *, slot: str | None) -> Head:
        """Appends a row inside the open transaction; `committed` must follow the commit."""
        return _insert(self._database, entry, slot=slot, after=self.head)

    def committed(self, entry: Entry, head: Head) -> None:
        """Takes over a row that is now on disk, and moves the mark to it."""
        self.state.apply(entry)
        self.head = head
        self.write_mark()

    def row_hash(self, seq: int) -> str | None:
        """The hash of row `seq`, or None when there is no such row."""
        row = self._database.execute("SELECT sha256 FROM entries WHERE seq = ?", (seq,)).fetchone()
        return None if row is None else str(row[0])

    def holds(self, sha256: str) -> bool:
        """Whether a row has this hash; looks at the newest first."""
        row = self._database.execute(
            "SELECT 1 FROM entries WHERE sha256 = ? ORDER BY seq DESC LIMIT 1", (sha256,)
        )
        return row.fetchone() is not None

    def row_hashes(self) -> tuple[str, ...]:
        """The hash of every row, first to last."""
        rows = self._database.execute("SELECT sha256 FROM entries ORDER BY seq")
        return tuple(str(sha256) for (sha256,) in rows)

    def write_mark(self) -> None:
        """Moves the mark to `head`, durably.

        Raises:
            LedgerError: it cannot be written. The rows themselves are on disk.
        """
        write_mark(self._path, self.head)

    def _entry(self, body: bytes, *, seq: int, slot: str | None) -> Entry:
        try:
            value: Any = json.loads(body)
        except ValueError as error:
            raise self._damaged(seq) from error
        if not isinstance(value, dict) or value.get("slot") != slot:
            raise self._damaged(seq)
        return value

    def _check_schema(self) -> None:
        found = dict(self._database.execute("SELECT name, sql FROM sqlite_master WHERE sql > ''"))
        if found != SCHEMA:
            raise LedgerError(
                f"ledger {self._path}: expected the tables and triggers of {FORMAT}, found others"
            )

    def _check_mark(self, mark: Head | None) -> None:
        if mark is None:
            # A crash between the first commit and the first mark; nothing was reserved yet.
            if self.head.seq > 1:
                raise LedgerError(
                    f"ledger {self._path}: expected its mark beside it, found none: it was "
                    "removed. Restore both from the newest copy"
                )
            return
        found = self.row_hash(mark.seq)
        if found != mark.sha256:
            what = f"only {self.head.seq} rows" if found is None else "another"
            raise LedgerError(
                f"ledger {self._path}: expected row {mark.seq} as the mark has it, found {what}: "
                "the ledger was rolled back or replaced. Restore the newest copy"
            )

    def _damaged(self, seq: int) -> LedgerError:
        return LedgerError(
            f"ledger {self._path}: expected an unbroken chain of rows, found row {seq} changed or "
            "missing. Nothing may be charged; restore the newest copy"
        )


def _lock_file(path: Path) -> int:
    """A descriptor that holds the ledger for this process; the kernel frees it when it ends."""
    try:
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise LedgerError(
            f"ledger {path}: expected a folder this user may write, found {error.strerror}"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise LedgerError(
            f"ledger {path}: expected no other process to use it, found one. Stop the other guard"
        ) from error
    return descriptor


def _create(path: Path, *, time: str) -> None:
    """A new ledger with its first row, complete under its name or not there at all."""
    draft = path.with_name(path.name + ".new")
    for suffix in ("", "-wal", "-shm"):  # what a crash in here may have left
        draft.with_name(draft.name + suffix).unlink(missing_ok=True)
    # SQLite gives its -wal and -shm files the mode of the database.
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    database = _connect(draft)
    entry = {"kind": "open", "format": FORMAT, "time": time, "ledger": secrets.token_hex(16)}
    with _transaction(database, path):
        for statement in SCHEMA.values():
            database.execute(statement)
        _insert(database, entry, slot=None, after=Head())
    database.close()  # folds the write-ahead log into the file
    draft.rename(path)


def _connect(path: Path) -> sqlite3.Connection:
    try:
        database = sqlite3.connect(
            path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        database.execute("PRAGMA trusted_schema = OFF")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error as error:
        raise LedgerError(
            f"ledger {path}: expected a ledger database, found something else"
        ) from error
    return database


@contextmanager
def _transaction(database: sqlite3.Connection, path: Path) -> Iterator[None]:
    try:
        database.execute("BEGIN IMMEDIATE")
        try:
            yield
            database.execute("COMMIT")
        finally:
            # Whatever interrupted it, a transaction does not stay open.
            if database.in_transaction:
                database.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise LedgerError(
            f"ledger {path}: expected a database that can be read and written, found "
            f"{getattr(error, 'sqlite_errorname', type(error).__name__)}. Nothing was charged"
        ) from error


def _insert(database: sqlite3.Connection, entry: Entry, *, slot: str | None, after: Head) -> Head:
    body = entry_body(entry)
    head = Head(
        seq=after.seq + 1, sha256=row_sha256(seq=after.seq + 1, previous=after.sha256, body=body)
    )
    database.execute(
        "INSERT INTO entries (seq, slot, body, previous, sha256) VALUES (?, ?, ?, ?, ?)",
        (head.seq, slot, body, after.sha256, head.sha256),
    )
    return head
