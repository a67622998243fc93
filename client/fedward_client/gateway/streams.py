"""Streams to the edge: phases over the connection of `Forward`, blobs over one of their own."""

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from fedward_common.channel import blob_pb2, phase_pb2
from fedward_common.channel.blobs import FETCH_METHOD, SEND_METHOD
from fedward_common.channel.phases import METHOD
from fedward_common.errors import ChannelError

Up = TypeVar("Up", bound=Message)
Down = TypeVar("Down", bound=Message)
Up_contra = TypeVar("Up_contra", bound=Message, contravariant=True)
Down_co = TypeVar("Down_co", bound=Message, covariant=True)

Explained = Callable[[grpc.aio.AioRpcError], ChannelError]


class Duplex(Protocol[Up_contra, Down_co]):
    """One stream: what the site says goes up, what the coordinator says comes down."""

    async def write(self, up: Up_contra) -> None:
        """Sends. Raises ChannelError when the stream is cut."""
        ...

    async def read(self) -> Down_co | None:
        """The next message; None when the other side closed. Raises ChannelError when cut."""
        ...

    def close(self) -> None:
        """Ends the stream at once."""
        ...


Stream = Duplex[phase_pb2.PhaseUp, phase_pb2.PhaseDown]
FetchStream = Duplex[blob_pb2.BlobWanted, blob_pb2.BlobDown]
SendStream = Duplex[blob_pb2.BlobUp, blob_pb2.BlobDown]


class EdgeStream(Generic[Up, Down]):
    """A `Duplex` over grpc."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        explained: Explained,
        *,
        method: str,
        up: type[Up],
        down: type[Down],
    ) -> None:
        self._explained = explained
        self._call = channel.stream_stream(
            method, request_serializer=up.SerializeToString, response_deserializer=down.FromString
        )()

    async def write(self, up: Up) -> None:
        """Sends; waits while the other side does not read.

        Raises:
            ChannelError: the stream is cut.
        """
        try:
            await self._call.write(up)
        except grpc.aio.AioRpcError as error:
            raise self._explained(error) from error
        except (grpc.aio.UsageError, grpc.aio.InternalError) as error:
            raise ChannelError("stream: expected it open, found it ended") from error

    async def read(self) -> Down | None:
        """The next message; None when the edge closed the stream.

        Raises:
            ChannelError: the stream is cut.
        """
        try:
            down: Down = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise self._explained(error) from error
        return None if down is grpc.aio.EOF else down

    def close(self) -> None:
        """Ends the stream at once."""
        self._call.cancel()


def phase_stream(channel: grpc.aio.Channel, explained: Explained) -> Stream:
    """A stream for the steps of a phase."""
    up, down = phase_pb2.PhaseUp, phase_pb2.PhaseDown
    return EdgeStream(channel, explained, method=METHOD, up=up, down=down)


def fetch_stream(channel: grpc.aio.Channel, explained: Explained) -> FetchStream:
    """A stream for the chunks of a blob that is offered."""
    up, down = blob_pb2.BlobWanted, blob_pb2.BlobDown
    return EdgeStream(channel, explained, method=FETCH_METHOD, up=up, down=down)


def send_stream(channel: grpc.aio.Channel, explained: Explained) -> SendStream:
    """A stream for the chunks of a blob of this site."""
    up, down = blob_pb2.BlobUp, blob_pb2.BlobDown
    return EdgeStream(channel, explained, method=SEND_METHOD, up=up, down=down)
