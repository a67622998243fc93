"""Replies that wait on the gateway's disk while the coordinator is away."""

import asyncio
import time
from pathlib import Path

import pytest
from flwr.app import Message
from flwr.proto.fleet_pb2 import PushMessagesResponse
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse

from fedward_client.adapters.flower_fleet import FlowerFleetMessages
from fedward_client.gateway.fleet import Answer
from fedward_client.gateway.outbox_file import NAME, OutboxFile
from fedward_client.gateway.passage import Gateway
from fedward_client.gateway.spool import Spool, is_spooled
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.errors import ChannelError, PolicyRefused
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

AWAY = ChannelError("coordinator: expected an answer, found none")


class Site:
    """A gateway with a spool, between a coordinator and a guard in memory."""

    def __init__(self, folder: Path, *, max_bytes: int = 1 << 20) -> None:
        self.folder = folder
        self.channel = FakeChannel()
        self.guard = FakeGuard()
        self.late = 0.0
        self.max_bytes = max_bytes
        self.start()

    def start(self) -> None:
        """The gateway, or one more after the last was killed."""
        self.spool = Spool(self.folder, clock=self.now, max_bytes=self.max_bytes)
        self.gateway = Gateway(
            channel=self.channel,
            guard=self.guard,
            fleet=FlowerFleetMessages(),
            caller=AnyCaller(),
            spool=self.spool,
            kept=OutboxFile(self.folder),
        )

    def now(self) -> float:
        return time.time() + self.late

    def ask(self, route: str, body: bytes) -> Answer:
        async def asked() -> Answer:
            answer = await self.gateway.handle(route, {}, body)
            await self.gateway.delivered()
            return answer

        return asyncio.run(asked())

    def sealed(self) -> Message:
        """A reply to an instruction that came in, with the guard's receipt."""
        message = instruction()
        self.channel.messages.append(message)
        assert self.ask("pull-messages", poll()).status == 200
        assert self.ask("pull-object", pull_object(message.metadata.message_id)).status == 200
        reply = reply_to(message)
        self.guard.seal(reply)
        return reply

    def hand_over(self, reply: Message, *, but: int = 0) -> list[bool]:
        """Pushes a reply as SuperNode does; whether each object was taken."""
        answer = self.ask("push-messages", push_messages(reply))
        assert answer.status == 200
        taken = PushMessagesResponse.FromString(answer.body)
        content = objects(reply)
        assert set(taken.objects_to_push) == set(content)
        answers = [
            self.ask("push-object", push_object(one, content[one], session_id=taken.session_id))
            for one in list(taken.objects_to_push)[: len(content) - but]
        ]
        return [PushObjectResponse.FromString(one.body).stored for one in answers]

    def files(self) -> list[Path]:
        return [path for path in self.folder.glob("*/*") if path.is_file()]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "spool")


def spooled(site: Site) -> Message:
    reply = site.sealed()
    site.channel.error = AWAY
    assert all(site.hand_over(reply))
    return reply


def test_a_reply_is_taken_while_the_coordinator_is_away_and_delivered_when_it_is_back(
    site: Site,
) -> None:
    reply = spooled(site)
    before = [route for route, _ in site.channel.reached if route.startswith("push")]
    site.channel.error = None

    assert site.ask("send-node-heartbeat", b"").status == 200

    sent = [body for route, body in site.channel.reached if route == "push-object"]
    assert before == []
    assert {PushObjectRequest.FromString(body).object_id for body in sent} == set(objects(reply))
    assert all(
        not is_spooled(PushObjectRequest.FromString(body).session_id)
        and PushObjectRequest.FromString(body).object_content
        == objects(reply)[PushObjectRequest.FromString(body).object_id]
        for body in sent
    )
    assert site.files() == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_reply_that_superlink_has_no_time_for_waits_too(site: Site, status: int) -> None:
    reply = site.sealed()
    site.channel.status = status

    assert all(site.hand_over(reply))

    site.channel.status = 200
    site.ask("send-node-heartbeat", b"")
    assert site.channel.routes().count("push-object") == len(objects(reply))


def test_what_the_edge_refuses_does_not_wait(site: Site) -> None:
    reply = site.sealed()
    site.channel.error = CallRefused(Refusal.CERTIFICATE_EXPIRED, "expected a newer certificate")

    assert site.ask("push-messages", push_messages(reply)).status == 503
    assert site.files() == []


def test_a_reply_without_a_receipt_never_waits(site: Site) -> None:
    reply = site.sealed()
    site.guard.sealed.clear()
    site.channel.error = AWAY

    assert site.ask("push-messages", push_messages(reply)).status == 403
    assert site.files() == []


def test_what_waits_outlives_the_gateway_and_is_private(site: Site) -> None:
    reply = spooled(site)
    modes = {path.stat().st_mode & 0o777 for path in site.files()}

    site.start()
    site.channel.error = None
    site.ask("send-node-heartbeat", b"")

    assert modes == {0o600}
    assert site.folder.stat().st_mode & 0o777 == 0o700
    assert site.channel.routes().count("push-object") == len(objects(reply))
    assert site.files() == []


def test_what_a_dead_gateway_left_incomplete_is_removed(site: Site) -> None:
    reply = site.sealed()
    site.channel.error = AWAY
    site.hand_over(reply, but=1)
    assert site.files()

    site.start()

    assert site.files() == []


def test_a_damaged_reply_is_removed_and_not_delivered(site: Site) -> None:
    spooled(site)
    (request,) = site.folder.glob("*/request")
    request.write_bytes(request.read_bytes() + b"x")

    site.start()
    site.channel.error = None
    site.ask("send-node-heartbeat", b"")

    assert "push-messages" not in site.channel.routes()
    assert site.files() == []


def test_a_reply_that_is_too_late_is_deleted_and_not_delivered(site: Site) -> None:
    reply = spooled(site)
    site.channel.error = None
    site.late = reply.metadata.ttl + 1

    site.ask("send-node-heartbeat", b"")

    assert "push-messages" not in site.channel.routes()
    assert site.files() == []


def test_a_site_that_was_paused_meanwhile_delivers_when_it_goes_on(site: Site) -> None:
    """The policy is asked again for whatever waited."""
    reply = spooled(site)
    site.channel.error = None
    site.guard.held = PolicyRefused("paused")

    site.ask("send-node-heartbeat", b"")
    before = [route for route in site.channel.routes() if route.startswith("push")]
    site.guard.held = None
    site.ask("send-node-heartbeat", b"")

    assert before == []
    assert site.channel.routes().count("push-object") == len(objects(reply))


def test_everything_that_waited_is_written_down_again_as_it_leaves(site: Site) -> None:
    reply = spooled(site)
    site.guard.entries.clear()
    site.channel.error = None

    site.ask("send-node-heartbeat", b"")

    written = set(site.guard.out())
    assert ("reply", reply.metadata.message_id) in written
    assert {sha256 for kind, sha256 in written if kind == "object"} == set(objects(reply))


def test_a_run_that_is_over_gets_nothing_and_what_waited_is_deleted(site: Site) -> None:
    spooled(site)
    site.channel.error = None
    site.channel.statuses = {"push-messages": 403}

    site.ask("send-node-heartbeat", b"")

    assert "push-object" not in site.channel.routes()
    assert site.files() == []


def test_a_spool_that_is_full_leaves_the_reply_with_supernode(tmp_path: Path) -> None:
    site = Site(tmp_path / "spool", max_bytes=10)
    reply = site.sealed()
    site.channel.error = AWAY

    assert site.ask("push-messages", push_messages(reply)).status == 503
    assert site.files() == []


def test_a_gateway_killed_before_the_reply_lets_its_successor_pass_it(site: Site) -> None:
    reply = site.sealed()

    site.start()

    assert all(site.hand_over(reply))
    assert site.channel.routes().count("push-object") == len(objects(reply))
    assert (site.folder / NAME).stat().st_mode & 0o777 == 0o600


def test_a_gateway_killed_between_two_objects_lets_its_successor_pass_the_rest(site: Site) -> None:
    reply = site.sealed()
    site.hand_over(reply, but=1)
    site.start()

    for object_id, content in objects(reply).items():
        answer = site.ask("push-object", push_object(object_id, content))
        assert PushObjectResponse.FromString(answer.body).stored


def test_a_successor_still_takes_one_answer_to_an_instruction_only(site: Site) -> None:
    message = instruction()
    site.channel.messages.append(message)
    site.ask("pull-messages", poll())
    site.ask("pull-object", pull_object(message.metadata.message_id))
    first, second = reply_to(message), reply_to(message)
    site.guard.seal(first)
    assert site.ask("push-messages", push_messages(first)).status == 200

    site.start()

    assert site.ask("push-messages", push_messages(second)).status == 403


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"instructions": 3, "released": {}}'])
def test_what_was_kept_and_cannot_be_read_is_nothing(site: Site, content: bytes) -> None:
    reply = site.sealed()
    (site.folder / NAME).write_bytes(content)

    site.start()

    assert site.ask("push-messages", push_messages(reply)).status == 403
