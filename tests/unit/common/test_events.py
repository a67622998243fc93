"""The event log: a chain of lines that survives a crash and shows an edit."""

import json
import os
import signal
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedward_common.errors import LedgerError, ProtocolError, StartError
from fedward_common.log.events import EventLog, read_events, verify
from fedward_common.log.fields import LogFieldError


def noon() -> datetime:
    return datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed log of three events."""
    path = tmp_path / "audit" / "site.jsonl"
    log = EventLog(path, clock=noon)
    for number in range(1, 4):
        log.append("round.charged", round=number, site="north")
    log.close()
    return path


def test_each_line_is_a_canonical_object_chained_to_the_one_before(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]

    assert [line["seq"] for line in lines] == [1, 2, 3]
    assert lines[0] | {"sha256": ""} == {
        "seq": 1,
        "time": "2026-01-01T12:00:00.000+00:00",
        "action": "round.charged",
        "fields": {"round": 1, "site": "north"},
        "previous_sha256": "0" * 64,
        "sha256": "",
    }
    assert [line["previous_sha256"] for line in lines[1:]] == [line["sha256"] for line in lines[:2]]


def test_a_sound_log_is_summarised(path: Path) -> None:
    summary = verify(path)

    assert (summary.entries, summary.torn_bytes) == (3, 0)
    assert summary.first_time == summary.last_time == "2026-01-01T12:00:00.000+00:00"
    assert summary.head_sha256 == list(read_events(path))[-1].sha256


def test_a_log_goes_on_where_it_stopped(path: Path) -> None:
    log = EventLog(path)
    log.append("guard.stopped", pid=1)
    log.close()

    assert [event.seq for event in read_events(path)] == [1, 2, 3, 4]


def test_the_file_is_for_its_user_alone(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [lines[0], lines[2]],
        lambda lines: [lines[1], lines[0], lines[2]],
        lambda lines: lines[1:],
        lambda lines: [lines[0], lines[1].replace(b'"round":2', b'"round":3'), lines[2]],
        lambda lines: [lines[0], lines[1].replace(b'"round":2', b'"round": 2'), lines[2]],
        lambda lines: [lines[0], b"\n", *lines[1:]],
        lambda lines: [lines[0], b"[]\n", *lines[1:]],
        lambda lines: [lines[0], lines[0], *lines[1:]],
    ],
    ids=["removed", "swapped", "first gone", "edited", "respelt", "blank", "foreign", "doubled"],
)
def test_damage_before_the_end_is_found_and_the_log_not_continued(path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))

    with pytest.raises(LedgerError, match="unbroken chain"):
        verify(path)
    with pytest.raises(LedgerError):
        EventLog(path)


def test_a_cut_end_is_not_found(path: Path) -> None:
    """The documented limit of a chain without witnesses."""
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))

    assert verify(path).entries == 2


def test_a_torn_last_line_is_cut_and_noted(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"action":"round.cha')

    assert verify(path).torn_bytes == 20
    EventLog(path).close()

    last = list(read_events(path))[-1]
    assert (last.seq, last.action, last.fields) == (4, "log.cut", {"cut_bytes": 20})
    assert verify(path).torn_bytes == 0


def test_an_unknown_field_raises_and_writes_nothing(path: Path) -> None:
    log = EventLog(path)

    with pytest.raises(LogFieldError, match="patient"):
        log.append("round.charged", patient=7)
    with pytest.raises(ProtocolError):
        log.append("Round charged for patient 7")
    log.close()

    assert verify(path).entries == 3


def test_a_second_writer_is_refused(path: Path) -> None:
    log = EventLog(path)

    with pytest.raises(StartError, match="no other process"):
        EventLog(path)

    log.close()
    EventLog(path).close()


def test_a_closed_log_takes_no_event(path: Path) -> None:
    log = EventLog(path)
    log.close()

    with pytest.raises(LedgerError, match="closed"):
        log.append("guard.stopped")


def test_threads_leave_an_unbroken_chain(path: Path) -> None:
    log = EventLog(path)
    threads = [
        threading.Thread(target=lambda: [log.append("object", bytes=n) for n in range(20)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()

    assert verify(path).entries == 3 + 80


def test_kill_9_leaves_every_event_that_was_reported(tmp_path: Path) -> None:
    path = tmp_path / "site.jsonl"
    reported = 0
    for attempt in range(8):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                log = EventLog(path)
                while True:
                    log.append("object", direction="out", bytes=1)
                    os.write(write, b".")
            finally:
                os._exit(1)
        os.close(write)
        while reported < 20 * (attempt + 1):
            reported += len(os.read(read, 1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while rest := os.read(read, 4096):
            reported += len(rest)
        os.close(read)

    EventLog(path).close()

    written = sum(event.action == "object" for event in read_events(path))
    assert reported <= written <= reported + 8


def test_a_log_that_does_not_exist_has_no_events(tmp_path: Path) -> None:
    assert verify(tmp_path / "none.jsonl").entries == 0
