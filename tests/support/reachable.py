"""A Python that other users may read, for tests of users of their own.

Where this machine's Python or checkout lies in a folder that lets nobody through (/root, say), the
tests' own mount namespace gets that folder again, passable and with the same contents. The folder
itself and every process outside are as before.
"""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNS = 0x00020000
ROOT = Path(__file__).parents[2]


@contextmanager
def passable_folder() -> Iterator[Path]:
    """A new folder that every user may pass through, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="fedward-tests-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def blocked_folders() -> list[Path]:
    """The folders on the way to Python and the checkout that other users do not get through."""
    needed = [Path(sys.base_prefix), Path(sys.prefix), Path(sys.executable).resolve(), ROOT]
    above = dict.fromkeys(folder for path in needed for folder in (path, *path.parents))
    return [folder for folder in above if folder.is_dir() and not folder.stat().st_mode & 0o001]


def let_everybody_read_python() -> bool:
    """Whether other users can now start this Python; changes the mounts of this process only."""
    if os.geteuid() != 0:
        return False
    while blocked := sorted(blocked_folders(), key=lambda folder: len(folder.parts)):
        if not _own_mounts() or not _passable(blocked[0]):
            return False
    return True


def _own_mounts() -> bool:
    unshared = ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0
    return unshared and _mount("--make-rprivate", "/")


def _passable(folder: Path) -> bool:
    """Puts an empty folder in the place of `folder` and every entry of it back into that."""
    here = Path.cwd()
    hold = Path(tempfile.mkdtemp())
    if not _mount("--rbind", str(folder), str(hold)):
        return False
    if not _mount("-t", "tmpfs", "-o", "mode=711", "tmpfs", str(folder)):
        return False
    for entry in hold.iterdir():
        place = folder / entry.name
        if entry.is_symlink():
            place.symlink_to(entry.readlink())
            continue
        place.mkdir() if entry.is_dir() else place.touch()
        if not _mount("--rbind", str(entry), str(place)):
            return False
    os.chdir(here)
    return True


def _mount(*arguments: str) -> bool:
    done = subprocess.run(["mount", *arguments], capture_output=True, check=False)
    return done.returncode == 0
