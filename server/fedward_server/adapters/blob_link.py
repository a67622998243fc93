"""The ServerApp's connection to the edge for blobs: offers out as open files, whole blobs in."""

import os
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedward_common.arrays import Tensors, tensor_parts, tensors_from_bytes
from fedward_common.channel.blob_files import (
    BlobFile,
    close_all,
    let_go,
    receive_with_files,
    send_with_files,
    store,
)
from fedward_common.channel.blob_pb2 import BlobArrived, BlobOffer, BlobOrder
from fedward_common.channel.blobs import INLINE_BYTES, Manifest
from fedward_common.channel.phases import framed
from fedward_common.errors import ProtocolError
from fedward_common.ids import SiteId
from fedward_server.adapters.readiness import readable
from fedward_server.blob_fleet import Came, Offered
from fedward_server.fleet import Kept, MappedTensors

TIMEOUT_SECONDS: Final = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Order:
    """An exchange as it was said, to be said again to an edge that was started anew."""

    offers: Sequence[tuple[Manifest, BlobFile, Sequence[SiteId]]]
    frame: bytes

    def close(self) -> None:
        for _, file, _sites in self.offers:
            file.close()


class BlobTray:
    """The `Tray` of a coordinator: what is large is mapped from a nameless file in `folder`."""

    def __init__(self, folder: Path, *, inline: int = INLINE_BYTES) -> None:
        self._folder = folder
        self._inline = inline

    def keep(self, tensors: Tensors) -> Kept:
        """The tensors as they are where they are small, and views of a file where not.

        Raises:
            StorageError: the disk has no room.
        """
        parts = tensor_parts(tensors)
        size = sum(map(len, parts))
        if size <= self._inline:
            return Kept(tensors=tensors, octets=b"".join(parts))
        file, start = BlobFile.make(self._folder, size, may_be_named=True), 0
        try:
            for part in parts:
                file.write_at(start, part)
                start += len(part)
            octets = file.view()
        finally:
            file.close()
        views = MappedTensors(tensors_from_bytes(octets), octets=octets)
        let_go(octets)
        return Kept(tensors=views, octets=octets)


class BlobLink:
    """Implements the blob fleet's `Blobs` over the edge's Unix socket and files in `folder`."""

    def __init__(self, path: Path, *, folder: Path) -> None:
        self._path = path
        self._folder = folder
        self._socket: socket.socket | None = None
        self._order: _Order | None = None

    def begin(
        self,
        study: str,
        offers: Sequence[Offered],
        *,
        senders: Collection[SiteId],
        max_bytes: int,
    ) -> None:
        """Begins an exchange; files of the one before are given up.

        Raises:
            StorageError: the disk has no room for what is offered.
        """
        parts = [(one.manifest, store(self._folder, one.content), one.sites) for one in offers]
        for one in offers:
            let_go(one.content)
        order = BlobOrder(
            study=study,
            offers=[
                BlobOffer(manifest=manifest.canonical, sites=list(sites))
                for manifest, _file, sites in parts
            ],
            senders=sorted(senders),
            max_bytes=max_bytes,
        )
        if self._order is not None:
            self._order.close()
        self._order = _Order(offers=parts, frame=framed(order))
        if self._socket is None or not self._say():
            self._connect()

    def arrived(self, *, timeout_seconds: float) -> list[Came]:
        """The whole blobs that came since the last call; waits up to the timeout for a first one.

        An edge that is gone is looked for again: what it had of a blob is lost with it, and the
        sites send it again.
        """
        if self._socket is None and not self._connect():
            readable(seconds=timeout_seconds)
            return []
        found: list[Came] = []
        while self._socket is not None and _ready(self._socket, 0.0 if found else timeout_seconds):
            came = self._receive(self._socket)
            if came is None:
                self._drop()
                break
            found.append(came)
        return found

    def close(self) -> None:
        """Ends the exchange: the edge gives up everything of it."""
        self._drop()
        if self._order is not None:
            self._order.close()
        self._order = None

    def _connect(self) -> bool:
        self._drop()
        if self._order is None:
            return False
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(TIMEOUT_SECONDS)
        try:
            connection.connect(str(self._path))
        except OSError:
            connection.close()
            return False
        self._socket = connection
        return self._say()

    def _say(self) -> bool:
        if self._socket is None or self._order is None:
            return False
        try:
            files = [file.descriptor for _, file, _sites in self._order.offers]
            send_with_files(self._socket, self._order.frame, files)
        except OSError:
            self._drop()
            return False
        return True

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _receive(self, connection: socket.socket) -> Came | None:
        """What the edge says next; None where it is gone."""
        try:
            said = receive_with_files(connection, BlobArrived)
        except (OSError, ProtocolError):
            return None
        if said is None:
            return None
        arrived, files = said
        if len(files) != 1:
            close_all(files)
            return None
        file = BlobFile(files[0], os.fstat(files[0]).st_size)
        try:
            return Came(site=SiteId(arrived.site), id=arrived.id, content=file.view())
        finally:
            file.close()


def _ready(connection: socket.socket, seconds: float) -> bool:
    return bool(readable(connection, seconds=seconds))
