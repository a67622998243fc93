"""The ServerApp's side of the edge's socket: which nodes have work, which have replied."""

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from fedward_server.adapters.readiness import readable

KICK_SECONDS: Final = 2.0
DEAF_SECONDS: Final = 0.1
"""How long one waits for replies that no edge tells of."""
LISTEN: Final = b'{"listen": true}\n'

_log = structlog.get_logger(__name__)


def kick(socket_path: Path, node_ids: Sequence[int]) -> bool:
    """Tells the edge that each of `node_ids` has one message more; returns whether it heard.

    An edge that does not hear costs time, never a message: its polls ask SuperLink by themselves
    when they end. So this logs and returns false where others would raise.
    """
    line = json.dumps({"nodes": [int(node) for node in node_ids]}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(KICK_SECONDS)
            connection.connect(str(socket_path))
            connection.sendall(line)
            heard = connection.recv(16) == b"ok\n"
    except OSError as error:
        _log.warning("kick.unheard", error=type(error).__name__)
        return False
    if not heard:
        _log.warning("kick.unheard", error="refused")
    return heard


class ReplyLine:
    """What the edge tells of replies that are whole; it connects by itself, again and again."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path
        self._line: socket.socket | None = None
        self._rest = b""

    def heard(self, seconds: float, beside: int) -> list[int] | None:
        """The nodes whose replies came, as soon as one did; none after `seconds`, or as soon as the
        descriptor `beside` is readable.

        None after a moment where the edge cannot be heard: the caller looks by itself.
        """
        line = self._line or self._connected()
        if line is None:
            _wait_a_moment(seconds, beside)
            return None
        try:
            if line.fileno() not in readable(line, beside, seconds=seconds):
                return []
            part = line.recv(65536)
        except OSError:
            part = b""
        if not part:
            self.close()
            _wait_a_moment(seconds, beside)
            return None
        *whole, self._rest = (self._rest + part).split(b"\n")
        return [int(text) for text in whole if text.isdigit()]

    def close(self) -> None:
        """Closes the connection, if there is one."""
        if self._line is not None:
            self._line.close()
        self._line, self._rest = None, b""

    def _connected(self) -> socket.socket | None:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            line.settimeout(KICK_SECONDS)
            line.connect(str(self._path))
            line.sendall(LISTEN)
        except OSError as error:
            line.close()
            _log.warning("replies.unheard", error=type(error).__name__)
            return None
        self._line = line
        return line


def _wait_a_moment(seconds: float, beside: int) -> None:
    """At most `seconds`, or until `beside` is readable.

    An edge that closes each line at once must not make anybody spin.
    """
    readable(beside, seconds=min(seconds, DEAF_SECONDS))
