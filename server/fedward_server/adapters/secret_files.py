"""Passphrases that an operator gives: a file for this user only, or stdin; never a command line."""

import sys
from pathlib import Path
from typing import Final

from fedward_common.trust.private_files import (
    MAX_SECRET_BYTES,
    checked_passphrase,
    read_credential,
)

STDIN: Final = Path("-")


def read_passphrase(path: Path) -> bytes:
    """The one line in a private file or systemd credential, or of stdin when `path` is `-`.

    Raises:
        ConfigError: open to others, or not one line of at least 20 characters.
    """
    if path == STDIN:
        return checked_passphrase(sys.stdin.buffer.readline(MAX_SECRET_BYTES), what="passphrase")
    data = read_credential(path, what="passphrase file")
    return checked_passphrase(data, what=f"passphrase file {path}")
