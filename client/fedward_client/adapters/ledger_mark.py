"""The mark beside a ledger: its last row, in a file that only ever goes forward.

Two places of one disk sector each are written in turns, so that moving the mark is one small write
and one flush of data (3 ms where a new file, its renaming and its folder took 9). A write that a
crash tore leaves the other place: a mark one row behind, which every reader takes.
"""

import json
import os
from pathlib import Path
from typing import Any, Final

from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.errors import LedgerError
from fedward_common.privacy.ledger_values import Head
from fedward_common.trust.private_files import write_private

_PLACE: Final = 512


def mark_path(path: Path) -> Path:
    """Where the mark of the ledger at `path` is."""
    return path.with_name(path.name + ".mark")


def read_mark(path: Path) -> Head | None:
    """The mark of the ledger at `path`, or None when there is no such file.

    Raises:
        LedgerError: the file holds no mark.
    """
    mark = mark_path(path)
    try:
        data = mark.read_bytes()
    except FileNotFoundError:
        return None
    found = _found(data)
    if found is None:
        raise LedgerError(
            f"ledger mark {mark}: expected a row number and a hash, found something else"
        )
    return found


def write_mark(path: Path, head: Head) -> None:
    """Moves the mark to `head`, durably; a mark that is there already is left alone.

    Raises:
        LedgerError: it cannot be written.
    """
    mark = mark_path(path)
    try:
        if not mark.exists() or mark.stat().st_size != 2 * _PLACE:
            # The first mark, or one of an earlier version: a whole file, or none.
            write_private(mark, 2 * _record(head))
            return
        descriptor = os.open(mark, os.O_RDWR | os.O_NOFOLLOW)
        try:
            data = os.pread(descriptor, 2 * _PLACE, 0)
            newest = _found(data)
            if newest != head:
                # Never over the newest good record, which is not always in the other place: the
                # write before may have failed.
                in_first = newest is not None and _head(data[:_PLACE], checked=True) == newest
                os.pwrite(descriptor, _record(head), _PLACE if in_first else 0)
                os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise LedgerError(
            f"ledger {path}: expected to write its mark, found {error.strerror}. Free space or "
            "repair the folder's permissions"
        ) from error


def _record(head: Head) -> bytes:
    value = {"check": _check(head), "seq": head.seq, "sha256": head.sha256}
    return canonical_json(value).ljust(_PLACE - 1) + b"\n"


def _check(head: Head) -> str:
    """Tells a record that was written whole; it is no secret and protects from no person."""
    return sha256_hex(f"{head.seq}:{head.sha256}".encode())[:16]


def _found(data: bytes) -> Head | None:
    if len(data) != 2 * _PLACE:
        return _head(data, checked=False)
    heads = [_head(data[at : at + _PLACE], checked=True) for at in (0, _PLACE)]
    return max((head for head in heads if head is not None), key=lambda h: h.seq, default=None)


def _head(record: bytes, *, checked: bool) -> Head | None:
    try:
        value: Any = json.loads(record)
        head = Head(seq=int(value["seq"]), sha256=str(value["sha256"]))
        whole = not checked or value["check"] == _check(head)
    except (ValueError, KeyError, TypeError):
        return None
    return head if whole else None
