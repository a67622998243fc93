"""The ServerApp's Unix socket: which nodes have work, which have replied (rules 19)."""

import asyncio
import json
import os
from pathlib import Path
from typing import Final

import structlog

from fedward_common.errors import ProtocolError
from fedward_common.unix_sockets import listen_unix, peer_uid
from fedward_server.edge.bell import WorkBell
from fedward_server.edge.replies import ReplyWatch

MAX_LINE_BYTES: Final = 1 << 20
MAX_NODE: Final = 1 << 64
READ_SECONDS: Final = 5.0
LISTEN: Final = b'{"listen": true}\n'
"""A line that asks for one line `node id` per whole reply, for as long as the connection stands."""

_log = structlog.get_logger(__name__)


def parse_kick(line: bytes) -> list[int]:
    """The node ids in `{"nodes": [...]}`. Raises ProtocolError for anything else."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("kick: expected a line of JSON, found something else") from error
    nodes = value.get("nodes") if isinstance(value, dict) and len(value) == 1 else None
    if not isinstance(nodes, list) or not all(
        type(node) is int and 0 <= node < MAX_NODE for node in nodes
    ):
        raise ProtocolError('kick: expected {"nodes": [node ids]}, found something else')
    return nodes


class KickServer:
    """Rings the bell for the ServerApp (a line in, `ok` out, one per connection) and tells it of
    replies (`LISTEN` in, lines out).

    The socket is 0600 and only a process of the edge's own user is heard.
    """

    def __init__(self, *, path: Path, bell: WorkBell, replies: ReplyWatch) -> None:
        self._path = path
        self._bell = bell
        self._replies = replies
        self._server: asyncio.Server | None = None
        self._listening: set[asyncio.Future[bytes]] = set()

    async def start(self) -> None:
        """Listens.

        Raises:
            StartError: the socket cannot be made, or something listens there.
        """
        self._server = await asyncio.start_unix_server(
            self._serve, sock=listen_unix(self._path), limit=MAX_LINE_BYTES
        )

    async def stop(self) -> None:
        """Stops listening, ends open lines and removes the socket."""
        if self._server is not None:
            self._server.close()
            for gone in self._listening:
                gone.cancel()
            await self._server.wait_closed()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if peer_uid(writer.get_extra_info("socket")) != os.getuid():
                _log.warning("edge.kick-refused", code="user")
                return
            line = await asyncio.wait_for(reader.readline(), timeout=READ_SECONDS)
            if line == LISTEN:
                await self._report(reader, writer)
                return
            self._bell.ring(parse_kick(line))
            writer.write(b"ok\n")
            await writer.drain()
        except ProtocolError as error:
            _log.warning("edge.kick-refused", code=error.code, reason=str(error))
        except (OSError, TimeoutError, ValueError):  # gone, silent, or a line over the limit
            _log.warning("edge.kick-refused", code="connection")
        finally:
            writer.close()

    async def _report(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Writes the node of each whole reply until the other side closes the connection."""
        queue = self._replies.listen()
        gone = asyncio.ensure_future(reader.read(1))
        self._listening.add(gone)
        try:
            writer.write(b"ok\n")
            while not gone.done():
                node = asyncio.ensure_future(queue.get())
                await asyncio.wait({gone, node}, return_when=asyncio.FIRST_COMPLETED)
                if not node.done():
                    node.cancel()
                    return
                writer.write(b"%d\n" % node.result())
                await writer.drain()
        finally:
            gone.cancel()
            self._listening.discard(gone)
            self._replies.leave(queue)
