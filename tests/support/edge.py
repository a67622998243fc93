"""The edge's ports in memory, so that a test can ring, lose, delay and revoke in one line each."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.proto.message_pb2 import Message, Metadata
from flwr.proto.node_pb2 import Node

from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_server.ports import FleetReply
from tests.support.pki import now


def poll_body(node: int) -> bytes:
    return PullMessagesRequest(node=Node(node_id=node)).SerializeToString()


def message_body(message_id: str = "m") -> bytes:
    message = Message(metadata=Metadata(message_id=message_id))
    return PullMessagesResponse(messages_list=[message]).SerializeToString()


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
