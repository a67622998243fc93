"""A run's files: whole lines only, an outcome that comes last, errors that keep their class."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedward_common.arrays import tensors_to_bytes
from fedward_common.errors import BudgetExceeded, ConfigError, StartError, StudyFailed
from fedward_server import runs
from fedward_server.adapters.run_files import (
    LOG,
    MODEL,
    RunFolder,
    read_outcome,
    read_study,
    study_path,
)
from fedward_server.progress import Progress


def settings(folder: Path) -> SimpleNamespace:
    return SimpleNamespace(state=folder)


def test_events_come_in_order_and_end_with_the_outcome(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "r")
    folder.emit("round.opened", round=1)
    folder.emit("round.committed", round=1)
    folder.finish(model=b"m", counts={}, facts={"committed_rounds": 1})

    events = list(runs.follow(settings(tmp_path), "r"))  # type: ignore[arg-type]

    assert [event["action"] for event in events] == [
        "round.opened",
        "round.committed",
        "model.final",
    ]
    assert runs.require_finished(settings(tmp_path), "r")["committed_rounds"] == 1  # type: ignore[arg-type]
    assert (tmp_path / "runs" / "r" / MODEL).read_bytes() == b"m"


def test_half_a_line_is_not_an_event_yet(tmp_path: Path) -> None:
    log = tmp_path / LOG
    log.write_bytes(b'{"a":1}\n{"b":')

    first, position = runs._new_lines(log, 0)
    with log.open("ab") as file:
        file.write(b"2}\n")
    second, _ = runs._new_lines(log, position)

    assert (first, second) == ([b'{"a":1}'], [b'{"b":2}'])


def test_no_log_is_no_event(tmp_path: Path) -> None:
    assert runs._new_lines(tmp_path / LOG, 0) == ([], 0)


@pytest.mark.parametrize("error", [StudyFailed("none"), BudgetExceeded("too much")])
def test_a_failed_run_raises_what_failed_it(tmp_path: Path, error: StudyFailed) -> None:
    RunFolder(tmp_path / "runs" / "r").fail(
        code=error.code, exit_code=error.exit_code, message=str(error)
    )

    with pytest.raises(type(error), match=str(error)):
        runs.require_finished(settings(tmp_path), "r")  # type: ignore[arg-type]


def test_a_run_without_an_outcome_is_not_finished(tmp_path: Path) -> None:
    assert read_outcome(tmp_path) is None
    with pytest.raises(StartError, match="found none yet"):
        runs.require_finished(settings(tmp_path), "r")  # type: ignore[arg-type]


def test_checkpoints_are_kept_by_round_and_private(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "r")
    model = {"w": np.ones(3, dtype=np.float32)}
    folder.checkpoint(Progress(study="0" * 64, next_round=8, committed=7, model=model))

    path = tmp_path / "r" / "round-00007.safetensors"
    assert path.read_bytes() == tensors_to_bytes(model)
    assert path.stat().st_mode & 0o077 == 0


def test_a_study_that_was_not_submitted_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found none"):
        read_study(tmp_path, "0" * 64)


def test_a_submitted_study_is_read_back(tmp_path: Path) -> None:
    path = study_path(tmp_path, "0" * 64)
    path.parent.mkdir()
    path.write_bytes(b"signed")

    assert read_study(tmp_path, "0" * 64) == b"signed"


def test_a_coordinator_that_is_not_up_is_named(tmp_path: Path) -> None:
    from fedward_server.serve import require_running

    with pytest.raises(StartError, match="fedward-server serve"):
        require_running(SimpleNamespace(superlink_socket=tmp_path / "none.sock"))  # type: ignore[arg-type]
