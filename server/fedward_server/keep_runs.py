"""The process that `serve` keeps beside SuperLink, so that every unfinished run goes on."""

import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog

from fedward_common.errors import StudyFailed
from fedward_common.processes import wakes
from fedward_server.adapters.flower_control import FlowerControl, build_bundle
from fedward_server.adapters.lock_holder import descends, end_process, lock_holder
from fedward_server.adapters.run_files import (
    CANCELLED,
    CHECKPOINT,
    LOG,
    NOT_BEGUN,
    RunFolder,
    StartedRun,
    SystemClock,
    run_path,
    started_runs,
    unfinished_runs,
)
from fedward_server.bundle import bundle_folder
from fedward_server.continuation import Continuation
from fedward_server.runs import control_of
from fedward_server.serve import register_nodes, require_running
from fedward_server.settings import CoordinatorSettings

LOOK_SECONDS: Final = 1.0
SERVER_APP: Final = "flwr-serverapp"
"""What stands on the command line of Flower's ServerApp process."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class CoordinatorRuns:
    """Implements `Runs` over the coordinator's state, SuperLink and this machine."""

    settings: CoordinatorSettings

    def unfinished(self) -> Sequence[str]:
        """The names of runs without an outcome."""
        return [run.name for run in unfinished_runs(self.settings.state)]

    def writer(self, run: str) -> int | None:
        """The process that writes the run's log, or None."""
        return lock_holder(run_path(self.settings.state, run) / LOG)

    def wakes(self, pid: int) -> int | None:
        """How often a process woke so far; None when it cannot be told."""
        return wakes(pid)

    def orphaned(self, pid: int) -> bool:
        """Whether a process does not descend from our own parent, `serve`."""
        return not descends(pid, from_=os.getppid())

    def end(self, pid: int) -> None:
        """Kills a process, if it is a ServerApp."""
        end_process(pid, named=SERVER_APP)

    def over(self, run: str) -> bool:
        """Whether Flower's run has ended or is not known any more. Raises StartError.

        One that is about to begin is not over; if nothing comes of it, its time runs out.
        """
        started = self._started(run)
        if started.flower_id == NOT_BEGUN:
            return False
        with self._control() as control:
            status = control.run_status(started.flower_id)
        return status.startswith(("finished", "unknown"))

    def progress(self, run: str) -> int:
        """A number that changes with every checkpoint."""
        try:
            return (run_path(self.settings.state, run) / CHECKPOINT).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def start(self, run: str) -> None:
        """Ends what Flower still has of the run and starts it again. Raises StartError, OSError."""
        started = self._started(run)
        started.write(self.settings.state)  # a disk that is full is found before anything starts
        with self._control() as control:
            if not control.run_status(started.flower_id).startswith(("finished", "unknown")):
                control.stop_run(started.flower_id)
            register_nodes(self.settings)
            flower_id = control.start_run(
                build_bundle(bundle_folder()),
                config={"study": started.study, "run": started.name},
            )
        replace(started, flower_id=flower_id).write(self.settings.state)

    def give_up(self, run: str, reason: str) -> None:
        """Writes the outcome of a run that failed, or was cancelled. Raises StartError."""
        RunFolder(run_path(self.settings.state, run)).fail(
            code=StudyFailed.code, exit_code=StudyFailed.exit_code, message=f"run {run}: {reason}"
        )

    def cancelled(self, run: str) -> bool:
        """Whether a person asked for its end."""
        return (run_path(self.settings.state, run) / CANCELLED).exists()

    def _started(self, run: str) -> StartedRun:
        return next(one for one in started_runs(self.settings.state) if one.name == run)

    def _control(self) -> FlowerControl:
        require_running(self.settings)
        return control_of(self.settings)


def keep_runs(settings: CoordinatorSettings) -> None:
    """Looks after the runs until SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    continuation = Continuation(runs=CoordinatorRuns(settings=settings), clock=SystemClock())
    while not stop.wait(LOOK_SECONDS):
        continuation.look()
