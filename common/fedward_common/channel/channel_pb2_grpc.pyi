"""Types of the generated grpc stubs (the generator writes none)."""

import grpc

from fedward_common.channel.channel_pb2 import (
    FetchModelReply,
    FetchModelRequest,
    FetchReply,
    FetchRequest,
    ForwardReply,
    ForwardRequest,
    HelloReply,
    HelloRequest,
    ListModelsReply,
    ListModelsRequest,
    RenewReply,
    RenewRequest,
    SubmitReply,
    SubmitRequest,
)

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

class FedwardSiteStub:
    """The site's side."""

    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    Hello: grpc.aio.UnaryUnaryMultiCallable[HelloRequest, HelloReply]
    Renew: grpc.aio.UnaryUnaryMultiCallable[RenewRequest, RenewReply]
    ListModels: grpc.aio.UnaryUnaryMultiCallable[ListModelsRequest, ListModelsReply]
    FetchModel: grpc.aio.UnaryUnaryMultiCallable[FetchModelRequest, FetchModelReply]

class FedwardSiteServicer:
    """The coordinator's side."""

    async def Hello(  # noqa: N802
        self, request: HelloRequest, context: grpc.aio.ServicerContext
    ) -> HelloReply: ...
    async def Renew(  # noqa: N802
        self, request: RenewRequest, context: grpc.aio.ServicerContext
    ) -> RenewReply: ...
    async def ListModels(  # noqa: N802
        self, request: ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> ListModelsReply: ...
    async def FetchModel(  # noqa: N802
        self, request: FetchModelRequest, context: grpc.aio.ServicerContext
    ) -> FetchModelReply: ...

def add_FedwardSiteServicer_to_server(  # noqa: N802
    servicer: FedwardSiteServicer, server: grpc.aio.Server
) -> None: ...

class FedwardEnrolmentStub:
    """The site's side."""

    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    Submit: grpc.aio.UnaryUnaryMultiCallable[SubmitRequest, SubmitReply]
    Fetch: grpc.aio.UnaryUnaryMultiCallable[FetchRequest, FetchReply]

class FedwardEnrolmentServicer:
    """The coordinator's side."""

    async def Submit(  # noqa: N802
        self, request: SubmitRequest, context: grpc.aio.ServicerContext
    ) -> SubmitReply: ...
    async def Fetch(  # noqa: N802
        self, request: FetchRequest, context: grpc.aio.ServicerContext
    ) -> FetchReply: ...

def add_FedwardEnrolmentServicer_to_server(  # noqa: N802
    servicer: FedwardEnrolmentServicer, server: grpc.aio.Server
) -> None: ...
