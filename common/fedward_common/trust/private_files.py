"""Secrets in files: read only where nobody else can, written completely with mode 0600 or not."""

import os
import re
import secrets
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from fedward_common.errors import ConfigError

MAX_SECRET_BYTES: Final = 1 << 16
DRAFT: Final = re.compile(r"\..+\.[0-9a-f]{16}")
MIN_PASSPHRASE: Final = 20
"""PKCS 8 stretches a passphrase 2048 times only: what protects is its length."""


def read_private(path: Path, *, what: str) -> bytes:
    """The bytes of a private file, after checking who else could read or change it.

    Raises:
        ConfigError: no such file, a link, another owner, or a mode that lets others in.
    """
    data, found = _read(path, what=what)
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"{what} {path}: expected it to belong to this process's user ({os.geteuid()}), "
            f"found user {found.st_uid}. Run: chown"
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise ConfigError(
            f"{what} {path}: expected mode 0600, found {mode:04o}: others may open it. "
            "Run: chmod 600, and replace what is in it if anyone could have read it"
        )
    return data


def read_credential(path: Path, *, what: str) -> bytes:
    """The bytes of a file that only this user may read, or that systemd put there for it.

    A systemd credential belongs to root and is opened to the service by an access list, which the
    mode shows as group-readable; no other file of root may be.

    Raises:
        ConfigError: no such file, a link, or readable by others.
    """
    data, found = _read(path, what=what)
    mode = stat.S_IMODE(found.st_mode)
    ours = found.st_uid == os.geteuid()
    if not (ours or found.st_uid == 0) or mode & (0o077 if ours else 0o037):
        raise ConfigError(
            f"{what} {path}: expected a file that only this user may read (0600), or a systemd "
            f"credential, found mode {mode:04o} of user {found.st_uid}. Run: chmod 600"
        )
    return data


def one_line(data: bytes, *, what: str) -> bytes:
    """The one line that `data` is. Raises ConfigError for none or several."""
    line = data.removesuffix(b"\n").removesuffix(b"\r")
    if not line or b"\n" in line or b"\0" in line:
        raise ConfigError(f"{what}: expected one line, found none or several")
    return line


def checked_passphrase(data: bytes, *, what: str) -> bytes:
    """The passphrase that `data` is. Raises ConfigError: not one line, under 20 characters."""
    passphrase = one_line(data, what=what)
    if len(passphrase) < MIN_PASSPHRASE:
        raise ConfigError(
            f"{what}: expected at least {MIN_PASSPHRASE} characters, found fewer. Make one by "
            "chance, for instance with: openssl rand -base64 32"
        )
    return passphrase


def _read(path: Path, *, what: str) -> tuple[bytes, os.stat_result]:
    try:
        # The checks are made on what was opened, not on a name that could change in between.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(
            f"{what} {path}: expected a readable file that is no link, found {error.strerror}"
        ) from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{what} {path}: expected a regular file, found something else")
        data = os.read(descriptor, MAX_SECRET_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_SECRET_BYTES:
        raise ConfigError(f"{what} {path}: expected at most {MAX_SECRET_BYTES} bytes, found more")
    return data, found


def write_private(path: Path, data: bytes) -> None:
    """Writes `data` to `path` with mode 0600, atomically and durably.

    Guarantees: no reader ever sees a part of it; at no moment is it readable by another user; an
    interrupted call leaves the old file, or none.
    """
    write_atomically(path, data, mode=0o600)


def write_atomically(
    path: Path, data: bytes | Iterable[bytes | memoryview], *, mode: int = 0o644
) -> None:
    """Writes `data` to `path` so that a reader sees the old bytes or the new ones, never a mix.

    It may come in pieces, so that what is large is not copied first.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    # O_EXCL: a name that someone prepared (a link, an open file) is refused, not followed.
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.writelines((data,) if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Returns when the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_drafts(folder: Path, *, older_seconds: float = 0.0) -> int:
    """How many drafts of `write_atomically` were removed from `folder`: a kill left them there.

    Whoever may not be alone in the folder gives an age that no write under way has.
    """
    removed = 0
    for path in folder.glob(".*"):
        if not DRAFT.fullmatch(path.name):
            continue
        with suppress(FileNotFoundError):
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and time.time() - found.st_mtime >= older_seconds:
                path.unlink()
                removed += 1
    return removed
