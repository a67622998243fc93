"""The edge's ports in memory, so that a test can ring, lose, delay and revoke in one line each."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from flwr.proto.error_pb2 import Error
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import (
    Message,
    Metadata,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node

from fedward_common.canonical import sha256_hex
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_server.edge.admission import Call
from fedward_server.edge.forward import Edge
from fedward_server.ports import FleetReply
from tests.support.pki import now


def poll_body(node: int) -> bytes:
    return PullMessagesRequest(node=Node(node_id=node)).SerializeToString()


def message_body(message_id: str = "m") -> bytes:
    message = Message(metadata=Metadata(message_id=message_id))
    return PullMessagesResponse(messages_list=[message]).SerializeToString()


def pushed_messages(message_id: str, *, run: int = 5, error: bool = False) -> bytes:
    message = Message(metadata=Metadata(message_id=message_id, run_id=run))
    if error:
        message.error.CopyFrom(Error(code=1))
    return PushMessagesRequest(messages_list=[message]).SerializeToString()


def pushed_object(content: bytes, *, object_id: str | None = None, run: int = 5) -> bytes:
    return PushObjectRequest(
        object_id=object_id or sha256_hex(content), object_content=content, run_id=run
    ).SerializeToString()


def wanted_object(object_id: str, *, run: int = 5) -> bytes:
    return PullObjectRequest(object_id=object_id, run_id=run).SerializeToString()


def pulled_object(content: bytes) -> bytes:
    return PullObjectResponse(object_content=content).SerializeToString()


async def forwarded(edge: Edge, call: Call) -> FleetReply:
    """What the edge answers to a call whose message is there at once."""

    async def read() -> Call:
        return call

    return await edge.forward(call.certificate_pem, read)


@dataclass(kw_only=True)
class FakeUpstream:
    """A SuperLink with one queue of messages per node; remembers every call."""

    messages: dict[int, list[bytes]] = field(default_factory=dict)
    hidden_pulls: int = 0
    hold: asyncio.Event | None = None
    down: bool = False
    replies: dict[str, FleetReply] = field(default_factory=dict)
    calls: list[tuple[str, bytes]] = field(default_factory=list)

    async def call(self, route: str, headers: Mapping[str, str], body: bytes) -> FleetReply:
        self.calls.append((route, body))
        if self.down:
            raise CallRefused(Refusal.UPSTREAM, "down")
        if route in self.replies:
            return self.replies[route]
        if route != "pull-messages":
            return FleetReply(status=200, body=b"done " + route.encode())
        node = PullMessagesRequest.FromString(body).node.node_id
        waiting = self.messages.get(node, [])
        if self.hidden_pulls > 0:
            self.hidden_pulls -= 1
            waiting = []
        reply = FleetReply(status=200, body=waiting.pop(0) if waiting else b"")
        if self.hold is not None:
            await self.hold.wait()
        return reply

    @property
    def pulls(self) -> int:
        return sum(1 for route, _ in self.calls if route == "pull-messages")


@dataclass(kw_only=True)
class Events:
    """A log in memory."""

    heard: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    def append(self, action: str, **fields: object) -> None:
        self.heard.append((action, fields))

    def of(self, action: str) -> list[dict[str, object]]:
        return [fields for heard, fields in self.heard if heard == action]


@dataclass(kw_only=True)
class SetTime:
    """A clock that shows what it was set to."""

    time: datetime = field(default_factory=now)

    def __call__(self) -> datetime:
        return self.time
