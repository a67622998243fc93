"""Keys and passphrases in files of the coordinator: for this user only, no links."""

import os
import stat
import sys
from pathlib import Path
from typing import Final

from fedward_common.errors import ConfigError

MAX_SECRET_BYTES: Final = 1 << 16
MIN_PASSPHRASE: Final = 20
"""PKCS 8 stretches a passphrase 2048 times only: what protects the issuing key is its length."""
STDIN: Final = Path("-")


def read_private(path: Path, *, what: str) -> bytes:
    """The bytes of a file that nobody but this user (or root) may read or change.

    A systemd credential belongs to root and is opened to the service by an access list, which the
    mode shows as group-readable; no other file may be.

    Raises:
        ConfigError: no such file, a link, another owner, or a mode that lets others in.
    """
    try:
        # The checks are made on what was opened, not on a name that could change in between.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(
            f"{what} {path}: expected a readable file that is no link, found {error.strerror}"
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        ours = found.st_uid == os.geteuid()
        open_to_others = found.st_mode & (0o077 if ours else 0o037)
        if not stat.S_ISREG(found.st_mode) or not (ours or found.st_uid == 0) or open_to_others:
            raise ConfigError(
                f"{what} {path}: expected a file of this user with mode 0600, found mode "
                f"{stat.S_IMODE(found.st_mode):04o} of user {found.st_uid}. Run: chmod 600, and "
                "replace what is in it if anyone could have read it"
            )
        return file.read(MAX_SECRET_BYTES)


def read_passphrase(path: Path) -> bytes:
    """The one line in a private file, or of stdin when `path` is `-`. Never from a command line.

    Raises:
        ConfigError: as `read_private`, or not one line of at least 20 characters.
    """
    if path == STDIN:
        data = sys.stdin.buffer.readline(MAX_SECRET_BYTES)
    else:
        data = read_private(path, what="passphrase file")
    line = data.removesuffix(b"\n").removesuffix(b"\r")
    if b"\n" in line or b"\0" in line or len(line) < MIN_PASSPHRASE:
        raise ConfigError(
            f"passphrase: expected one line of at least {MIN_PASSPHRASE} characters in a file or "
            "on stdin, found another. Choose a longer one"
        )
    return line
