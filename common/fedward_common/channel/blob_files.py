"""Blobs on disk, in files that have no name: nothing to guess, to link to or to leave behind.

A process that needs a blob is handed an open file over a Unix socket. The last process that closes
it, or the kernel when that process is killed, gives the room back. The same on both sides.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
import socket
import tempfile
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Final, Self, TypeVar

from google.protobuf.message import Message

from fedward_common.channel.blobs import CHUNK_BYTES
from fedward_common.channel.phases import HEAD_BYTES, receive_rest
from fedward_common.errors import ProtocolError, StorageError
from fedward_common.trust.private_files import sync_folder
from fedward_common.wire import Octets

T = TypeVar("T", bound=Message)


class _Mapping(mmap.mmap):
    """A file in memory, for reading, which can say what file it is."""

    def __init__(self, descriptor: int, size: int, *, prot: int) -> None:
        del size, prot  # mmap takes them when it is made
        self.descriptor = _for_reading(descriptor)
        weakref.finalize(self, os.close, self.descriptor)


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
    def make(cls, folder: Path, size: int, *, may_be_named: bool = False) -> Self:
        """A file of `size` bytes, all of them allotted. Only `may_be_named` can `keep_as` name it.

        Raises:
            StorageError: the disk has not so much room.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _nameable(folder) if may_be_named else tempfile.TemporaryFile(dir=folder) as file:
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
        return memoryview(_Mapping(self._descriptor, self.size, prot=mmap.PROT_READ))

    def reader(self) -> int:
        """A new descriptor that can only read, for another user. The caller closes it."""
        return _for_reading(self._descriptor)

    def close(self) -> None:
        """Gives the file up; views and other processes' descriptors stay good."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._descriptor = -1


def _for_reading(descriptor: int) -> int:
    """A descriptor of the same file that can only read.

    One that was handed over for reading is another user's file, which could not be opened again.
    """
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        return os.dup(descriptor)
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)


def _nameable(folder: Path) -> IO[bytes]:
    """A file without a name that may get one, where the file system has such files."""
    try:
        return os.fdopen(os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), "w+b")
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
            raise
        return tempfile.TemporaryFile(dir=folder)


def store(folder: Path, data: Octets) -> BlobFile:
    """A file that holds `data`: the one that it is mapped from, or a new one. Raises StorageError.

    Of a mapped file it can only be read.
    """
    mapped = _whole(data)
    if mapped is not None:
        return BlobFile(os.dup(mapped.descriptor), len(data))
    file = BlobFile.make(folder, len(data))
    file.write_at(0, data)
    return file


def keep_as(octets: Octets, path: Path) -> bool:
    """Gives the nameless file that `octets` is mapped from a name, instead of a copy of it.

    False where it is no such file, lies on another disk, or the file system has none without a
    name: then the caller writes the bytes. As `write_atomically`: a reader sees the old file or the
    new one whole, and it is on disk when this returns.

    Raises:
        OSError: the disk is full or broken.
    """
    mapped = _whole(octets)
    if mapped is None:
        return False
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        # A folder is named, though the path is absolute: only so does Python ask for linkat(2),
        # which can follow the kernel's link to a file without a name.
        source = f"/proc/self/fd/{mapped.descriptor}"
        os.link(source, draft, src_dir_fd=mapped.descriptor, follow_symlinks=True)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EXDEV, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP):
            return False
        raise
    try:
        os.fsync(mapped.descriptor)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def _whole(octets: Octets) -> _Mapping | None:
    """The file that `octets` is all of, where it is one."""
    mapped = octets.obj if isinstance(octets, memoryview) else None
    return mapped if isinstance(mapped, _Mapping) and len(mapped) == len(octets) else None


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
