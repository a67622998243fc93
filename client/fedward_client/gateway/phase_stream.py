"""The stream of one phase to the edge, over the connection that `Forward` uses."""

from collections.abc import Callable
from typing import Final, Protocol

import grpc

from fedward_common.channel import phase_pb2 as wire
from fedward_common.channel.phases import METHOD
from fedward_common.errors import ChannelError

WRITE_FAILED: Final = (grpc.aio.AioRpcError, grpc.aio.UsageError)


class Stream(Protocol):
    """One stream: what the site says goes up, what the coordinator says comes down."""

    async def write(self, up: wire.PhaseUp) -> None:
        """Sends. Raises ChannelError when the stream is cut."""
        ...

    async def read(self) -> wire.PhaseDown | None:
        """The next message; None when the other side closed. Raises ChannelError when cut."""
        ...

    def close(self) -> None:
        """Ends the stream at once."""
        ...


class EdgeStream:
    """A `Stream` over grpc."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        explained: Callable[[grpc.aio.AioRpcError], ChannelError],
    ) -> None:
        self._explained = explained
        self._call = channel.stream_stream(
            METHOD,
            request_serializer=wire.PhaseUp.SerializeToString,
            response_deserializer=wire.PhaseDown.FromString,
        )()

    async def write(self, up: wire.PhaseUp) -> None:
        """Sends; waits while the other side does not read.

        Raises:
            ChannelError: the stream is cut.
        """
        try:
            await self._call.write(up)
        except grpc.aio.AioRpcError as error:
            raise self._explained(error) from error
        except (grpc.aio.UsageError, grpc.aio.InternalError) as error:
            raise ChannelError("phase: expected an open stream, found it ended") from error

    async def read(self) -> wire.PhaseDown | None:
        """The next message; None when the edge closed the stream.

        Raises:
            ChannelError: the stream is cut.
        """
        try:
            down = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise self._explained(error) from error
        return None if down is grpc.aio.EOF else down

    def close(self) -> None:
        """Ends the stream at once."""
        self._call.cancel()
