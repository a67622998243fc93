"""A folder tree into the index: every file read once, by its header only."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedward_client.data.dicom.dicomdir import named_files
from fedward_client.data.dicom.header import ImageHeader, read_header
from fedward_client.data.dicom.index import ImageIndex
from fedward_client.data.dicom.reasons import BadObject, Reason
from fedward_common.errors import DataError

Progress = Callable[[int], None]
"""Called with the number of files that are done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataReport:
    """What a run found. Exact counts: for the site's own eyes, they never leave (rules 6)."""

    files: int
    images: int
    series: int
    studies: int
    patients: int
    read: int
    unchanged: int
    gone: int
    quarantined: dict[str, int]


def count_files(root: Path) -> int:
    """How many files are below `root`, for a progress bar."""
    return sum(1 for _ in walk(root))


def walk(root: Path) -> Iterator[os.DirEntry[str]]:
    """Every regular file below `root`, depth first by name; links are not followed."""
    try:
        with os.scandir(root) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"images: expected folders that can be read, found one: {error.strerror}"
        ) from error
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from walk(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            yield entry


def index_folder(
    root: Path,
    index: ImageIndex,
    *,
    dicomdir: Path | None = None,
    progress: Progress | None = None,
) -> DataReport:
    """Brings `index` up to date with the files below `root`, or with those that `dicomdir` names.

    A file whose size and time are as before is not read again; a run that was interrupted goes on
    where its last commit was. Nothing is dropped: what cannot be used has a row with its reason.

    Raises:
        DataError: a folder or the DICOMDIR cannot be read.
    """
    run = index.begin()
    done = read = 0
    names = named_files(dicomdir) if dicomdir is not None else (Path(e.path) for e in walk(root))
    for path in names:
        read += _one(path, root=root, index=index, run=run)
        done += 1
        if progress is not None:
            progress(done)
    gone = index.finish(run, root=root)
    return DataReport(
        **index.totals(),
        read=read,
        unchanged=done - read,
        gone=gone,
        quarantined=index.reasons(),
    )


def _one(path: Path, *, root: Path, index: ImageIndex, run: int) -> bool:
    """Whether the file had to be read."""
    name = os.path.relpath(path, root)
    try:
        status = path.stat(follow_symlinks=False)
    except OSError:
        index.record(name, Reason.MISSING_FILE, size=-1, mtime_ns=0, run=run)
        return True
    if index.known(name, size=status.st_size, mtime_ns=status.st_mtime_ns, run=run):
        return False
    index.record(name, _verdict(path), size=status.st_size, mtime_ns=status.st_mtime_ns, run=run)
    return True


def _verdict(path: Path) -> ImageHeader | Reason:
    try:
        return read_header(path)
    except BadObject as bad:
        return bad.reason
