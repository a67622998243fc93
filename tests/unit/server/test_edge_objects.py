"""Every object that passes the edge is a line of its log, and nothing passes without one."""

import asyncio
from dataclasses import dataclass, field

import pytest
from flwr.proto.fab_pb2 import Fab, GetFabRequest, GetFabResponse
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse

from fedward_common.canonical import sha256_hex
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.errors import LedgerError
from fedward_common.log.fields import checked
from fedward_server.adapters.flower_fleet import FlowerFleetMessages
from fedward_server.edge.admission import Admission, Call, CallRate, certificate_sha256
from fedward_server.edge.bell import WorkBell
from fedward_server.edge.forward import Edge
from fedward_server.edge.gate import Gate
from fedward_server.edge.replies import ReplyWatch
from fedward_server.ports import FleetReply
from tests.support.edge import (
    Events,
    FakeUpstream,
    SetTime,
    forwarded,
    message_body,
    poll_body,
    pulled_object,
    pushed_messages,
    pushed_object,
    wanted_object,
)
from tests.support.pki import Authority, Site
from tests.support.roster import InMemoryRegistry

DIGEST = "ab" * 32


@dataclass(kw_only=True)
class FullDisk(Events):
    """A log that cannot be written any more once a site is connected."""

    def append(self, action: str, **fields: object) -> None:
        if action == "edge.object":
            raise LedgerError("no space")
        super().append(action, **fields)


@dataclass(kw_only=True)
class World:
    site: Site
    events: Events = field(default_factory=Events)
    upstream: FakeUpstream = field(default_factory=FakeUpstream)

    def __post_init__(self) -> None:
        self.edge = Edge(
            admission=Admission(
                federation="north", roster=InMemoryRegistry(self.site.record), clock=SetTime()
            ),
            gate=Gate(rate=CallRate(per_second=1000, burst=1000), log=self.events),
            upstream=self.upstream,
            fleet=FlowerFleetMessages(),
            bell=WorkBell(),
            replies=ReplyWatch(),
            poll_seconds=0.1,
        )

    def call(self, route: str, body: bytes, reply: bytes = b"") -> FleetReply:
        self.upstream.replies[route] = FleetReply(status=200, body=reply)
        return asyncio.run(
            forwarded(
                self.edge,
                Call(
                    certificate_pem=self.site.identity.certificate_pem,
                    route=route,
                    headers={"flwr-public-key": self.site.node_key.header},
                    body=body,
                ),
            )
        )

    @property
    def objects(self) -> list[tuple[object, ...]]:
        keys = ("direction", "kind", "sha256", "bytes", "run")
        return [tuple(fields.get(key) for key in keys) for fields in self.events.of("edge.object")]


@pytest.fixture(scope="module")
def site() -> Site:
    return Authority().site("alpha")


@pytest.fixture
def world(site: Site) -> World:
    return World(site=site)


def test_an_object_that_a_site_sends_is_written_with_the_digest_of_its_bytes(world: World) -> None:
    world.call("push-object", pushed_object(b"tensor"))

    assert world.objects == [("in", "object", sha256_hex(b"tensor"), 6, "5")]


@pytest.mark.parametrize(("error", "kind"), [(False, "reply"), (True, "error-reply")])
def test_a_reply_is_written_by_the_id_of_its_message(world: World, error: bool, kind: str) -> None:
    body = pushed_messages(DIGEST, error=error)
    world.call("push-messages", body)

    assert world.objects == [("in", kind, DIGEST, len(body), "5")]


def test_an_instruction_and_its_object_are_written_when_they_are_handed_out(world: World) -> None:
    reply = message_body(DIGEST)
    world.call("pull-messages", poll_body(7), reply)
    world.call("pull-object", wanted_object(DIGEST), pulled_object(b"model"))

    assert world.objects == [
        ("out", "message", DIGEST, len(reply), "0"),
        ("out", "object", DIGEST, 5, "5"),
    ]


def test_an_object_that_is_not_there_yet_is_no_line(world: World) -> None:
    world.call("pull-object", wanted_object(DIGEST), pulled_object(b""))

    assert world.objects == []


def test_the_bundle_and_the_run_are_written_when_they_are_handed_out(world: World) -> None:
    fab = GetFabResponse(fab=Fab(hash_str=DIGEST, content=b"zip")).SerializeToString()
    run = GetRunResponse().SerializeToString()
    world.call("get-fab", GetFabRequest(run_id=5).SerializeToString(), fab)
    world.call("get-run", GetRunRequest(run_id=5).SerializeToString(), run)

    assert world.objects == [
        ("out", "bundle", DIGEST, 3, "5"),
        ("out", "run", sha256_hex(run), len(run), "5"),
    ]


def test_a_line_names_the_site_and_its_certificate_and_fits_the_log(world: World) -> None:
    world.call("push-object", pushed_object(b"tensor"))

    fields = world.events.of("edge.object")[0]
    checked(fields)
    assert fields["site"] == "alpha"
    assert fields["certificate_sha256"] == certificate_sha256(world.site.identity.certificate_pem)


def test_an_object_under_the_digest_of_another_does_not_pass(world: World) -> None:
    with pytest.raises(CallRefused) as caught:
        world.call("push-object", pushed_object(b"tensor", object_id=DIGEST))

    assert caught.value.refusal is Refusal.MALFORMED
    assert world.upstream.calls == []
    assert world.events.of("edge.refused")[0]["code"] == "malformed"


@pytest.mark.parametrize("route", ["push-object", "push-messages"])
def test_what_a_site_sends_and_nobody_can_read_does_not_pass(world: World, route: str) -> None:
    with pytest.raises(CallRefused) as caught:
        world.call(route, b"\xff\xff")

    assert caught.value.refusal is Refusal.MALFORMED
    assert world.upstream.calls == []


def test_a_message_that_is_not_named_by_a_digest_does_not_pass(world: World) -> None:
    with pytest.raises(CallRefused) as caught:
        world.call("push-messages", pushed_messages("a name\n"))

    assert caught.value.refusal is Refusal.MALFORMED


def test_an_answer_that_nobody_can_read_passes_and_is_written_as_such(world: World) -> None:
    reply = world.call("pull-object", wanted_object(DIGEST), b"\xff\xff")

    assert reply.body == b"\xff\xff"
    assert world.objects == [("out", "unreadable", sha256_hex(b"\xff\xff"), 2, None)]


def test_an_object_whose_line_cannot_be_written_does_not_pass(site: Site) -> None:
    world = World(site=site, events=FullDisk())

    with pytest.raises(CallRefused) as caught:
        world.call("push-object", pushed_object(b"tensor"))

    assert caught.value.refusal is Refusal.UPSTREAM
    assert world.upstream.calls == []


def test_a_refusal_whose_line_cannot_be_written_keeps_its_reason(site: Site) -> None:
    class NoLog(Events):
        def append(self, action: str, **fields: object) -> None:
            if action == "edge.refused":
                raise LedgerError("no space")

    world = World(site=site, events=NoLog())

    with pytest.raises(CallRefused) as caught:
        world.call("push-object", b"\xff\xff")
    assert caught.value.refusal is Refusal.MALFORMED


def test_a_heartbeat_carries_no_object(world: World) -> None:
    world.call("send-node-heartbeat", b"")

    assert world.objects == []
