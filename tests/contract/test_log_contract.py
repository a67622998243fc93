"""The log port (rules 29): a hash chain of known fields that any reader can check."""

import hashlib
import json
from pathlib import Path

import pytest

from fedward_common.canonical import canonical_json
from fedward_common.errors import LedgerError
from fedward_common.log.events import GENESIS, EventLog, read_events, verify


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit" / "log.jsonl"
    with_events = EventLog(path)
    with_events.append("round.opened", round=1, sites=["north", "south"])
    with_events.append("round.committed", round=1, sites=["north"])
    with_events.close()
    return path


def test_the_format_of_a_line_is_frozen(log: Path) -> None:
    """Computed by hand: a line is canonical JSON, its digest covers everything but itself."""
    previous = GENESIS
    for number, line in enumerate(log.read_bytes().splitlines(), start=1):
        entry = json.loads(line)
        digest = entry.pop("sha256")

        assert set(entry) == {"seq", "time", "action", "fields", "previous_sha256"}
        assert (entry["seq"], entry["previous_sha256"]) == (number, previous)
        assert hashlib.sha256(canonical_json(entry)).hexdigest() == digest
        previous = digest


def test_the_summary_names_the_head(log: Path) -> None:
    summary = verify(log)

    last = json.loads(log.read_bytes().splitlines()[-1])
    assert (summary.entries, summary.head_sha256) == (2, last["sha256"])


def test_events_are_read_back_as_they_were_written(log: Path) -> None:
    assert [(e.action, e.fields) for e in read_events(log)] == [
        ("round.opened", {"round": 1, "sites": ["north", "south"]}),
        ("round.committed", {"round": 1, "sites": ["north"]}),
    ]


@pytest.mark.parametrize("line", [0, 1])
def test_an_edited_line_breaks_the_chain(log: Path, line: int) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b"north", b"south")
    log.write_bytes(b"".join(lines))

    with pytest.raises(LedgerError):
        verify(log)


def test_a_removed_line_breaks_the_chain(log: Path) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[1])

    with pytest.raises(LedgerError):
        verify(log)
