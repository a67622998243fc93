"""A log that several commands write: one chain, whoever writes, and no writer keeps it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedward_common.errors import StartError
from fedward_common.log.events import EventLog, read_events, verify
from fedward_server.adapters import shared_log
from fedward_server.adapters.shared_log import SharedLog


def test_several_writers_make_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "desk.jsonl"

    def write(number: int) -> None:
        SharedLog(path).append("site.invited", site=f"site-{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(12)))

    assert verify(path).entries == 12
    assert {event.fields["site"] for event in read_events(path)} == {
        f"site-{number}" for number in range(12)
    }


def test_a_log_that_another_process_keeps_is_waited_for_and_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_log, "WAIT_SECONDS", 0.2)
    keeper = EventLog(tmp_path / "desk.jsonl")

    with pytest.raises(StartError, match="expected no other process"):
        SharedLog(tmp_path / "desk.jsonl").append("site.invited", site="alpha")
    keeper.close()
    SharedLog(tmp_path / "desk.jsonl").append("site.invited", site="alpha")

    assert verify(tmp_path / "desk.jsonl").entries == 1
