"""Which process holds the lock of a file, and how often a process woke: the kernel's own words."""

import os
import signal
from contextlib import suppress
from pathlib import Path

from fedward_common.processes import wakes

LOCKS = Path("/proc/locks")


def lock_holder(path: Path) -> int | None:
    """The process that holds an exclusive flock on `path`; None for nobody, or where Linux is not.

    A process that ended, and has not been waited for, holds nothing.
    """
    try:
        inode = path.stat().st_ino
        lines = LOCKS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split()
        # 1: FLOCK ADVISORY WRITE 4711 08:01:1234 0 EOF; a waiting one has an arrow.
        if "->" in words or len(words) < 6 or words[1] != "FLOCK":
            continue
        if words[5].rpartition(":")[2] == str(inode) and wakes(int(words[4])) is not None:
            return int(words[4])
    return None


def end_process(pid: int, *, named: str) -> bool:
    """Kills `pid` when its command line holds `named`; returns whether it was that one."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    if named.encode() not in command:
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return True


def descends(pid: int, *, from_: int) -> bool:
    """Whether `pid` is `from_` or was started by it, or by what it started; true if unknown."""
    while pid > 1:
        if pid == from_:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return True
    return False
