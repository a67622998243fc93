"""How the edge hears a call: the certificate first, the message only then and only for so long.

A unary call waits for its message before any code of ours runs; whoever holds a certificate, even
a revoked one, could hold every place of the edge with calls whose message never comes, or have it
read 16 MiB for each. So the calls of channel.proto, which are unary on the wire, are taken as
streams of one message.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused

Request = TypeVar("Request")
Requests = AsyncIterator[Request]

PACKAGE: Final = "fedward.channel.v1"
MESSAGE_SECONDS: Final = 10.0
"""How long the message of a call may take: 8 MiB at 7 Mbit/s."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: its messages and who answers. A CallRefused becomes the reply's code."""

    request: type[Message]
    reply: type[Message]
    answer: Callable[[AsyncIterator[Any], grpc.aio.ServicerContext], Awaitable[Any]]

    async def serve(self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> Any:
        """The reply, or one with nothing but the word for why not."""
        try:
            return await self.answer(requests, context)
        except CallRefused as refused:
            return self.reply(error_code=refused.refusal.value)


def operations(service: str, offered: Mapping[str, Operation]) -> grpc.GenericRpcHandler:
    """What a grpc server is given for a service of channel.proto."""
    return grpc.method_handlers_generic_handler(
        f"{PACKAGE}.{service}",
        {
            name: grpc.stream_unary_rpc_method_handler(
                operation.serve,
                request_deserializer=operation.request.FromString,
                response_serializer=operation.reply.SerializeToString,
            )
            for name, operation in offered.items()
        },
    )


async def read_one(requests: AsyncIterator[Request]) -> Request:
    """The one message of a call.

    Raises:
        CallRefused: SLOW, it did not come in time; BODY_TOO_LARGE, none came: grpc ends a call
            whose message is over its limit without handing it over; MALFORMED, bytes that are not
            the operation's message.
    """
    try:
        return await asyncio.wait_for(anext(requests), timeout=MESSAGE_SECONDS)
    except TimeoutError as error:
        raise CallRefused(
            Refusal.SLOW, f"expected the message within {MESSAGE_SECONDS:g} s, found none"
        ) from error
    except DecodeError as error:
        raise CallRefused(Refusal.MALFORMED, "expected the message of the operation") from error
    except StopAsyncIteration as error:
        raise CallRefused(Refusal.BODY_TOO_LARGE, "expected a message, found none") from error


def shown_certificate(context: grpc.aio.ServicerContext) -> bytes:
    """The certificate (PEM) that the connection's peer proved to hold; empty without one."""
    certificates = context.auth_context().get("x509_pem_cert", [])
    return certificates[0] if certificates else b""
