"""Waiting until there is something to read, on descriptors of any number.

Not `select.select`, which refuses a descriptor over 1023, as many as a coordinator of a hundred
hospitals may hold.
"""

import errno
import os
import select
from typing import Protocol


class HasDescriptor(Protocol):
    """A socket, a pipe, or what stands for one."""

    def fileno(self) -> int:
        """The descriptor."""
        ...


def readable(*files: HasDescriptor | int, seconds: float) -> set[int]:
    """The descriptors of those of `files` that can be read or were closed by the other end.

    As soon as there is one; none after `seconds`. Without files, after that time.

    Raises:
        OSError: a descriptor is closed.
    """
    poller = select.poll()
    for file in files:
        poller.register(file if isinstance(file, int) else file.fileno(), select.POLLIN)
    found = poller.poll(max(0.0, seconds) * 1000)
    if any(event & select.POLLNVAL for _, event in found):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return {descriptor for descriptor, _ in found}
