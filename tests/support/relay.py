"""A TCP relay that writes down what passes, and a reader for the ServerHello in it."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Recording:
    """The bytes of each direction, in order, of the first connection."""

    port: int
    to_server: bytearray = field(default_factory=bytearray)
    to_client: bytearray = field(default_factory=bytearray)


@contextlib.contextmanager
def recording_relay(target: tuple[str, int]) -> Iterator[Recording]:
    """Passes one connection on to `target` without touching a byte."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        recording = Recording(port=listener.getsockname()[1])
        thread = threading.Thread(target=_relay, args=(listener, target, recording), daemon=True)
        thread.start()
        yield recording


def _relay(listener: socket.socket, target: tuple[str, int], recording: Recording) -> None:
    client, _ = listener.accept()
    server = socket.create_connection(target)
    back = threading.Thread(target=_copy, args=(server, client, recording.to_client), daemon=True)
    back.start()
    _copy(client, server, recording.to_server)


def _copy(source: socket.socket, sink: socket.socket, record: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            record += data
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def server_hello_versions(data: bytes) -> list[int]:
    """The version that each ServerHello in `data` selects in its supported_versions extension.

    RFC 8446: 5.1 (records), 4.1.3 (ServerHello), 4.2.1 (supported_versions, type 43).
    """
    plaintext, offset = bytearray(), 0
    while offset + 5 <= len(data):
        kind, _, length = struct.unpack_from(">BHH", data, offset)
        if kind == 22:  # handshake; from the first encrypted record on the kind is 23
            plaintext += data[offset + 5 : offset + 5 + length]
        offset += 5 + length
    versions, offset = [], 0
    while offset + 4 <= len(plaintext):
        length = int.from_bytes(plaintext[offset + 1 : offset + 4], "big")
        if plaintext[offset] == 2:  # ServerHello or HelloRetryRequest
            versions.append(_supported_version(bytes(plaintext[offset + 4 : offset + 4 + length])))
        offset += 4 + length
    return versions


def _supported_version(hello: bytes) -> int:
    offset = 2 + 32  # legacy_version, random
    offset += 1 + hello[offset]  # session id
    offset += 2 + 1  # cipher suite, compression
    end = offset + 2 + int.from_bytes(hello[offset : offset + 2], "big")
    offset += 2
    while offset < end:
        kind, length = struct.unpack_from(">HH", hello, offset)
        if kind == 43:
            return int.from_bytes(hello[offset + 4 : offset + 4 + length], "big")
        offset += 4 + length
    return int.from_bytes(hello[:2], "big")  # TLS 1.2 and below have no such extension
