"""Blobs on disk, in files that have no name: nothing to guess, to link to or to leave behind.

A process that needs a blob is handed an open file over a Unix socket. The last process that closes
it, or the kernel when that process is killed, gives the room back. The same on both sides.
"""

import contextlib
import mmap
import os
import socket
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self, TypeVar

from google.protobuf.message import Message

from fedward_common.channel.blobs import CHUNK_BYTES
from fedward_common.channel.phases import HEAD_BYTES, receive_rest
from fedward_common.errors import ProtocolError, StorageError
from fedward_common.wire import Octets

T = TypeVar("T", bound=Message)

MAX_FILES: Final = 250
"""The kernel hands over 253 files at a time."""


class BlobFile:
    """An open file without a name, of a known size."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self.size = size
        # A descriptor that is closed in mid-write may be another file's by then.
        self._lock = threading.Lock()

    @classmethod
    def make(cls, folder: Path, size: int) -> Self:
        """A file of `size` bytes, all of them allotted.

        Raises:
            StorageError: the disk has not so much room.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=folder) as file:
                os.posix_fallocate(file.fileno(), 0, size)
                return cls(os.dup(file.fileno()), size)
        except OSError as error:
            raise StorageError(
                f"{folder}: expected room for {size} bytes of a blob, found "
                f"{error.strerror or type(error).__name__}. Free space on its disk"
            ) from error

    @classmethod
    def adopt(cls, descriptor: int, size: int) -> Self:
        """A file that another process handed over. Owns the descriptor.

        Raises:
            StorageError: it is not of that size; the descriptor is closed then.
        """
        if os.fstat(descriptor).st_size != size:
            os.close(descriptor)
            raise StorageError("blob: expected a file of the blob's size, found another")
        return cls(descriptor, size)

    @property
    def descriptor(self) -> int:
        """For handing it over."""
        return self._descriptor

    def write(self, number: int, content: bytes) -> None:
        """Writes one chunk. Raises StorageError when the disk is full or broken."""
        self.write_at(number * CHUNK_BYTES, content)

    def write_at(self, start: int, content: Octets) -> None:
        """Writes bytes at a place. Raises StorageError when the disk is full or broken."""
        view = memoryview(content).cast("B")
        try:
            with self._lock:
                while view:
                    written = os.pwrite(self._descriptor, view, start)
                    view, start = view[written:], start + written
        except OSError as error:
            raise StorageError(
                f"blob: expected to write it, found {error.strerror}. Free space on its disk"
            ) from error

    def chunk(self, number: int) -> bytes:
        """The bytes of one chunk. Raises StorageError when they are not there."""
        start = number * CHUNK_BYTES
        length = min(CHUNK_BYTES, self.size - start)
        try:
            with self._lock:
                content = os.pread(self._descriptor, length, start)
        except OSError as error:
            raise StorageError(f"blob: expected to read it, found {error.strerror}") from error
        if len(content) != length:
            raise StorageError("blob: expected a whole file, found one that was cut")
        return content

    def view(self) -> memoryview:
        """Its bytes, mapped into memory for reading; good for as long as anything refers to it."""
        return memoryview(mmap.mmap(self._descriptor, self.size, prot=mmap.PROT_READ))

    def reader(self) -> int:
        """A new descriptor that can only read, for another user. The caller closes it."""
        return os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Gives the file up; views and other processes' descriptors stay good."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._descriptor = -1


def store(folder: Path, data: Octets) -> BlobFile:
    """A file that holds `data`. Raises StorageError."""
    file = BlobFile.make(folder, len(data))
    file.write_at(0, data)
    return file


def let_go(octets: Octets) -> None:
    """Gives back the memory that a mapped file took; it is read from the file again when needed."""
    if isinstance(octets, memoryview) and isinstance(octets.obj, mmap.mmap):
        octets.obj.madvise(mmap.MADV_DONTNEED)


def send_with_files(connection: socket.socket, frame: bytes, files: Iterable[int]) -> None:
    """Sends a frame, and open files along with its first byte.

    Raises:
        OSError: the connection broke.
    """
    descriptors = list(files)
    sent = socket.send_fds(connection, [frame], descriptors) if descriptors else 0
    if sent < len(frame):
        connection.sendall(memoryview(frame)[sent:])


def receive_with_files(connection: socket.socket, kind: type[T]) -> tuple[T, list[int]] | None:
    """The next framed message and the files that came with it; None where the other side closed.

    The caller owns the descriptors.

    Raises:
        ProtocolError: another message.
        OSError: the connection broke or was silent.
    """
    head, files, _flags, _address = socket.recv_fds(connection, HEAD_BYTES, MAX_FILES)
    try:
        message = receive_rest(connection, head, kind)
    except (OSError, ProtocolError):
        close_all(files)
        raise
    if message is None:
        close_all(files)
        return None
    return message, files


def close_all(descriptors: Iterable[int]) -> None:
    """Closes descriptors that nobody takes."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
