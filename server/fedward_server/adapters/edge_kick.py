"""The ServerApp's side of the kick: tells the edge which nodes have work."""

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

KICK_SECONDS: Final = 2.0

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
