"""The tasks that a zygote has forked: one that is stopped for good is ended, with what it holds."""

import os
import select
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LOOK_SECONDS: Final = 10.0
LOOKS: Final = 3
"""So often in a row a task is found stopped before it is ended: somebody may look at it."""


@dataclass(kw_only=True, slots=True)
class _Task:
    """`handle` is the process itself (a pidfd): its number may be another's by and by."""

    handle: int
    stopped: int = 0


class ForkedTasks:
    """Children of this process, which the kernel reaps by itself."""

    def __init__(self) -> None:
        self._tasks: dict[int, _Task] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, pid: int) -> None:
        """Notes a child; one that has ended by now is none."""
        with suppress(OSError):  # ended, or a kernel without pidfd: then nothing is watched
            self._tasks[pid] = _Task(handle=os.pidfd_open(pid))

    def forget(self) -> None:
        """For a child: none of these are its own."""
        for task in self._tasks.values():
            os.close(task.handle)
        self._tasks.clear()

    def look(self) -> None:
        """Ends what was found stopped (SIGSTOP) at each of the last looks: SuperNode has given it
        up, and it would stay, with records in memory, for as long as the worker lives.
        """
        for pid, task in list(self._tasks.items()):
            if select.select([task.handle], [], [], 0)[0]:
                os.close(task.handle)
                del self._tasks[pid]
                continue
            task.stopped = task.stopped + 1 if _is_stopped(pid) else 0
            if task.stopped >= LOOKS:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(task.handle, signal.SIGKILL)


def _is_stopped(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[:1] == ["T"]
