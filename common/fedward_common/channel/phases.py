"""What travels in a phase: envelopes with a number, as protobuf, and framed on Unix sockets.

A frame is 4 bytes of length (big-endian) and one message of phase.proto. Both ends of each hop
check with these functions; sizes are those of `Forward`.
"""

import asyncio
import hashlib
import re
import socket
import struct
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from fedward_common.channel.phase_pb2 import PhaseBlob, PhaseStep
from fedward_common.channel.routes import MAX_BODY_BYTES
from fedward_common.errors import ProtocolError
from fedward_common.ids import Digest
from fedward_common.wire import Envelope

T = TypeVar("T", bound=Message)

SERVICE: Final = "fedward.channel.v1.FedwardPhase"
METHOD: Final = f"/{SERVICE}/Run"
ROUTE: Final = "phase"
"""How logs and journals name what passes in a phase."""
STEP: Final = "step"
REPLY: Final = "reply"
"""Kinds of objects in logs and journals: an instruction with its blobs, and a sealed answer."""

MAX_BLOBS: Final = 16
MAX_FRAME_BYTES: Final = MAX_BODY_BYTES + (1 << 16)
"""An envelope of 8 MiB, and room for names, numbers and sites around it."""

_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_LENGTH = struct.Struct(">I")
HEAD_BYTES: Final = _LENGTH.size


def to_step(number: int, envelope: Envelope) -> PhaseStep:
    """The step that carries `envelope` under `number`; nothing but these decides its bytes.

    Raises:
        ProtocolError: it is larger than a step may be.
    """
    step = PhaseStep(
        number=number,
        header=envelope.header,
        blobs=[
            PhaseBlob(name=name, content=bytes(envelope.blobs[name]))
            for name in sorted(envelope.blobs)
        ],
    )
    from_step(step)
    return step


def from_step(step: PhaseStep) -> Envelope:
    """The envelope in `step`.

    Raises:
        ProtocolError: no number, a name twice or of another form, too many blobs or bytes.
    """
    blobs = {blob.name: blob.content for blob in step.blobs}
    if step.number < 1 or len(blobs) != len(step.blobs) or len(blobs) > MAX_BLOBS:
        raise ProtocolError(f"step: expected a number and up to {MAX_BLOBS} blobs, each once")
    if not all(_NAME.fullmatch(name) for name in blobs):
        raise ProtocolError("step: expected blobs with lower-case names, found another")
    envelope = Envelope(header=step.header, blobs=blobs)
    if envelope_bytes(envelope) > MAX_BODY_BYTES:
        raise ProtocolError(
            f"step: expected at most {MAX_BODY_BYTES} bytes, found {envelope_bytes(envelope)}"
        )
    return envelope


def envelope_bytes(envelope: Envelope) -> int:
    """How many bytes an envelope carries: its header and its blobs."""
    return len(envelope.header) + sum(map(len, envelope.blobs.values()))


def envelope_sha256(envelope: Envelope) -> Digest:
    """The digest by which journal and log name an envelope; equal envelopes, equal digests."""
    digest = hashlib.sha256(b"fedward/phase/v1|")
    parts = [("", envelope.header), *sorted(envelope.blobs.items())]
    for name, content in parts:
        digest.update(f"{name}:{len(content)}|".encode())
        digest.update(content)
    return Digest(digest.hexdigest())


def parse(kind: type[T], data: bytes) -> T:
    """The message in `data`. Raises ProtocolError for anything else."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise ProtocolError(f"phase: expected a {kind.DESCRIPTOR.name}, found another") from error


def framed(message: Message) -> bytes:
    """`message` as a frame. Raises ProtocolError when it is too large for one."""
    data = message.SerializeToString()
    if len(data) > MAX_FRAME_BYTES:
        raise ProtocolError(
            f"phase: expected at most {MAX_FRAME_BYTES} bytes in a frame, found {len(data)}"
        )
    return _LENGTH.pack(len(data)) + data


async def read_message(reader: asyncio.StreamReader, kind: type[T]) -> T | None:
    """The next framed message; None where the other side closed between frames, or was cut off.

    Raises:
        ProtocolError: too large, or another message.
    """
    try:
        length = _length(await reader.readexactly(_LENGTH.size))
        return parse(kind, await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def receive_message(connection: socket.socket, kind: type[T]) -> T | None:
    """As `read_message`, from a blocking socket; its timeout holds for each piece.

    Raises:
        ProtocolError: too large, or another message.
        OSError: the connection broke, or was silent for longer than its timeout.
    """
    return receive_rest(connection, b"", kind)


def receive_rest(connection: socket.socket, head: bytes, kind: type[T]) -> T | None:
    """As `receive_message`, where up to HEAD_BYTES of the frame were received before."""
    rest = _receive(connection, HEAD_BYTES - len(head))
    body = None if rest is None else _receive(connection, _length(head + rest))
    return None if body is None else parse(kind, body)


def _receive(connection: socket.socket, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        part = connection.recv(min(count - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return bytes(data)


def _length(head: bytes) -> int:
    (length,) = _LENGTH.unpack(head)
    if length > MAX_FRAME_BYTES:
        raise ProtocolError(
            f"phase: expected at most {MAX_FRAME_BYTES} bytes in a frame, found {length}"
        )
    return int(length)
