"""SuperNode's heartbeat shows an ended loop and a lost session, and no coordinator's absence."""

import asyncio
import os
from pathlib import Path

import pytest

from fedward_client.gateway import pulse as pulses
from fedward_client.gateway.pulse import PulseFile


def aged(path: Path) -> int:
    os.utime(path, (1, 1))
    return path.stat().st_mtime_ns


def test_a_question_for_work_is_a_beat(tmp_path: Path) -> None:
    pulse = PulseFile(tmp_path / "pulse")
    before = aged(tmp_path / "pulse")

    with pulse.asking():
        pulse.answered(200)

    assert (tmp_path / "pulse").stat().st_mtime_ns != before


def test_a_question_that_waits_beats_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulses, "TICK_SECONDS", 0.01)
    pulse = PulseFile(tmp_path / "pulse")

    async def waiting() -> int:
        task = asyncio.create_task(pulse.run())
        with pulse.asking():
            before = aged(tmp_path / "pulse")
            while (tmp_path / "pulse").stat().st_mtime_ns == before:
                await asyncio.sleep(0.01)
        task.cancel()
        return before

    assert asyncio.run(asyncio.wait_for(waiting(), timeout=10))


def beats_by_itself(pulse: PulseFile, path: Path, *, ticks: int = 20) -> bool:
    """Whether the file changes within so many ticks though nobody asks."""

    async def watch() -> bool:
        task = asyncio.create_task(pulse.run())
        before = aged(path)
        for _ in range(ticks):
            await asyncio.sleep(pulses.TICK_SECONDS)
            if path.stat().st_mtime_ns != before:
                break
        task.cancel()
        return path.stat().st_mtime_ns != before

    return asyncio.run(watch())


def test_supernode_is_well_while_it_has_an_instruction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks for nothing then, for as long as a training or a phase takes."""
    monkeypatch.setattr(pulses, "TICK_SECONDS", 0.01)
    now = [100.0]
    path = tmp_path / "pulse"
    pulse = PulseFile(path, clock=lambda: now[0])
    assert not beats_by_itself(pulse, path)

    pulse.works(until=200.0)
    assert beats_by_itself(pulse, path)

    now[0] = 201.0  # whoever asked has given it up
    assert not beats_by_itself(pulse, path)


def test_supernode_that_asks_again_has_no_instruction_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulses, "TICK_SECONDS", 0.01)
    path = tmp_path / "pulse"
    pulse = PulseFile(path, clock=lambda: 100.0)
    pulse.works(until=200.0)

    with pulse.asking():
        pass

    assert not beats_by_itself(pulse, path)


@pytest.mark.parametrize("status", [401, 404, 412, 429, 500])
def test_a_session_that_superlink_refuses_has_no_beat(tmp_path: Path, status: int) -> None:
    pulse = PulseFile(tmp_path / "pulse")
    pulse.answered(status)
    before = aged(tmp_path / "pulse")

    with pulse.asking():
        pass

    assert (tmp_path / "pulse").stat().st_mtime_ns == before


@pytest.mark.parametrize("status", [200, 403, 502, 503, 504])
def test_a_coordinator_that_is_away_is_no_fault_of_supernode(tmp_path: Path, status: int) -> None:
    pulse = PulseFile(tmp_path / "pulse")
    pulse.answered(500)
    pulse.answered(status)
    before = aged(tmp_path / "pulse")

    with pulse.asking():
        pass

    assert (tmp_path / "pulse").stat().st_mtime_ns != before


def test_a_folder_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    PulseFile(tmp_path / "none" / "pulse").beat()
