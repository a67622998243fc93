"""A run's files: whole lines only, an outcome that comes last, errors that keep their class."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedward_common.arrays import tensors_to_bytes
from fedward_common.errors import BudgetExceeded, ConfigError, StartError, StudyFailed
from fedward_common.study.spec import StudySpec
from fedward_server import runs
from fedward_server.adapters.run_files import (
    LOG,
    MODEL,
    NOT_BEGUN,
    RunFolder,
    StartedRun,
    read_outcome,
    read_study,
    run_path,
    started_runs,
    study_path,
    unfinished_runs,
)
from fedward_server.progress import Progress
from tests.support.guard_site import KEYS, a_study, signed


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


def kept_study(state: Path, **fields: object) -> StudySpec:
    """A signed study among the coordinator's; by default its rounds are no single steps."""
    study = a_study(**{"rounds": 2, "local_steps": 2, **fields})  # type: ignore[arg-type]
    path = study_path(state, study.digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(signed(study))
    return study


def end(state: Path, run: StartedRun) -> None:
    RunFolder(run_path(state, run.name)).fail(code="failed", exit_code=1, message="ended")


def test_a_run_is_noted_before_it_begins(tmp_path: Path) -> None:
    seen: list[StartedRun] = []

    def start(name: str) -> int:
        seen.extend(unfinished_runs(tmp_path))
        assert [run.name for run in seen] == [name]
        return 7

    run = runs.begin_run(tmp_path, kept_study(tmp_path), start)

    assert seen[0].flower_id == NOT_BEGUN
    assert unfinished_runs(tmp_path) == [run]
    assert run.flower_id == 7


def test_a_start_that_is_killed_leaves_a_run_that_is_continued(tmp_path: Path) -> None:
    def start(name: str) -> int:
        raise KeyboardInterrupt(name)

    with pytest.raises(KeyboardInterrupt):
        runs.begin_run(tmp_path, kept_study(tmp_path), start)

    assert [run.flower_id for run in unfinished_runs(tmp_path)] == [NOT_BEGUN]


def test_a_start_that_is_refused_stands_in_the_list_as_failed(tmp_path: Path) -> None:
    def start(name: str) -> int:
        raise StartError(f"SuperLink: refused {name}")

    study = kept_study(tmp_path)
    with pytest.raises(StartError):
        runs.begin_run(tmp_path, study, start)

    (run,) = started_runs(tmp_path)
    outcome = read_outcome(run_path(tmp_path, run.name))
    assert outcome is not None
    assert outcome["status"] == "failed"
    assert runs.begin_run(tmp_path, study, lambda _: 8).flower_id == 8


def test_a_second_run_of_a_study_under_way_is_refused(tmp_path: Path) -> None:
    study = kept_study(tmp_path)
    run = runs.begin_run(tmp_path, study, lambda _: 7)

    with pytest.raises(ConfigError, match=run.name):
        runs.begin_run(tmp_path, study, lambda _: 8)

    end(tmp_path, run)
    assert runs.begin_run(tmp_path, study, lambda _: 9).flower_id == 9


def test_a_study_shares_no_site_with_a_streaming_one_under_way(tmp_path: Path) -> None:
    """SuperNode answers nothing else while a phase is open."""
    plain, streams = kept_study(tmp_path), kept_study(tmp_path, id="streams", local_steps=1)
    elsewhere = kept_study(
        tmp_path, id="elsewhere", sites={"far": KEYS["north"], "farther": KEYS["south"]}
    )
    third = kept_study(tmp_path, id="third")
    assert streams.streams
    assert not plain.streams

    first = runs.begin_run(tmp_path, plain, lambda _: 1)
    runs.begin_run(tmp_path, third, lambda _: 2)
    with pytest.raises(ConfigError, match=first.name):
        runs.begin_run(tmp_path, streams, lambda _: 3)
    for run in unfinished_runs(tmp_path):
        end(tmp_path, run)
    second = runs.begin_run(tmp_path, streams, lambda _: 3)

    runs.begin_run(tmp_path, elsewhere, lambda _: 4)
    with pytest.raises(ConfigError, match=second.name):
        runs.begin_run(tmp_path, plain, lambda _: 5)
