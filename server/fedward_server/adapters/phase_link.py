"""The ServerApp's connection to the edge for one phase: steps out, answers and presence in."""

import socket
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Final

from fedward_common.channel.phase_pb2 import PhaseEvent, PhaseOrder, PhaseStep
from fedward_common.channel.phases import MAX_FRAME_BYTES, framed, parse
from fedward_common.errors import ChannelError, ProtocolError
from fedward_common.ids import SiteId
from fedward_server.adapters.readiness import readable

SEND_SECONDS: Final = 30.0
CHUNK_BYTES: Final = 1 << 20

_LENGTH = struct.Struct(">I")


class PhaseLink:
    """Implements the phase fleet's `Link` over the edge's Unix socket."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._buffer = bytearray()

    @property
    def is_open(self) -> bool:
        """Whether the edge was there when it was last asked."""
        return self._socket is not None

    def open(self, study: str, sites: Collection[SiteId]) -> bool:
        """Opens the phase of a study for `sites`; False while the edge is not there."""
        self.close()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(SEND_SECONDS)
        try:
            connection.connect(str(self._path))
            connection.sendall(framed(PhaseOrder(open=study, sites=list(sites))))
        except OSError:
            connection.close()
            return False
        self._socket = connection
        return True

    def hand(self, step: PhaseStep, sites: Collection[SiteId]) -> None:
        """Hands one step to each of `sites`. Raises ChannelError when the edge is gone."""
        data = framed(PhaseOrder(step=step, sites=list(sites)))
        try:
            self._connected().sendall(data)
        except OSError as error:
            self.close()
            raise ChannelError("phase: expected the edge to take a step, found it gone") from error

    def events(self, *, timeout_seconds: float) -> list[PhaseEvent]:
        """What happened since the last call; waits up to the timeout for a first event.

        Raises:
            ChannelError: the edge is gone.
        """
        connection = self._connected()
        try:
            if readable(connection, seconds=timeout_seconds):
                self._receive(connection)
            return self._whole()
        except (OSError, ProtocolError) as error:
            self.close()
            raise ChannelError("phase: expected the edge's events, found it gone") from error

    def close(self) -> None:
        """Ends the phase: the edge tells every site."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._buffer.clear()

    def _connected(self) -> socket.socket:
        if self._socket is None:
            raise ChannelError("phase: expected an open phase, found none")
        return self._socket

    def _receive(self, connection: socket.socket) -> None:
        data = connection.recv(CHUNK_BYTES)
        if not data:
            raise ConnectionResetError("closed")
        self._buffer += data

    def _whole(self) -> list[PhaseEvent]:
        """The complete frames in the buffer."""
        events, start = list[PhaseEvent](), 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > MAX_FRAME_BYTES:
                raise ProtocolError("phase: expected a smaller frame")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            events.append(parse(PhaseEvent, bytes(self._buffer[start + _LENGTH.size : end])))
            start = end
        del self._buffer[:start]
        return events
