"""The federation that all faults share: starting four hospitals takes a minute or more."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support.harmed import Harmed, harmed_federation
from tests.support.left_behind import left_behind, litter

DISK_BYTES = 64 << 20


@pytest.fixture(scope="session")
def harmed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harmed]:
    """A federation whose coordinator and one site have small disks and clocks that can be set.

    Both where this machine allows it: mounting a file system, a C compiler.
    """
    folder = tmp_path_factory.mktemp("harmed")
    mounted: list[Path] = []
    with harmed_federation(
        folder,
        clocked=("coordinator", "city"),
        arranged=partial(small_disks, folder, mounted),
    ) as running:
        running.small_disks = bool(mounted)
        yield running
    assert left_behind(folder) == []
    assert litter(folder) == []


@contextmanager
def small_disks(folder: Path, mounted: list[Path]) -> Iterator[None]:
    """Puts the state of the coordinator and of city on small file systems of their own."""
    out = folder / "out"
    with ExitStack() as opened:
        for state in (out / "coordinator" / "state", out / "sites" / "city" / "state"):
            if opened.enter_context(small_disk(state)):
                mounted.append(state)
        yield


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Whether what is in `folder` is now on a small file system."""
    kept = folder.with_name(f"{folder.name}-kept")
    folder.rename(kept)
    folder.mkdir(mode=0o700)
    options = f"size={DISK_BYTES},mode=0700"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
        check=False,
        capture_output=True,
    )
    if done.returncode != 0:
        folder.rmdir()
        kept.rename(folder)
        yield False
        return
    try:
        subprocess.run(["cp", "-a", f"{kept}/.", str(folder)], check=True)
        yield True
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
