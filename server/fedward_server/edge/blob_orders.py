"""The Unix socket on which ServerApps offer blobs and get those of the sites, as open files."""

import asyncio
import contextlib
import os
import re
import socket
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import structlog

from fedward_common.channel.blob_files import (
    BlobFile,
    close_all,
    receive_with_files,
    send_with_files,
)
from fedward_common.channel.blob_pb2 import BlobArrived, BlobOrder
from fedward_common.channel.blobs import Manifest
from fedward_common.channel.phases import framed
from fedward_common.errors import FedwardError, PolicyRefused, ProtocolError
from fedward_common.ids import DIGEST, LABEL, SiteId
from fedward_common.unix_sockets import listen_unix, peer_uid
from fedward_server.edge.blob_hub import BlobHub, Exchange, offers_of

MAX_SITES: Final = 1000
MAX_CONNECTIONS: Final = 64

_log = structlog.get_logger(__name__)


class BlobOrders:
    """One connection is one ServerApp; what it offered and awaited is over when it ends.

    The socket is 0600 and only a process of the edge's own user is heard. `max_bytes` bounds what a
    site may send, whatever a ServerApp allows.
    """

    def __init__(self, *, path: Path, hub: BlobHub, max_bytes: int) -> None:
        self._path = path
        self._hub = hub
        self._max_bytes = max_bytes
        self._listener: socket.socket | None = None
        self._connections: set[_Connection] = set()

    async def start(self) -> None:
        """Listens. Raises StartError when the socket cannot be made, or something listens there."""
        self._listener = listen_unix(self._path)
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    async def stop(self) -> None:
        """Stops listening and ends every exchange."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
        for connection in list(self._connections):
            connection.end()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        if self._listener is None:
            return
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            try:
                if peer_uid(connection) != os.getuid():
                    raise PolicyRefused("blob: expected the coordinator's user, found another")
                if len(self._connections) >= MAX_CONNECTIONS:
                    raise PolicyRefused("blob: expected fewer ServerApps at a time")
            except FedwardError as error:
                _log.warning("edge.blob-refused", reason=str(error))
                connection.close()
                return
            _Connection(connection, self._hub, self._max_bytes, self._connections).start()


class _Connection:
    """What one ServerApp says, heard in a thread of its own, and what it is told."""

    def __init__(
        self,
        connection: socket.socket,
        hub: BlobHub,
        max_bytes: int,
        among: "set[_Connection]",
    ) -> None:
        connection.setblocking(True)
        self._socket = connection
        self._hub = hub
        self._max_bytes = max_bytes
        self._among = among
        self._loop = asyncio.get_running_loop()
        self._exchange: Exchange | None = None

    def start(self) -> None:
        """Begins to listen."""
        self._among.add(self)
        threading.Thread(target=self._hear, name="blob-orders", daemon=True).start()

    def end(self) -> None:
        """The ServerApp is gone, or said what it must not: its exchange is over."""
        self._among.discard(self)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread, which closes it
        if self._exchange is not None:
            self._hub.end(self._exchange)
        self._exchange = None

    def _hear(self) -> None:
        with self._socket, contextlib.suppress(RuntimeError):  # the loop may have ended
            try:
                while (came := receive_with_files(self._socket, BlobOrder)) is not None:
                    self._loop.call_soon_threadsafe(self._begin, *came)
            except (OSError, ProtocolError) as error:
                _log.warning("edge.blob-refused", error=type(error).__name__)
            self._loop.call_soon_threadsafe(self.end)

    def _begin(self, order: BlobOrder, files: list[int]) -> None:
        try:
            exchange = self._read(order, files)
            self._hub.begin(exchange)
        except (FedwardError, OSError) as error:
            _log.warning("edge.blob-refused", reason=str(error))
            self.end()
            return
        if self._exchange is not None and self._exchange.study != exchange.study:
            self._hub.end(self._exchange)
        self._exchange = exchange

    def _read(self, order: BlobOrder, files: list[int]) -> Exchange:
        waiting = list(files)
        try:
            if not re.fullmatch(DIGEST, order.study) or len(files) != len(order.offers):
                raise ProtocolError("blob: expected a study, and a file with each offer")
            manifests = [Manifest.parse(offer.manifest) for offer in order.offers]
            senders = _sites(order.senders)
            parts = [
                (manifest, BlobFile.adopt(waiting.pop(0), manifest.size), _sites(offer.sites))
                for manifest, offer in zip(manifests, order.offers, strict=True)
            ]
        finally:
            close_all(waiting)
        return Exchange(
            study=order.study,
            arrived=self._tell,
            offers=offers_of(parts),
            senders=frozenset(senders),
            max_bytes=min(order.max_bytes, self._max_bytes),
        )

    def _tell(self, site: SiteId, blob: str, file: BlobFile) -> None:
        """One short frame: it does not fill the socket's buffer before the exchange is over."""
        try:
            frame = framed(BlobArrived(site=site, id=blob))
            send_with_files(self._socket, frame, [file.descriptor])
        except OSError as error:
            _log.warning("edge.blob-refused", error=type(error).__name__)


def _sites(names: Iterable[str]) -> list[str]:
    found = list(names)
    if len(found) > MAX_SITES or not all(re.fullmatch(LABEL, site) for site in found):
        raise ProtocolError(f"blob: expected up to {MAX_SITES} site ids, found something else")
    return found
