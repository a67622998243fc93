"""Blobs at the worker: what a message names by a manifest, mapped from the gateway's open file.

The worker has no network. It asks the gateway, on the socket where it answers phases, for a blob of
its own message; the gateway fetches what a message named before any worker asks.
"""

import socket
import time
from pathlib import Path
from typing import Final

from fedward_common.channel.blob_files import BlobFile, close_all, receive_with_files
from fedward_common.channel.blobs import Manifest, manifests_in, with_blobs
from fedward_common.channel.phase_pb2 import PhaseDown, PhaseUp
from fedward_common.channel.phases import framed
from fedward_common.errors import ChannelError
from fedward_common.wire import Envelope, Octets

WAIT_SECONDS: Final = 86_400.0
"""The gateway gives up long before, and says so."""
RETURN_SECONDS: Final = 10.0
"""How long a gateway that went away may take to come back."""
RETRY_SECONDS: Final = 0.25


def with_fetched(
    envelope: Envelope, *, socket_path: Path, return_seconds: float = RETURN_SECONDS
) -> Envelope:
    """The envelope with its blobs in place of their manifests, mapped into memory.

    Left to the caller: that the model has the digest that the instruction names.

    Raises:
        ProtocolError: a manifest is none.
        ChannelError: the gateway does not have the blob, or is gone.
    """
    found = manifests_in(envelope.blobs)
    if not found:
        return envelope
    limit = time.monotonic() + return_seconds
    return with_blobs(
        envelope, {name: _fetched(one, socket_path, limit) for name, one in found.items()}
    )


def _fetched(manifest: Manifest, path: Path, limit: float) -> Octets:
    while True:
        try:
            return _asked(manifest, path)
        except OSError as error:
            if time.monotonic() > limit:
                raise ChannelError("blob: expected the gateway's answer, found it gone") from error
            time.sleep(RETRY_SECONDS)


def _asked(manifest: Manifest, path: Path) -> Octets:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(WAIT_SECONDS)
        connection.connect(str(path))
        connection.sendall(framed(PhaseUp(blob=manifest.id)))
        came = receive_with_files(connection, PhaseDown)
    if came is None:
        raise ConnectionResetError("closed")
    down, files = came
    if down.WhichOneof("said") != "blob" or len(files) != 1 or down.blob != manifest.size:
        close_all(files)
        raise ChannelError("blob: expected the gateway to hand it over, found it refused")
    file = BlobFile.adopt(files[0], manifest.size)
    try:
        return file.view()
    finally:
        file.close()
