"""A log of events as hash-chained JSON lines: append, verify, and survive a crash in mid-write.

Each line is the canonical JSON of {seq, time, action, fields, previous_sha256, sha256}; `sha256` is
over the line without it. The chain shows accidents and edits of single lines. It does not show that
the end was cut or that everything was rewritten by someone who may write the file: that takes the
witnessed log.
"""

import fcntl
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.errors import LedgerError, ProtocolError, StartError
from fedward_common.log.fields import checked

GENESIS: Final = "0" * 64
CLOSED: Final = -1
ACTION: Final = re.compile(r"[a-z][a-z0-9-]*(\.[a-z][a-z0-9-]*)*")
KEYS: Final = frozenset({"seq", "time", "action", "fields", "previous_sha256", "sha256"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One event of a log."""

    seq: int
    time: str
    action: str
    fields: dict[str, Any]
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LogSummary:
    """What `verify` found: an unbroken chain of `entries` events up to `head_sha256`.

    `torn_bytes` counts the bytes after the last complete line: a write that is under way, or one
    that a crash cut off.
    """

    entries: int
    head_sha256: str
    first_time: str | None
    last_time: str | None
    torn_bytes: int


def utc_now() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)


class EventLog:
    """Appends events to one file, durably and in order. One process at a time, any thread.

    Guarantees: when `append` returns, the line is on disk; a crash leaves at most one torn last
    line, which the next opening cuts off and notes as `log.cut`.
    """

    def __init__(self, path: Path, *, clock: Callable[[], datetime] = utc_now) -> None:
        """Opens `path`, or creates it (0600, folder 0700), and verifies what it holds.

        Raises:
            LedgerError: a line before the last was changed or removed.
            StartError: another process writes this log.
        """
        self._clock = clock
        self._lock = threading.Lock()
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = os.open(path, flags, 0o600)
        except OSError as error:
            raise StartError(
                f"log {path}: expected a file this user may write, found {error.strerror}"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            summary = verify(path)
        except BlockingIOError as error:
            os.close(self._file)
            raise StartError(
                f"log {path}: expected no other process to write it, found one. Stop it first"
            ) from error
        except LedgerError:
            os.close(self._file)
            raise
        self._seq, self._previous = summary.entries, summary.head_sha256
        if summary.torn_bytes:
            os.ftruncate(self._file, os.fstat(self._file).st_size - summary.torn_bytes)
            self.append("log.cut", cut_bytes=summary.torn_bytes)

    @property
    def head(self) -> tuple[int, str]:
        """Number and digest of the last event; 0 and the genesis before the first."""
        with self._lock:
            return self._seq, self._previous

    def append(self, action: str, **fields: object) -> None:
        """Writes one event; it is on disk when this returns.

        Raises:
            LogFieldError: a field that is not in log/fields.py, or a value it may not hold.
            LedgerError: the line could not be written; the log is as it was before.
        """
        if not ACTION.fullmatch(action):
            raise ProtocolError("log: expected an action like 'round.charged', found another form")
        content = checked(fields)
        with self._lock:
            line: dict[str, Any] = {
                "seq": self._seq + 1,
                "time": self._clock().astimezone(UTC).isoformat(timespec="milliseconds"),
                "action": action,
                "fields": content,
                "previous_sha256": self._previous,
            }
            text = canonical_json(line)
            sha256 = sha256_hex(text)
            self._write(_with_digest(text, sha256) + b"\n")
            self._seq, self._previous = self._seq + 1, sha256

    def close(self) -> None:
        """Closes the file and lets another process write it."""
        with self._lock:
            os.close(self._file)
            self._file = CLOSED

    def _write(self, data: bytes) -> None:
        if self._file == CLOSED:
            raise LedgerError(f"log {self._path}: expected it to be open, found it closed")
        size = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, data)
            if written != len(data):
                raise OSError(f"{written} of {len(data)} bytes")
            os.fsync(self._file)
        except OSError as error:
            # A full disk: take back the part that was written, so that the chain goes on.
            os.ftruncate(self._file, size)
            raise LedgerError(
                f"log {self._path}: expected to write an event, found {error.strerror or error}. "
                "Free space on its disk"
            ) from error


def _with_digest(text: bytes, sha256: str) -> bytes:
    """The canonical line with its digest: `sha256` sorts just before `time`, which ends the line.

    Canonical JSON is the dearest part of a line, so it is made once.
    """
    before, time, after = text.rpartition(b',"time":')
    return b"".join((before, b',"sha256":"', sha256.encode(), b'"', time, after))


def read_events(path: Path) -> Iterator[Event]:
    """The events in `path`, oldest first, each checked against the one before it.

    Stops at a torn last line. A file that does not exist has no events.

    Raises:
        LedgerError: a line was changed, removed, added or reordered.
    """
    previous, seq = GENESIS, 0
    if not path.exists():
        return
    with path.open("rb") as file:
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            seq += 1
            event = _parse(raw[:-1], seq=seq, previous=previous)
            if event is None:
                raise LedgerError(
                    f"log {path}: expected an unbroken chain of events, found line {seq} changed, "
                    "missing or out of place. Keep the file and restore the newest copy"
                )
            previous = event.sha256
            yield event


def verify(path: Path) -> LogSummary:
    """What `path` holds, after checking every line.

    Raises:
        LedgerError: a line was changed, removed, added or reordered.
    """
    entries, head = 0, GENESIS
    first = last = None
    for event in read_events(path):
        entries, head, last = entries + 1, event.sha256, event.time
        first = first or event.time
    return LogSummary(
        entries=entries,
        head_sha256=head,
        first_time=first,
        last_time=last,
        torn_bytes=_torn_bytes(path),
    )


def _torn_bytes(path: Path) -> int:
    if not path.exists():
        return 0
    torn = 0
    with path.open("rb") as file:
        for raw in file:
            torn = 0 if raw.endswith(b"\n") else len(raw)
    return torn


def _parse(raw: bytes, *, seq: int, previous: str) -> Event | None:
    """The event in a line, or None when it is not the one expected there."""
    try:
        line: Any = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or line.keys() != KEYS:
        return None
    hashed = {key: line[key] for key in line if key != "sha256"}
    try:
        good = raw == canonical_json(line) and line["sha256"] == sha256_hex(canonical_json(hashed))
    except ProtocolError:
        return None
    if not good or (line["seq"], line["previous_sha256"]) != (seq, previous):
        return None
    return Event(
        seq=seq,
        time=str(line["time"]),
        action=str(line["action"]),
        fields=line["fields"],
        sha256=line["sha256"],
    )
