"""Frames on the guard's Unix sockets: a canonical JSON header and blobs.

4 bytes header length (big-endian), header (at most 1 MiB), 8 bytes blob length, the blobs one after
the other; the header's `blobs` lists their sizes. One request or answer per frame.
"""

import json
import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fedward_common.canonical import canonical_json
from fedward_common.channel.blob_files import BlobFile
from fedward_common.errors import ProtocolError

MAX_HEADER_BYTES: Final = 1 << 20
MAX_BLOB_BYTES: Final = 1 << 30
CHUNK_BYTES: Final = 1 << 20
FILE: Final = b"F"

_HEADER = struct.Struct(">I")
_BLOB = struct.Struct(">Q")


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One request or answer."""

    header: dict[str, Any]
    blobs: tuple[bytes, ...] = ()
    spooled: memoryview | None = None
    """The first blob instead, where it was received into a file: mapped from it, for reading."""
    file: int | None = None
    """A descriptor that is handed over after the frame, and closed here."""


def write_frame(
    connection: socket.socket, header: Mapping[str, Any], blobs: Sequence[bytes] = ()
) -> None:
    """Sends one frame.

    Raises:
        ProtocolError: header or blobs are too large.
        OSError: the connection broke.
    """
    text = canonical_json({**header, "blobs": [len(blob) for blob in blobs]})
    size = sum(len(blob) for blob in blobs)
    if len(text) > MAX_HEADER_BYTES or size > MAX_BLOB_BYTES:
        raise ProtocolError(
            f"guard: expected at most {MAX_HEADER_BYTES} bytes of header and {MAX_BLOB_BYTES} of "
            f"blobs, found {len(text)} and {size}"
        )
    connection.sendall(_HEADER.pack(len(text)) + text + _BLOB.pack(size))
    for blob in blobs:
        connection.sendall(blob)


Spool = Callable[[Mapping[str, Any], int], BlobFile | None]
"""Where the first blob of a frame goes, by the frame's header and the blob's size: None is memory.
Raises StorageError."""


def read_frame(
    connection: socket.socket,
    *,
    max_blob_bytes: int = MAX_BLOB_BYTES,
    spool: Spool | None = None,
) -> Frame | None:
    """The next frame, or None when the other side closed the connection between frames.

    Raises:
        ProtocolError: too large, cut off, or not a frame.
        StorageError: there is no room for what is received into a file.
        OSError: the connection broke.
    """
    first = _read(connection, _HEADER.size, optional=True)
    if not first:
        return None
    (length,) = _HEADER.unpack(first)
    if length > MAX_HEADER_BYTES:
        raise ProtocolError(
            f"guard: expected a header of at most {MAX_HEADER_BYTES} bytes, found {length}"
        )
    header = _parse(_read(connection, length))
    (size,) = _BLOB.unpack(_read(connection, _BLOB.size))
    sizes = header.pop("blobs", None)
    if not isinstance(sizes, list) or any(type(n) is not int or n < 0 for n in sizes):
        raise ProtocolError("guard: expected the sizes of the blobs in the header, found none")
    if size > max_blob_bytes or sum(sizes) != size:
        raise ProtocolError(
            f"guard: expected blobs of at most {max_blob_bytes} bytes that add up, found {size}"
        )
    file = spool(header, sizes[0]) if spool is not None and sizes else None
    if file is None:
        return Frame(header=header, blobs=tuple(_read(connection, n) for n in sizes))
    try:
        _read_into(connection, file)
        spooled = file.view()
    finally:
        file.close()
    rest = (_read(connection, n) for n in sizes[1:])
    return Frame(header=header, blobs=(b"", *rest), spooled=spooled)


def hand_over(connection: socket.socket, descriptor: int) -> None:
    """Hands an open file to the other side, with one byte, and closes it here.

    Raises:
        OSError: the connection broke.
    """
    try:
        socket.send_fds(connection, [FILE], [descriptor])
    finally:
        os.close(descriptor)


def take_over(connection: socket.socket) -> int:
    """The open file that follows a frame. Raises ProtocolError; OSError: the connection broke."""
    byte, files, _flags, _address = socket.recv_fds(connection, len(FILE), 1)
    if byte != FILE or len(files) != 1:
        raise ProtocolError("guard: expected an open file, found none")
    return files[0]


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("guard: expected a JSON header, found something else") from error
    if not isinstance(header, dict):
        raise ProtocolError("guard: expected a JSON object as header, found something else")
    return header


def _read_into(connection: socket.socket, file: BlobFile) -> None:
    """Receives a whole file by one small piece of memory."""
    room, start = memoryview(bytearray(CHUNK_BYTES)), 0
    while start < file.size:
        got = connection.recv_into(room, min(file.size - start, CHUNK_BYTES))
        if not got:
            raise ProtocolError(f"guard: expected {file.size} bytes, found {start}")
        file.write_at(start, room[:got])
        start += got


def _read(connection: socket.socket, count: int, *, optional: bool = False) -> bytes:
    """`count` bytes; nothing at all only where `optional` says that the end may come here."""
    parts: list[bytes] = []
    missing = count
    while missing:
        part = connection.recv(min(missing, CHUNK_BYTES))
        if not part:
            if optional and not parts:
                return b""
            raise ProtocolError(f"guard: expected {count} bytes, found {count - missing}")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
