"""Checks of files, folders, disk and memory, each on the real thing; nothing is changed."""

import os
import re
import shutil
import stat
from collections.abc import Collection, Sequence
from pathlib import Path

from fedward_common.doctor.findings import Finding, fail, ok, warn
from fedward_common.errors import LedgerError
from fedward_common.log.events import verify
from fedward_common.unix_sockets import MAX_SOCKET_PATH


def key_file(name: str, path: Path, *, owners: Collection[int]) -> Finding:
    """Whether a private key is a regular file, 0600, and belongs to one of `owners`."""
    try:
        found, folder = path.lstat(), path.parent.stat()
    except OSError as error:
        return fail(name, f"{path}: {error.strerror}", "Name the key in the settings, or make it")
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISREG(found.st_mode):
        return fail(name, f"{path}: a link or no regular file", "Put the key file itself there")
    if found.st_uid not in owners:
        return fail(
            name,
            f"{path}: belongs to user {found.st_uid}, Fedward's is {_listed(owners)}",
            f"Run: chown {min(owners)} {path} - or run doctor as the user that runs Fedward",
        )
    if mode & 0o077:
        return fail(
            name,
            f"{path}: mode {mode:04o}, others may open it",
            f"Run: chmod 600 {path} - and replace the key if anyone could have read it",
        )
    if folder.st_mode & 0o002 and not folder.st_mode & stat.S_ISVTX:
        return fail(
            name,
            f"{path.parent}: everybody may put another file in the key's place",
            f"Run: chmod go-w {path.parent}",
        )
    return ok(name, f"{path}: mode {mode:04o}, right owner")


def private_folder(
    name: str, folder: Path, *, group: bool = False, owners: Collection[int] = ()
) -> Finding:
    """Whether only Fedward's user (with `group`, its group too) gets into the folder.

    `owners` are the users that may own it; without any, the one that asks.
    """
    if not folder.exists():
        above = _existing(folder)
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            return fail(name, f"{folder}: cannot be made", f"Make it, mode 0700, in {above}")
        return ok(name, f"{folder}: made at the first start")
    found = folder.stat()
    mode = stat.S_IMODE(found.st_mode)
    allowed_owners = owners or {os.geteuid()}
    if not folder.is_dir() or found.st_uid not in allowed_owners:
        return fail(
            name,
            f"{folder}: no folder of this user",
            f"Run: chown {min(allowed_owners)} {folder} - or run doctor as the user that runs "
            "Fedward",
        )
    if mode & (0o007 if group else 0o077):
        allowed = "750" if group else "700"
        return fail(
            name, f"{folder}: mode {mode:04o}, others get in", f"Run: chmod {allowed} {folder}"
        )
    return ok(name, f"{folder}: mode {mode:04o}")


def socket_paths(name: str, paths: Sequence[Path]) -> Finding:
    """Whether the kernel takes every one of these Unix socket paths."""
    longest = max(paths, key=lambda path: len(os.fsencode(path)))
    length = len(os.fsencode(longest))
    if length > MAX_SOCKET_PATH:
        return fail(
            name,
            f"{longest}: {length} bytes, a Unix socket's path has at most {MAX_SOCKET_PATH}",
            "Set a shorter run folder, such as /run/fedward",
        )
    return ok(name, f"{length} of {MAX_SOCKET_PATH} bytes")


def disk(name: str, folder: Path, *, fails_below: int, warns_below: int) -> Finding:
    """Whether there is room on the disk of `folder`."""
    free = shutil.disk_usage(_existing(folder)).free
    return _amount(name, free, fails_below=fails_below, warns_below=warns_below, of="disk space")


def memory(name: str, meminfo: str, *, fails_below: int, warns_below: int) -> Finding:
    """Whether there is memory left, from the text of /proc/meminfo."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    if match is None:
        return warn(name, "the kernel does not say", "Check by hand that 4 GiB are free")
    free = int(match[1]) * 1024
    return _amount(name, free, fails_below=fails_below, warns_below=warns_below, of="memory")


def read_meminfo() -> str:
    """The text of /proc/meminfo; empty where there is none."""
    try:
        return Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return ""


def event_log(name: str, path: Path) -> Finding:
    """Whether the chain of a log is unbroken; one that is not there yet is in order."""
    try:
        summary = verify(path)
    except LedgerError as error:
        return fail(name, str(error), "Keep the file as it is and find out who changed it")
    except OSError as error:
        return fail(name, f"{path}: {error.strerror}", "Run doctor as the user that runs Fedward")
    if summary.entries == 0 and not path.exists():
        return ok(name, "none yet")
    return ok(name, f"{summary.entries} entries, chain unbroken")


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    return next((one for one in (path, *path.parents) if one.exists()), Path("/"))


def _amount(name: str, free: int, *, fails_below: int, warns_below: int, of: str) -> Finding:
    found = f"{free / 2**30:.1f} GiB of {of} free"
    fix = f"Free {of}: at least {warns_below / 2**30:.1f} GiB are wanted"
    if free < fails_below:
        return fail(name, found, fix)
    return warn(name, found, fix) if free < warns_below else ok(name, found)


def _listed(owners: Collection[int]) -> str:
    return " or ".join(str(owner) for owner in sorted(owners))
