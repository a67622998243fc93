"""One hostile hospital, or a thief of its papers, against the coordinator and the others."""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message
from flwr.proto.message_pb2 import Message as FlowerMessage
from flwr.proto.message_pb2 import Metadata
from flwr.supercore.constant import HEAD_BODY_DIVIDER, HEAD_VALUE_DIVIDER
from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedward_common.canonical import sha256_hex
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.errors import ConfigError, ProtocolError
from fedward_common.ids import SiteId
from fedward_common.study.files import SiteKeys
from fedward_server.adapters.flower_fleet import FlowerFleetMessages
from fedward_server.adapters.flower_grid import FlowerFleet
from fedward_server.adapters.run_files import read_study, run_path
from fedward_server.edge.admission import Admission, Call, CallRate
from fedward_server.edge.bell import WorkBell
from fedward_server.edge.forward import Edge
from fedward_server.edge.gate import CALLS_UNDER_WAY, Gate
from fedward_server.edge.replies import ReplyWatch
from fedward_server.study_run import parse_counts
from tests.support.edge import Events, FakeUpstream, SetTime, forwarded, poll_body
from tests.support.pki import Authority, Site
from tests.support.roster import InMemoryRegistry
from tests.support.studies import SITES, key_digest, make_spec

NODE_KEYS = {name: f"public key of {name}".encode() for name in SITES}
STUDY = make_spec(
    keys={
        name: SiteKeys(key_sha256=key_digest(number), node_key_sha256=sha256_hex(NODE_KEYS[name]))
        for number, name in enumerate(SITES, start=1)
    }
)
Objects = list[tuple[str, bytes]]


def made(kind: str, children: Iterable[str], body: bytes) -> tuple[str, bytes]:
    """A Flower object of any content, under its right id: SuperLink's store takes it."""
    head = HEAD_VALUE_DIVIDER.join((kind, ",".join(children), str(len(body))))
    content = head.encode() + HEAD_BODY_DIVIDER + body
    return get_object_id(content), content


def in_message(*objects: tuple[str, bytes]) -> Objects:
    """The objects and a message whose content is the last of them."""
    metadata = Metadata(run_id=1, src_node_id=1, dst_node_id=1, ttl=9.0, message_type="train")
    body = FlowerMessage(metadata=metadata).SerializeToString()
    return [*objects, made("Message", [name for name, _ in objects[-1:]], body)]


def chained(depth: int) -> Objects:
    objects = [made("ConfigRecord", [], b"")]
    for _ in range(depth):
        objects.append(made("RecordDict", [objects[-1][0]], b"{}"))
    return in_message(*objects)


def array(body: dict[str, Any]) -> Objects:
    item = made("Array", [], json.dumps(body).encode())
    record = made("ArrayRecord", [item[0]], json.dumps({"bytes": item[0]}).encode())
    top = made("RecordDict", [record[0]], json.dumps({"blob.payload": record[0]}).encode())
    return in_message(item, record, top)


HOSTILE = {
    "no JSON": in_message(made("RecordDict", [], b"no json")),
    "a list": in_message(made("RecordDict", [], b"[]")),
    "deep JSON": in_message(made("RecordDict", [], b"[" * 200_000)),
    "another kind": in_message(made("ArrayChunk", [], b"x")),
    "no content": in_message(),
    "a missing child": in_message(made("RecordDict", ["a" * 64], b"{}")),
    "no protobuf": [made("Message", [], b"\xff\xff\xff")],
    "a chunk that is not there": array({"arraychunk_ids": [5]}),
    "an array without type": array({"arraychunk_ids": []}),
    "a deep tree": chained(3000),
}


@dataclass
class Grid:
    """Flower's Grid, which puts a reply together from what the site pushed."""

    nodes: list[SimpleNamespace]
    replies: dict[str, Objects] = field(default_factory=dict)

    def get_nodes(self) -> list[SimpleNamespace]:
        return self.nodes

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        pulled = [self.replies.pop(name) for name in message_ids if name in self.replies]
        return [
            inflate_object_from_contents(objects[-1][0], dict(objects))  # type: ignore[misc]
            for objects in pulled
        ]


@pytest.mark.parametrize("objects", HOSTILE.values(), ids=HOSTILE)
def test_objects_that_are_no_reply_lose_their_site_and_not_the_study(objects: Objects) -> None:
    grid = Grid(nodes=[SimpleNamespace(node_id=7, public_key=NODE_KEYS[SITES[0]])])
    fleet = FlowerFleet(grid, study=STUDY, kick=lambda _nodes: None)  # type: ignore[arg-type]
    fleet._pending["m0"] = SiteId(SITES[0])
    grid.replies["m0"] = objects

    (answer,) = fleet.receive(timeout_seconds=0.0)

    assert (answer.site, answer.envelope) == (SITES[0], None)
    assert fleet.receive(timeout_seconds=0.0) == []


@pytest.mark.parametrize(
    "payload",
    [
        b"[" * 100_000,
        b'{"counts":[[' + b"9" * 400 + b",1],[1,1]]}",
        b'{"counts":[[' + b"9" * 5000 + b",1],[1,1]]}",
        b'{"counts":[[1e999,1],[1,1]]}',
        b'{"counts":[[NaN,1],[1,1]]}',
        b'{"counts":[[{},1],[1,1]]}',
        b'{"counts":null}',
        b"[]",
    ],
    ids=["deep", "huge", "huger", "infinite", "nan", "object", "null", "list"],
)
def test_signed_counts_that_are_no_counts_are_refused_and_end_nothing(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_counts(payload, bins=2)


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "..", "", "a\n", "A", "a" * 200])
def test_a_run_cannot_name_a_folder_elsewhere(name: str, tmp_path: Any) -> None:
    with pytest.raises(ConfigError):
        run_path(tmp_path, name)


def test_a_run_cannot_name_a_study_elsewhere(tmp_path: Any) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "secret.json").write_text("{}")

    with pytest.raises(ConfigError, match="64 lower-case"):
        read_study(tmp_path, "../secret")


class World:
    """An edge with two sites; `old` is a certificate of the first that was replaced since."""

    def __init__(self) -> None:
        authority = Authority()
        self.sites = {name: authority.site(name) for name in ("alpha", "beta")}
        self.old = authority.site_identity("alpha").certificate_pem
        self.upstream = FakeUpstream()
        self.edge = Edge(
            admission=Admission(
                federation="north",
                roster=InMemoryRegistry(*(site.record for site in self.sites.values())),
                clock=SetTime(),
            ),
            gate=Gate(rate=CallRate(per_second=0.001, burst=3 * CALLS_UNDER_WAY), log=Events()),
            upstream=self.upstream,
            fleet=FlowerFleetMessages(),
            bell=WorkBell(),
            replies=ReplyWatch(),
            poll_seconds=5.0,
        )

    def call(self, name: str, *, route: str = "get-run", certificate: bytes | None = None) -> Call:
        site: Site = self.sites[name]
        return Call(
            certificate_pem=site.identity.certificate_pem if certificate is None else certificate,
            route=route,
            headers={"flwr-public-key": site.node_key.header},
            body=poll_body(7) if route == "pull-messages" else b"body",
        )


def test_a_replaced_certificate_cannot_use_up_the_calls_of_its_hospital() -> None:
    world = World()

    async def scenario() -> int:
        for _ in range(4 * CALLS_UNDER_WAY):
            with pytest.raises(CallRefused):
                await forwarded(world.edge, world.call("alpha", certificate=world.old))
        return (await forwarded(world.edge, world.call("alpha"))).status

    assert asyncio.run(scenario()) == 200


def test_a_site_with_many_open_polls_is_refused_and_the_others_are_served() -> None:
    world = World()

    async def scenario() -> tuple[Refusal, int]:
        polls = [
            asyncio.ensure_future(forwarded(world.edge, world.call("alpha", route="pull-messages")))
            for _ in range(CALLS_UNDER_WAY + 1)
        ]
        await asyncio.sleep(0.5)  # the first poll of a site asks at once and ends
        polls.append(
            asyncio.ensure_future(forwarded(world.edge, world.call("alpha", route="pull-messages")))
        )
        await asyncio.sleep(0.1)
        with pytest.raises(CallRefused) as caught:
            await forwarded(world.edge, world.call("alpha"))
        served = await forwarded(world.edge, world.call("beta"))
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)
        again = await forwarded(world.edge, world.call("alpha"))
        assert again.status == 200
        return caught.value.refusal, served.status

    assert asyncio.run(scenario()) == (Refusal.RATE, 200)
