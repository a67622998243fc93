"""Where SuperLink keeps its state: in memory that outlives the process, with a copy for reboots.

Each of SuperLink's requests is a transaction of SQLite; on a disk it waits for that disk. What it
holds (messages under way, Flower's runs, its numbers for nodes) need not outlive the host, but for
the numbers: a SuperNode keeps the one it was given, and SuperLink would not know it any more. So a
copy is kept on disk whenever nodes are registered, and taken up where the memory is empty.
"""

import os
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Final

import structlog

from fedward_common.canonical import sha256_hex
from fedward_common.errors import StartError
from fedward_server.settings import CoordinatorSettings

MEMORY: Final = Path("/dev/shm")  # noqa: S108 - checked below: tmpfs, a folder of our own
ROOM_BYTES: Final = 1 << 30
"""Containers often have 64 MiB there, which a few models fill."""
NAME: Final = "superlink.db"

_log = structlog.get_logger(__name__)


def superlink_database(settings: CoordinatorSettings, *, memory: Path = MEMORY) -> Path:
    """The file of SuperLink's state, in a folder of this user alone.

    In `memory` where that is a tmpfs with room, else in the state folder, which the log says. The
    same coordinator finds the same file again, so that SuperLink may be restarted.

    Raises:
        StartError: what was kept on disk cannot be read.
    """
    on_disk = settings.state / NAME
    folder = _memory_folder(settings, memory)
    if folder is None:
        _log.warning("superlink.state-on-disk")
        return on_disk
    if not (folder / NAME).exists() and on_disk.exists():
        try:
            _copy(on_disk, folder / NAME)
        except (OSError, sqlite3.Error) as error:
            raise StartError(
                f"{on_disk}: expected SuperLink's state as it was kept, found "
                f"{type(error).__name__}. Restore the newest copy, or move the file away: each "
                "site then has to be started again"
            ) from error
    return folder / NAME


def keep_copy(settings: CoordinatorSettings, *, memory: Path = MEMORY) -> bool:
    """Copies the state from memory to disk, whole and in one step; nothing where it is on disk.

    False where the disk does not take it: the log says so, and the memory is as it was.
    """
    folder = _memory_folder(settings, memory)
    if folder is None or not (folder / NAME).exists():
        return True
    try:
        _copy(folder / NAME, settings.state / NAME)
    except (OSError, sqlite3.Error) as error:
        _log.warning("superlink.state-not-kept", error=type(error).__name__)
        return False
    return True


def _copy(source: Path, target: Path) -> None:
    """Puts the database `source`, with what is in its write-ahead log, at `target`: whole or not.

    A write-ahead log of the file that was there is removed first: SQLite would write its old pages
    into the new file.

    Raises:
        OSError, sqlite3.Error: `target` is as it was, or without its log.
    """
    draft = target.with_name(f".{target.name}.draft")
    for left in (draft, *_logs(draft)):
        left.unlink(missing_ok=True)
    with closing(sqlite3.connect(source)) as opened, closing(sqlite3.connect(draft)) as copy:
        opened.backup(copy)
    draft.chmod(0o600)
    for old in _logs(target):
        old.unlink(missing_ok=True)
    draft.replace(target)


def _logs(database: Path) -> tuple[Path, Path]:
    return (
        database.with_name(f"{database.name}-wal"),
        database.with_name(f"{database.name}-shm"),
    )


def _memory_folder(settings: CoordinatorSettings, memory: Path) -> Path | None:
    """A folder of ours in memory, or None where there is none to be had."""
    name = sha256_hex(str(settings.state.resolve()).encode())[:16]
    folder = memory / f"fedward-{os.getuid()}-{name}"
    try:
        if not _is_tmpfs(memory):
            return None
        if not folder.exists() and _free_bytes(memory) < ROOM_BYTES:
            return None
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return folder if ours and stat.S_IMODE(found.st_mode) == 0o700 else None


def _is_tmpfs(folder: Path) -> bool:
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    kinds = [line.split()[2] for line in mounts if line.split()[1] == str(folder)]
    return bool(kinds) and kinds[-1] == "tmpfs"


def _free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def put_away(settings: CoordinatorSettings, *, memory: Path = MEMORY) -> None:
    """Moves the state from memory to disk: for a coordinator that stops."""
    kept, folder = keep_copy(settings, memory=memory), _memory_folder(settings, memory)
    if kept and folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
