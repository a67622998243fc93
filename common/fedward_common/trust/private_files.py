"""Writing secrets: a private key is on disk completely, with mode 0600, or not at all."""

import os
import secrets
from pathlib import Path


def write_private(path: Path, data: bytes) -> None:
    """Writes `data` to `path` with mode 0600, atomically and durably.

    Guarantees: no reader ever sees a part of it; at no moment is it readable by another user; an
    interrupted call leaves the old file, or none.
    """
    write_atomically(path, data, mode=0o600)


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Writes `data` to `path` so that a reader sees the old bytes or the new ones, never a mix."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    # O_EXCL: a name that someone prepared (a link, an open file) is refused, not followed.
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
