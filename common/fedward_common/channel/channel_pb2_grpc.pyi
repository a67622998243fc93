"""Types of the generated grpc stubs (the generator writes none)."""

import grpc

from fedward_common.channel.channel_pb2 import ForwardReply, ForwardRequest

class FedwardChannelStub:
    """The gateway's side."""

    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    Forward: grpc.aio.UnaryUnaryMultiCallable[ForwardRequest, ForwardReply]

class FedwardChannelServicer:
    """The edge's side."""

    async def Forward(  # noqa: N802
        self, request: ForwardRequest, context: grpc.aio.ServicerContext
    ) -> ForwardReply: ...

def add_FedwardChannelServicer_to_server(  # noqa: N802
    servicer: FedwardChannelServicer, server: grpc.aio.Server
) -> None: ...
