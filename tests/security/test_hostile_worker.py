"""A worker or local user, in league with the coordinator, against guard and gateway."""

import asyncio
import os
from pathlib import Path

import pytest
from flwr.app import Error
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_tree

from fedward_client.adapters.flower_fleet import FIXED_ERRORS, FlowerFleetMessages
from fedward_client.adapters.flower_records import object_ids, to_records, tree_sha256
from fedward_client.gateway.caller import SuperNode
from fedward_client.gateway.passage import Gateway
from fedward_client.guard.server import Access, GuardServer
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.errors import StartError
from fedward_common.trust.certificates import NodeKey
from fedward_common.wire import Envelope
from tests.support.flower_node import (
    FakeChannel,
    FakeGuard,
    instruction,
    objects,
    poll,
    pull_object,
    push_messages,
    reply_to,
    signed_headers,
)

KEY = NodeKey.generate()
STRANGER = NodeKey.generate()


class Site:
    """A gateway between a coordinator and a guard in memory, and the site's SuperNode."""

    def __init__(self) -> None:
        self.channel = FakeChannel()
        self.guard = FakeGuard()
        self.gateway = Gateway(
            channel=self.channel,
            guard=self.guard,
            fleet=FlowerFleetMessages(),
            caller=SuperNode(public_key=KEY.header),
        )
        self.headers = signed_headers(KEY)

    def ask(self, route: str, body: bytes, headers: dict[str, str] | None = None) -> int:
        given = self.headers if headers is None else headers
        return asyncio.run(self.gateway.handle(route, given, body)).status

    def sealed(self) -> PushMessagesRequest:
        """A reply that the guard sealed, ready to be pushed."""
        self.message = instruction()
        self.channel.messages.append(self.message)
        assert self.ask("pull-messages", poll()) == 200
        assert self.ask("pull-object", pull_object(self.message.metadata.message_id)) == 200
        reply = reply_to(self.message)
        self.guard.seal(reply)
        self.ids = sorted(objects(reply).keys() - {reply.metadata.message_id})
        self.channel.reached.clear()
        return PushMessagesRequest.FromString(push_messages(reply))


@pytest.fixture
def site() -> Site:
    return Site()


def content(request: PushMessagesRequest) -> ObjectTree:
    return request.message_object_trees[0].children[0]


def test_a_sealed_reply_leaves_once_with_its_own_tree(site: Site) -> None:
    request = site.sealed()

    assert site.ask("push-messages", request.SerializeToString()) == 200
    assert site.channel.routes() == ["push-messages"]


def test_ids_repeated_in_the_tree_of_a_sealed_reply_do_not_leave(site: Site) -> None:
    """Each repetition is a letter of an alphabet as large as the reply has objects."""
    request = site.sealed()
    for bit in "".join(f"{byte:08b}" for byte in b"Jane Doe, positive"):
        content(request).children.add(object_id=site.ids[int(bit)])

    assert site.ask("push-messages", request.SerializeToString()) == 403
    assert site.channel.reached == []


@pytest.mark.parametrize("where", ["beside", "below", "flat"])
def test_another_nesting_of_the_same_ids_does_not_leave(site: Site, where: str) -> None:
    request = site.sealed()
    tree = request.message_object_trees[0]
    if where == "beside":
        tree.children.add(object_id=site.ids[0])
    elif where == "below":
        content(request).children[0].children.add(object_id=site.ids[0])
    else:
        del content(request).children[:]
        content(request).children.extend(ObjectTree(object_id=name) for name in site.ids)

    assert site.ask("push-messages", request.SerializeToString()) == 403
    assert site.channel.reached == []


def test_the_order_of_siblings_is_not_the_workers_to_choose(site: Site) -> None:
    request = site.sealed()
    turned = ObjectTree()
    turned.CopyFrom(content(request))
    del content(request).children[:]
    content(request).children.extend(reversed(turned.children))

    assert site.ask("push-messages", request.SerializeToString()) == 200
    sent = PushMessagesRequest.FromString(site.channel.reached[0][1])
    names = [child.object_id for child in content(sent).children]
    assert names == sorted(names)


def test_the_ids_of_an_envelope_fix_the_tree_as_well() -> None:
    records = to_records(Envelope(header=b"{}", blobs={"payload": b"p"}))
    tree = ObjectTree(children=[get_object_tree(records)])

    assert tree_sha256(tree) in object_ids(Envelope(header=b"{}", blobs={"payload": b"p"}))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"flwr-signature": "SmFuZSBEb2U"},
        signed_headers(STRANGER),
        {**signed_headers(KEY), "flwr-timestamp": "2026-11-20T10:00:01+00:00"},
        {**signed_headers(KEY), "flwr-signature": "SmFuZSBEb2U="},
        {**signed_headers(STRANGER), "flwr-public-key": KEY.header},
    ],
    ids=["nothing", "text", "another key", "another time", "no signature", "another signer"],
)
def test_a_local_process_that_is_not_supernode_sends_nothing_out(
    site: Site, headers: dict[str, str]
) -> None:
    """An object id or a signature that SuperLink would refuse has left all the same."""
    asked = pull_object(b"Jane Doe: positive; John Roe: ok".hex())

    assert site.ask("pull-object", asked, headers) == 503
    assert site.channel.reached == []
    assert site.guard.entries == []


def test_a_header_of_flower_says_what_flower_says(site: Site) -> None:
    for name in ("flwr-package-name", "flwr-package-version", "flwr-component-name"):
        assert site.ask("pull-messages", poll(), {**site.headers, name: "Jane.Doe"}) == 403

    assert site.channel.reached == []


def test_the_refusal_of_a_strange_caller_has_its_own_word() -> None:
    with pytest.raises(CallRefused) as caught:
        SuperNode(public_key=KEY.header).check(signed_headers(STRANGER))

    assert caught.value.refusal is Refusal.NODE_KEY


def test_an_instruction_is_answered_with_one_message_however_often_a_refusal_is_armed(
    site: Site,
) -> None:
    """Each message would carry its time of creation, which the worker picks to the microsecond."""
    first = site.sealed()
    assert site.ask("push-messages", first.SerializeToString()) == 200
    (message,) = first.messages_list
    site.guard.released.clear()  # the guard arms what was sealed again

    second = PushMessagesRequest.FromString(push_messages(reply_to(site.message)))

    assert second.messages_list[0].metadata.message_id != message.metadata.message_id
    assert site.ask("push-messages", second.SerializeToString()) == 403
    assert site.ask("push-messages", first.SerializeToString()) == 200
    assert site.channel.routes() == ["push-messages", "push-messages"]


def test_an_instruction_is_answered_with_one_error_at_most(site: Site) -> None:
    site.sealed()
    code, reason = next(iter(FIXED_ERRORS))
    replies = [push_messages(reply_to(site.message, Error(code, reason))) for _ in range(20)]

    answers = [site.ask("push-messages", reply) for reply in replies]

    assert answers == [200] + [403] * 19
    assert site.channel.routes() == ["push-messages"]


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o720])
def test_a_guard_does_not_listen_where_another_could_take_its_place(
    tmp_path: Path, mode: int
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(mode)

    with pytest.raises(StartError, match="only this process's user"):
        GuardServer(folder / "worker.sock", {}, access=Access(uids=frozenset({os.geteuid()})))

    assert list(folder.iterdir()) == []
