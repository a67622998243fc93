"""Every unfinished run goes on: who looks after runs whose ServerApp is gone, hangs or was cut off.

A run is one log that one process may write. Nobody writes it: the run is started again, as a new
Flower run that begins at the last checkpoint. Its writer does nothing, or belongs to a Flower run
that has ended: it is killed first. A run that cannot get on is tried ever more rarely, then given
up with its reason. Decisions only; files, Flower and processes enter by `Runs`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from fedward_common.errors import FedwardError
from fedward_server.fleet import Clock

START_SECONDS: Final = 120.0
"""How long a ServerApp may take from Flower's start to its first line in the log."""
HANG_SECONDS: Final = 30.0
"""A writer that did not wake for so long is killed; one whose Flower run has ended, too."""
MAX_PAUSE_SECONDS: Final = 60.0
MAX_FUTILE: Final = 20
"""So many starts without a new checkpoint between them, and the run is given up."""
GIVEN_UP: Final = (
    "expected the run to get on, found {count} ServerApps that ended without a new round. The last "
    "lines of serverapp.log in the coordinator's logs say why; start the study again when it is "
    "mended: rounds that were answered stay answered"
)

_log = structlog.get_logger(__name__)


class Runs(Protocol):
    """The runs of this coordinator (port)."""

    def unfinished(self) -> Sequence[str]:
        """The names of runs without an outcome."""
        ...

    def writer(self, run: str) -> int | None:
        """The process that writes the run's log, or None."""
        ...

    def wakes(self, pid: int) -> int | None:
        """How often a process woke so far; None when it cannot be told."""
        ...

    def orphaned(self, pid: int) -> bool:
        """Whether a process was left behind by a coordinator that is gone."""
        ...

    def end(self, pid: int) -> None:
        """Kills a process."""
        ...

    def over(self, run: str) -> bool:
        """Whether Flower's run has ended or is not known any more. Raises StartError."""
        ...

    def progress(self, run: str) -> int:
        """A number that changes with every checkpoint."""
        ...

    def start(self, run: str) -> None:
        """Ends what Flower still has of the run and starts it again. Raises StartError, OSError."""
        ...

    def give_up(self, run: str, reason: str) -> None:
        """Writes the outcome of a run that failed, or was cancelled. Raises StartError."""
        ...

    def cancelled(self, run: str) -> bool:
        """Whether a person asked for its end."""
        ...


@dataclass(kw_only=True, slots=True)
class _Known:
    """What was seen of one run."""

    since: float
    written: bool
    woke_at: float
    wakes: int | None = None
    pid: int | None = None
    over_since: float | None = None
    futile: int = 0
    progress: int = -1
    not_before: float = 0.0


@dataclass(kw_only=True)
class Continuation:
    """Looks after the runs; `look` is called every second or so."""

    runs: Runs
    clock: Clock
    _known: dict[str, _Known] = field(default_factory=dict)
    _first: bool = True

    def look(self) -> None:
        """Starts again what nobody does, ends what hangs. An error waits for the next look."""
        names = self.runs.unfinished()
        for gone in self._known.keys() - set(names):
            del self._known[gone]
        for name in names:
            now = self.clock.now()
            known = self._known.setdefault(
                name, _Known(since=now, written=self._first, woke_at=now)
            )
            try:
                self._look_at(name, known, now)
            except (FedwardError, OSError) as error:
                known.not_before = now + MAX_PAUSE_SECONDS / 6
                _log.warning("run.waiting", run=name, error=type(error).__name__)
        self._first = False

    def _look_at(self, name: str, known: _Known, now: float) -> None:
        pid = self.runs.writer(name)
        if pid is not None:
            known.written = True
            if (why := self._hangs(name, known, pid, now)) is not None:
                _log.warning("run.hung", run=name, pid=pid, kind=why)
                self.runs.end(pid)
            return
        if now < known.not_before:
            return
        if self.runs.cancelled(name):
            self.runs.give_up(name, "")
        elif known.written or now - known.since > START_SECONDS or self.runs.over(name):
            self._again(name, known, now)

    def _hangs(self, name: str, known: _Known, pid: int, now: float) -> str | None:
        """Why the writer is of no use any more, or None."""
        if self.runs.orphaned(pid):
            return "orphan"
        wakes = self.runs.wakes(pid)
        if pid != known.pid or wakes != known.wakes or wakes is None:
            known.woke_at = now if pid != known.pid or wakes is not None else known.woke_at
            known.pid, known.wakes = pid, wakes
        if wakes is not None and now - known.woke_at > HANG_SECONDS:
            return "silent"
        if not (self.runs.cancelled(name) or self.runs.over(name)):
            known.over_since = None
        elif known.over_since is None:
            known.over_since = now
        elif now - known.over_since > HANG_SECONDS:
            return "cancelled" if self.runs.cancelled(name) else "flower-run-ended"
        return None

    def _again(self, name: str, known: _Known, now: float) -> None:
        progress = self.runs.progress(name)
        futile = known.futile + 1 if progress == known.progress else 0
        if futile >= MAX_FUTILE:
            self.runs.give_up(name, GIVEN_UP.format(count=MAX_FUTILE))
            return
        self.runs.start(name)
        known.futile, known.progress = futile, progress
        known.since, known.written, known.over_since = now, False, None
        known.not_before = now + min(MAX_PAUSE_SECONDS, 2.0**futile)
        _log.warning("run.continued", run=name, count=futile)
