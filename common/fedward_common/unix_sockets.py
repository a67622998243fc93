"""Unix sockets that one user listens on, and who is at the other end: the same on both sides."""

import os
import socket
import stat
import struct
from pathlib import Path
from typing import Final

from fedward_common.errors import FedwardError, StartError
from fedward_common.users import group_id

BACKLOG: Final = 256
MAX_SOCKET_PATH: Final = 107
"""What the kernel takes for the name of a Unix socket."""


def listen_unix(path: Path, *, group: str | None = None) -> socket.socket:
    """A listening Unix socket that only this user (and root) may connect to, and `group` if named.

    Its folder is made 0700 where it is missing; a socket that a killed process left is replaced. It
    appears under its name with its final mode, and only when it already answers.

    Raises:
        StartError: others may write to the folder, something answers there, the path is too long.
        ConfigError: this machine has no such group.
    """
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise StartError(
            f"socket {path}: expected at most {MAX_SOCKET_PATH} bytes of path, found "
            f"{len(os.fsencode(path))}. Choose a shorter run folder in the settings"
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    draft = path.with_name(f"{path.name[:8]}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _require_own(path.parent)
        _require_unused(path)
        draft.unlink(missing_ok=True)
        listener.bind(str(draft))
        draft.chmod(0o600)
        if group is not None:
            os.chown(draft, -1, group_id(group, key=f"group of {path.name}"))
            draft.chmod(0o660)
        listener.listen(BACKLOG)
        draft.rename(path)
    except OSError as error:
        listener.close()
        raise StartError(
            f"socket {path}: expected to listen there, found {error.strerror}. Check the run "
            "folder and its users in the settings"
        ) from error
    except FedwardError:
        listener.close()
        raise
    return listener


def peer_uid(connection: socket.socket) -> int:
    """The user of the process at the other end of a Unix socket, by the kernel's word."""
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    uid: int = struct.unpack("3i", credentials)[1]
    return uid


def _require_own(folder: Path) -> None:
    found = folder.stat()
    if found.st_uid not in (os.geteuid(), 0) or found.st_mode & 0o022:
        # Who may write there may put a socket of their own in this one's place, which says yes.
        raise StartError(
            f"folder {folder}: expected that only this process's user may write to it, found owner "
            f"{found.st_uid} and mode {stat.S_IMODE(found.st_mode):04o}. Run: chmod go-w, or "
            "choose another run folder in the settings"
        )


def _require_unused(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return  # nothing there, or what a killed process left behind
    raise StartError(f"socket {path}: expected nobody to listen there, found one. Stop it")
