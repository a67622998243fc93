"""A reply whose objects SuperLink will not take a second time: calls that come twice, lost answers.

The channel keeps push sessions as Flower 1.41 does: an object is taken once in a session, a reply
that is announced again opens a new one and ends the old, and asks for what is missing.
"""

import asyncio
import itertools
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from flwr.app import Message
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse

from fedward_client.adapters.flower_fleet import FlowerFleetMessages
from fedward_client.gateway.fleet import Answer
from fedward_client.gateway.passage import Gateway
from tests.support.flower_node import (
    AnyCaller,
    FakeChannel,
    FakeGuard,
    instruction,
    objects,
    poll,
    pull_object,
    push_messages,
    push_object,
    reply_to,
)


@dataclass(kw_only=True)
class Sessions(FakeChannel):
    """A coordinator that gets each call of these routes twice and gives its second answer."""

    twice: frozenset[str] = frozenset()
    taken: dict[str, bytes] = field(default_factory=dict)
    session: str = ""
    pending: set[str] = field(default_factory=set)
    given: bool = False
    """Whether the ServerApp has taken the message: SuperLink knows its instruction no more."""

    async def forward(self, route: str, headers: Mapping[str, str], body: bytes) -> Answer:
        if route in self.twice:
            await super().forward(route, headers, body)
        return await super().forward(route, headers, body)

    def _body(self, route: str, body: bytes) -> bytes:
        if route == "push-messages":
            pushed = PushMessagesRequest.FromString(body)
            wanted = objects_below(pushed)
            if self.given:
                return PushMessagesResponse(session_id=str(uuid.uuid4())).SerializeToString()
            self.session, self.pending = str(uuid.uuid4()), set(wanted) - set(self.taken)
            missing = [one for one in wanted if one in self.pending]
            return PushMessagesResponse(
                session_id=self.session, objects_to_push=missing
            ).SerializeToString()
        if route == "push-object":
            one = PushObjectRequest.FromString(body)
            known = one.session_id == self.session and one.object_id in self.pending
            if known:
                self.pending.remove(one.object_id)
                self.taken[one.object_id] = one.object_content
            return PushObjectResponse(stored=known).SerializeToString()
        return super()._body(route, body)


def objects_below(pushed: PushMessagesRequest) -> list[str]:
    waiting, found = [pushed.message_object_trees[0]], []
    while waiting:
        tree = waiting.pop()
        found.append(tree.object_id)
        waiting += tree.children
    return found


def made(channel: FakeChannel) -> tuple[Gateway, Message]:
    """A gateway and a reply that may leave through it."""
    guard = FakeGuard()
    gateway = Gateway(channel=channel, guard=guard, fleet=FlowerFleetMessages(), caller=AnyCaller())
    asked = instruction()
    channel.messages.append(asked)
    ask(gateway, "pull-messages", poll())
    ask(gateway, "pull-object", pull_object(asked.metadata.message_id))
    reply = reply_to(asked)
    guard.seal(reply)
    return gateway, reply


def ask(gateway: Gateway, route: str, body: bytes) -> Answer:
    answer = asyncio.run(gateway.handle(route, {}, body))
    assert answer.status == 200
    return answer


def push_all(gateway: Gateway, reply: Message) -> list[bool]:
    """What SuperNode hears of each object, pushed in the session that it was given first."""
    opened = PushMessagesResponse.FromString(
        ask(gateway, "push-messages", push_messages(reply)).body
    )
    return [
        PushObjectResponse.FromString(
            ask(
                gateway, "push-object", push_object(one, content, session_id=opened.session_id)
            ).body
        ).stored
        for one, content in objects(reply).items()
    ]


@pytest.mark.parametrize(
    "twice", [(), ("push-object",), ("push-messages",), ("push-messages", "push-object")]
)
def test_a_reply_is_whole_though_calls_come_twice(twice: tuple[str, ...]) -> None:
    channel = Sessions(twice=frozenset(twice))
    gateway, reply = made(channel)

    assert all(push_all(gateway, reply))
    assert channel.taken == objects(reply)


@pytest.mark.parametrize("twice", [("push-object",), ("push-messages", "push-object")])
def test_a_reply_is_whole_though_calls_come_twice_and_at_once(twice: tuple[str, ...]) -> None:
    """SuperNode pushes several objects at the same time."""
    numbers = itertools.count()

    class Slow(Sessions):
        async def forward(self, route: str, headers: Mapping[str, str], body: bytes) -> Answer:
            if route == "push-object":  # each a little later: in sessions that are over by then
                await asyncio.sleep(0.002 * (next(numbers) % 7))
            return await super().forward(route, headers, body)

    channel = Slow(twice=frozenset(twice))
    gateway, reply = made(channel)
    opened = PushMessagesResponse.FromString(
        ask(gateway, "push-messages", push_messages(reply)).body
    )
    requests = [
        push_object(one, content, session_id=opened.session_id)
        for one, content in objects(reply).items()
    ]

    async def at_once() -> list[Answer]:
        return await asyncio.gather(*(gateway.handle("push-object", {}, one) for one in requests))

    answers = asyncio.run(at_once())
    assert all(PushObjectResponse.FromString(answer.body).stored for answer in answers)
    assert channel.taken == objects(reply)


def test_an_object_whose_answer_was_lost_is_not_asked_for_in_vain() -> None:
    channel = Sessions()
    gateway, reply = made(channel)
    opened = PushMessagesResponse.FromString(
        ask(gateway, "push-messages", push_messages(reply)).body
    )
    first, content = next(iter(objects(reply).items()))
    request = push_object(first, content, session_id=opened.session_id)

    ask(gateway, "push-object", request)  # its answer never came to SuperNode

    assert PushObjectResponse.FromString(ask(gateway, "push-object", request).body).stored


def test_a_coordinator_that_lost_the_session_gets_every_object_all_the_same() -> None:
    channel = Sessions()
    gateway, reply = made(channel)
    opened = PushMessagesResponse.FromString(
        ask(gateway, "push-messages", push_messages(reply)).body
    )
    channel.session, channel.pending = "gone", set()

    for one, content in objects(reply).items():
        answer = ask(
            gateway, "push-object", push_object(one, content, session_id=opened.session_id)
        )
        assert PushObjectResponse.FromString(answer.body).stored
    assert channel.taken == objects(reply)


@pytest.mark.parametrize("twice", [(), ("push-object",)])
def test_objects_still_come_in_though_the_serverapp_took_the_message_early(
    twice: tuple[str, ...],
) -> None:
    channel = Sessions(twice=frozenset(twice))
    gateway, reply = made(channel)
    opened = PushMessagesResponse.FromString(
        ask(gateway, "push-messages", push_messages(reply)).body
    )
    channel.given = True

    for one, content in objects(reply).items():
        request = push_object(one, content, session_id=opened.session_id)
        assert PushObjectResponse.FromString(ask(gateway, "push-object", request).body).stored
    assert channel.taken == objects(reply)


def test_what_is_refused_again_is_said_to_be_refused() -> None:
    class Never(Sessions):
        def _body(self, route: str, body: bytes) -> bytes:
            if route == "push-object":
                return PushObjectResponse(stored=False).SerializeToString()
            return super()._body(route, body)

    channel = Never()
    gateway, reply = made(channel)

    assert not any(push_all(gateway, reply))
    assert channel.routes().count("push-object") == 4 * len(objects(reply))
