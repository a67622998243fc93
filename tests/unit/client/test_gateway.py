"""What the gateway lets out, what it keeps back, and what SuperNode hears. Real Flower messages."""

import asyncio
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from flwr.app import Error, Message
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from flwr.proto.run_pb2 import GetRunRequest

from fedward_client.adapters.flower_fleet import (
    FIXED_ERRORS,
    FlowerFleetMessages,
    message_object,
)
from fedward_client.gateway.bundle import check_bundle
from fedward_client.gateway.fleet import Answer, Bundle
from fedward_client.gateway.passage import Gateway
from fedward_client.gateway.web import make_app
from fedward_common.canonical import sha256_hex
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import MAX_BODY_BYTES, ROUTES, CallRefused
from fedward_common.errors import ChannelError, PolicyRefused, ProtocolError
from fedward_common.trust.certificates import make_loopback_identity
from tests.support.flower_node import (
    GOOD_PROJECT,
    NODE,
    RUN,
    AnyCaller,
    FakeChannel,
    FakeGuard,
    bundle,
    get_fab,
    instruction,
    named,
    objects,
    poll,
    pull_object,
    push_messages,
    push_object,
    records,
    reply_to,
)

GOOD_BUNDLE = sha256_hex(bundle())


class Site:
    """A gateway between a coordinator and a guard in memory."""

    def __init__(self) -> None:
        self.channel = FakeChannel()
        self.guard = FakeGuard(bundles={GOOD_BUNDLE})
        self.gateway = Gateway(
            channel=self.channel,
            guard=self.guard,
            fleet=FlowerFleetMessages(),
            caller=AnyCaller(),
        )

    def ask(self, route: str, body: bytes, **headers: str) -> Answer:
        return asyncio.run(self.gateway.handle(route, headers, body))

    def instructed(self) -> Message:
        """An instruction that came in, message object included."""
        message = instruction()
        self.channel.messages.append(message)
        assert self.ask("pull-messages", poll()).status == 200
        assert self.ask("pull-object", pull_object(message.metadata.message_id)).status == 200
        return message

    def pushed(self, reply: Message) -> Answer:
        return self.ask("push-messages", push_messages(reply))


@pytest.fixture
def site() -> Site:
    return Site()


def stored(answer: Answer) -> bool:
    assert answer.status == 200
    return bool(PushObjectResponse.FromString(answer.body).stored)


# Replies.


def test_a_sealed_reply_leaves_with_all_its_objects_and_is_written_down_first(site: Site) -> None:
    reply = reply_to(site.instructed())
    site.guard.seal(reply)

    assert site.pushed(reply).status == 200
    for object_id, content in objects(reply).items():
        assert stored(site.ask("push-object", push_object(object_id, content)))

    out = [("reply", reply.metadata.message_id)]
    out += [("object", object_id) for object_id in objects(reply)]
    assert site.guard.out() == out
    assert site.channel.routes().count("push-object") == len(objects(reply)) == 6


def test_a_reply_without_a_receipt_does_not_leave(site: Site) -> None:
    reply = reply_to(site.instructed())

    answer = site.pushed(reply)

    assert answer.status == 403
    assert "push-messages" not in site.channel.routes()
    assert site.guard.out() == []


def test_a_receipt_for_other_bytes_does_not_let_a_reply_leave(site: Site) -> None:
    message = site.instructed()
    site.guard.seal(reply_to(message, records(b"sealed")))

    assert site.pushed(reply_to(message, records(b"other"))).status == 403


def test_a_receipt_is_spent_once_and_a_retry_of_the_same_message_passes(site: Site) -> None:
    message = site.instructed()
    first, second = reply_to(message), reply_to(message)
    assert first.metadata.message_id != second.metadata.message_id
    site.guard.seal(first)

    assert site.pushed(first).status == 200
    assert site.pushed(first).status == 200
    assert site.pushed(second).status == 403


def test_a_pause_stops_the_objects_of_a_reply_that_is_on_its_way(site: Site) -> None:
    """The guard says no for each object; SuperNode hears that it was not stored and goes on."""
    reply = reply_to(site.instructed())
    site.guard.seal(reply)
    assert site.pushed(reply).status == 200
    (first, content), (second, other), *_ = objects(reply).items()
    assert stored(site.ask("push-object", push_object(first, content)))
    sent = len(site.channel.routes())

    site.guard.held = PolicyRefused("paused")

    assert not stored(site.ask("push-object", push_object(second, other)))
    assert site.pushed(reply).status == 403
    assert len(site.channel.routes()) == sent
    site.guard.held = None
    assert stored(site.ask("push-object", push_object(second, other)))


def test_each_object_is_written_down_with_its_run_and_the_coordinators_certificate(
    site: Site,
) -> None:
    site.channel.edge_certificate_sha256 = "c" * 64
    reply = reply_to(site.instructed())
    site.guard.seal(reply)

    site.pushed(reply)
    for object_id, content in objects(reply).items():
        site.ask("push-object", push_object(object_id, content))

    assert {one.certificate_sha256 for one in site.guard.entries} == {"c" * 64}
    assert {one.run for one in site.guard.entries if one.direction == "out"} == {str(RUN)}


def test_a_bundle_that_is_refused_stands_in_the_journal_all_the_same(site: Site) -> None:
    site.guard.bundles.clear()

    assert site.ask("get-fab", get_fab()).status == 403

    assert [(one.kind, one.sha256) for one in site.guard.entries] == [("bundle", GOOD_BUNDLE)]


def test_an_object_of_no_released_reply_does_not_leave(site: Site) -> None:
    reply = reply_to(site.instructed())
    site.guard.seal(reply)
    site.pushed(reply)

    assert not stored(site.ask("push-object", push_object(sha256_hex(b"records"), b"records")))
    assert "push-object" not in site.channel.routes()


def test_other_bytes_under_a_released_id_do_not_leave(site: Site) -> None:
    reply = reply_to(site.instructed())
    site.guard.seal(reply)
    site.pushed(reply)

    assert not stored(site.ask("push-object", push_object(next(iter(objects(reply))), b"records")))


@pytest.mark.parametrize("change", [{"session_id": "patient-17"}, {"run_id": 12}])
def test_an_object_in_another_session_or_run_does_not_leave(
    site: Site, change: dict[str, object]
) -> None:
    reply = reply_to(site.instructed())
    site.guard.seal(reply)
    site.pushed(reply)
    object_id, content = next(iter(objects(reply).items()))

    assert not stored(site.ask("push-object", push_object(object_id, content, **change)))


def test_an_object_of_another_node_does_not_leave(site: Site) -> None:
    reply = reply_to(site.instructed())
    site.guard.seal(reply)
    site.pushed(reply)
    request = PushObjectRequest.FromString(push_object(*next(iter(objects(reply).items()))))
    request.node.node_id = NODE + 1

    assert not stored(site.ask("push-object", request.SerializeToString()))


def test_an_object_before_its_reply_does_not_leave(site: Site) -> None:
    reply = reply_to(site.instructed())
    site.guard.seal(reply)
    object_id, content = next(iter(objects(reply).items()))

    assert not stored(site.ask("push-object", push_object(object_id, content)))


def test_a_reply_to_nothing_that_came_in_does_not_leave(site: Site) -> None:
    reply = reply_to(instruction())
    site.guard.seal(reply)

    assert site.pushed(reply).status == 403


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run_id", 12),
        ("src_node_id", 23),
        ("dst_node_id", 2),
        ("group_id", "patient-17"),
        ("message_type", "train.patient17"),
        ("ttl", 17.0),
        ("created_at", 17.0),
        ("src_task_id", 17),
        ("dst_task_id", 17),
    ],
)
def test_nothing_in_a_replys_metadata_is_free(site: Site, field: str, value: object) -> None:
    """A worker writes them, so each would be a way out."""
    reply = reply_to(site.instructed())
    site.guard.seal(reply)
    reply.metadata.__dict__[f"_{field}"] = value

    assert site.pushed(named(reply)).status == 403
    assert "push-messages" not in site.channel.routes()


def test_a_reply_of_the_future_does_not_leave(site: Site) -> None:
    reply = reply_to(site.instructed())
    metadata = reply.metadata.__dict__
    ends = metadata["_created_at"] + metadata["_ttl"]
    metadata["_created_at"] += 60
    metadata["_ttl"] = ends - metadata["_created_at"]
    site.guard.seal(named(reply))

    assert site.pushed(reply).status == 403


def renamed(request: PushMessagesRequest, *, message: str, root: str) -> bytes:
    request.messages_list[0].metadata.message_id = message
    request.message_object_trees[0].object_id = root
    return request.SerializeToString()


@pytest.mark.parametrize("free", ["message", "root", "both"])
def test_an_id_that_is_not_the_messages_digest_does_not_leave(site: Site, free: str) -> None:
    reply = reply_to(site.instructed())
    site.guard.seal(reply)
    right, other = reply.metadata.message_id, "ab" * 32
    request = renamed(
        PushMessagesRequest.FromString(push_messages(reply)),
        message=right if free == "root" else other,
        root=right if free == "message" else other,
    )

    assert site.ask("push-messages", request).status == 403


def test_a_reply_in_another_nodes_name_does_not_leave(site: Site) -> None:
    reply = reply_to(site.instructed())
    site.guard.seal(reply)
    reply.metadata.__dict__["_src_node_id"] = NODE + 1
    request = PushMessagesRequest.FromString(push_messages(named(reply)))
    request.node.node_id = NODE + 1

    assert site.ask("push-messages", request.SerializeToString()).status == 403


def test_the_time_that_the_training_took_does_not_leave(site: Site) -> None:
    """rules 7: it depends on how many patients were drawn."""
    reply = reply_to(site.instructed())
    site.guard.seal(reply)

    site.pushed(reply)

    sent = PushMessagesRequest.FromString(site.channel.reached[-1][1])
    assert list(sent.clientapp_runtime_list) == []


def test_a_field_that_flower_does_not_have_does_not_leave(site: Site) -> None:
    reply = reply_to(site.instructed())
    site.guard.seal(reply)
    hidden = b"\xfa\x07\x0apatient-17"  # field 127, ten bytes
    PushMessagesRequest.FromString(push_messages(reply) + hidden)

    assert site.ask("push-messages", push_messages(reply) + hidden).status == 200
    assert b"patient-17" not in site.channel.reached[-1][1]


def test_two_replies_in_one_request_do_not_leave(site: Site) -> None:
    reply = reply_to(site.instructed())
    site.guard.seal(reply)
    request = PushMessagesRequest.FromString(push_messages(reply))
    request.messages_list.add().CopyFrom(request.messages_list[0])

    assert site.ask("push-messages", request.SerializeToString()).status == 403


def test_content_inside_the_announcement_does_not_leave(site: Site) -> None:
    reply = reply_to(site.instructed())
    site.guard.seal(reply)
    request = PushMessagesRequest.FromString(push_messages(reply))
    request.messages_list[0].content.items.add(key="x")

    assert site.ask("push-messages", request.SerializeToString()).status == 403


# Error replies.


@pytest.mark.parametrize("error", sorted(FIXED_ERRORS))
def test_flowers_own_error_replies_leave_without_a_receipt(
    site: Site, error: tuple[int, str]
) -> None:
    reply = reply_to(site.instructed(), Error(*error))

    assert site.pushed(reply).status == 200
    assert stored(site.ask("push-object", push_object(*next(iter(objects(reply).items())))))
    assert site.guard.out()[0] == ("error-reply", reply.metadata.message_id)


@pytest.mark.parametrize(
    "error",
    [
        Error(2, "<class 'ValueError'>:<'patient 17 has label 3'>"),
        Error(8, "patient 17"),
        Error(17, "ClientApp stopped responding."),
        Error(2, None),
    ],
)
def test_an_error_whose_text_is_not_flowers_own_is_swallowed(site: Site, error: Error) -> None:
    """SuperNode hears that it is done; the coordinator hears nothing."""
    reply = reply_to(site.instructed(), error)

    answer = site.pushed(reply)

    done = PushMessagesResponse.FromString(answer.body)
    assert answer.status == 200
    assert dict(done.results) == {reply.metadata.message_id: 0}
    assert list(done.objects_to_push) == []
    assert "push-messages" not in site.channel.routes()
    assert not stored(site.ask("push-object", push_object(*next(iter(objects(reply).items())))))


@pytest.mark.parametrize("kind", ["error with content", "neither"])
def test_a_reply_that_is_not_either_content_or_error_does_not_leave(site: Site, kind: str) -> None:
    """Whole in every other way: its id is the digest of its object."""
    reply = reply_to(site.instructed(), Error(*min(FIXED_ERRORS)))
    request = PushMessagesRequest.FromString(push_messages(reply))
    message, tree = request.messages_list[0], request.message_object_trees[0]
    if kind == "neither":
        message.ClearField("error")
        site.guard.sealed.add(frozenset())
    else:
        tree.children.add(object_id=sha256_hex(b"records"))
        site.guard.sealed.add(frozenset({sha256_hex(b"records")}))
    name = sha256_hex(message_object(message, tree))

    assert site.ask("push-messages", renamed(request, message=name, root=name)).status == 403


# What comes in.


def test_everything_that_comes_in_is_written_down(site: Site) -> None:
    message = site.instructed()
    site.ask("get-fab", get_fab())

    kinds = [(one.direction, one.kind, one.sha256) for one in site.guard.entries]
    assert kinds == [
        ("in", "message", message.metadata.message_id),
        ("in", "object", message.metadata.message_id),
        ("in", "bundle", GOOD_BUNDLE),
    ]


def test_an_empty_poll_is_not_written_down(site: Site) -> None:
    assert site.ask("pull-messages", poll()).status == 200
    assert site.guard.entries == []


def test_an_approved_bundle_without_code_reaches_supernode(site: Site) -> None:
    answer = site.ask("get-fab", get_fab())

    assert answer.status == 200
    assert answer.body == asyncio.run(site.channel.forward("get-fab", {}, b"")).body


def test_a_bundle_that_the_site_did_not_approve_does_not_reach_supernode(site: Site) -> None:
    site.guard.bundles.clear()

    assert site.ask("get-fab", get_fab()) == Answer(status=403)


@pytest.mark.parametrize(
    "files",
    [
        {"pyproject.toml": GOOD_PROJECT, "app.py": "import os"},
        {"pyproject.toml": GOOD_PROJECT, "../pyproject.toml": ""},
        {"pyproject.toml": GOOD_PROJECT.replace("fedward_client", "evil")},
        {"pyproject.toml": GOOD_PROJECT.replace("[]", '["evil"]')},
        {"pyproject.toml": GOOD_PROJECT, "LICENSE": b"0" * 300_000},
        {"pyproject.toml": "no toml ["},
        {"pyproject.toml": "tool = 1"},
        {"LICENSE": "text"},
        {},
    ],
    ids=["code", "traversal", "app", "dependency", "bomb", "no toml", "odd toml", "none", "empty"],
)
def test_a_bundle_with_code_is_refused_even_when_it_is_approved(
    site: Site, files: dict[str, str]
) -> None:
    site.channel.fab = bundle(files)
    site.guard.bundles.add(sha256_hex(site.channel.fab))

    assert site.ask("get-fab", get_fab()) == Answer(status=403)


def test_a_bundle_under_another_digest_is_refused(site: Site) -> None:
    site.channel.fab_hash = GOOD_BUNDLE
    site.channel.fab = bundle({"pyproject.toml": GOOD_PROJECT})

    assert site.ask("get-fab", get_fab()) == Answer(status=403)


def test_bytes_that_are_no_zip_are_no_bundle() -> None:
    with pytest.raises(ProtocolError, match="expected a zip"):
        check_bundle(Bundle(sha256=sha256_hex(b"PK"), content=b"PK"))


def test_the_projects_own_bundle_passes() -> None:
    from flwr.cli.build import build_fab_from_disk

    content = build_fab_from_disk(Path(__file__).parents[3] / "deploy" / "flower-app")

    check_bundle(Bundle(sha256=sha256_hex(content), content=content))


def test_an_object_with_other_bytes_than_its_id_says_does_not_reach_supernode(site: Site) -> None:
    site.channel.store["ab" * 32] = b"other"

    assert site.ask("pull-object", pull_object("ab" * 32)).status == 403


def test_an_object_that_is_not_there_yet_is_passed_on_as_such(site: Site) -> None:
    assert site.ask("pull-object", pull_object("ab" * 32)).status == 200
    assert site.guard.entries == []


@pytest.mark.parametrize("name", ["../../etc/x", "fedward", "a/b/c", "", "fedward/fed ward"])
def test_a_run_whose_app_name_could_be_a_path_does_not_reach_supernode(
    site: Site, name: str
) -> None:
    site.channel.fab_id = name

    assert site.ask("get-run", GetRunRequest(run_id=1).SerializeToString()).status == 403


# What SuperNode hears.


@pytest.mark.parametrize("status", [301, 400, 401, 404, 409, 412, 413, 429, 500, 502, 503, 504])
def test_a_status_that_would_end_supernode_is_503(site: Site, status: int) -> None:
    site.channel.status = status

    assert site.ask("pull-messages", poll()) == Answer(status=503)


def test_403_passes_because_flower_says_with_it_that_the_run_is_over(site: Site) -> None:
    site.channel.status = 403

    assert site.ask("pull-messages", poll()) == Answer(status=403, body=b"{}")


@pytest.mark.parametrize("refusal", sorted(Refusal))
def test_what_the_edge_refuses_is_503_or_dropped(site: Site, refusal: Refusal) -> None:
    site.channel.error = CallRefused(refusal, "found")
    hopeless = {Refusal.BODY_TOO_LARGE, Refusal.MALFORMED, Refusal.HEADER}

    assert site.ask("pull-messages", poll()).status == (403 if refusal in hopeless else 503)


def test_a_lost_channel_is_503(site: Site) -> None:
    site.channel.error = ChannelError("down")

    assert site.ask("pull-messages", poll()).status == 503


def test_nothing_leaves_while_the_guard_is_gone(site: Site) -> None:
    reply = reply_to(site.instructed())
    site.guard.seal(reply)
    site.guard.gone = True

    assert site.pushed(reply).status == 503
    assert "push-messages" not in site.channel.routes()

    site.guard.gone = False
    assert site.pushed(reply).status == 200


def test_no_object_leaves_while_the_guard_is_gone(site: Site) -> None:
    reply = reply_to(site.instructed())
    site.guard.seal(reply)
    site.pushed(reply)
    site.guard.gone = True

    assert site.ask("push-object", push_object(*next(iter(objects(reply).items())))).status == 503
    assert "push-object" not in site.channel.routes()


def test_a_body_over_8_mib_does_not_leave(site: Site) -> None:
    assert site.ask("push-object", bytes(MAX_BODY_BYTES + 1)) == Answer(status=403)
    assert site.channel.reached == []


@pytest.mark.parametrize("route", sorted(ROUTES))
def test_a_body_that_is_not_the_routes_message_does_not_leave(site: Site, route: str) -> None:
    assert site.ask(route, b"\xff\xff").status == 403
    assert site.channel.reached == []


def test_a_control_route_does_not_leave(site: Site) -> None:
    assert site.ask("list-nodes", b"").status == 503
    assert site.channel.reached == []


def test_only_flowers_headers_leave(site: Site) -> None:
    answer = asyncio.run(
        site.gateway.handle(
            "pull-messages",
            {"flwr-timestamp": "2026-11-20T10:00:00+00:00", "host": "x", "x-patient": "17"},
            poll(),
        )
    )

    assert answer.status == 200
    assert site.channel.headers == [{"flwr-timestamp": "2026-11-20T10:00:00+00:00"}]


def test_a_header_of_flower_with_free_text_does_not_leave(site: Site) -> None:
    answer = asyncio.run(
        site.gateway.handle("pull-messages", {"flwr-component-name": "patient 17"}, poll())
    )

    assert answer.status == 403
    assert site.channel.reached == []


def test_a_heartbeat_interval_with_a_fraction_does_not_leave(site: Site) -> None:
    odd = ActivateNodeRequest(public_key=b"x", heartbeat_interval=30.171717)

    assert site.ask("activate-node", odd.SerializeToString()).status == 403


# Over HTTPS, as SuperNode does it.


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, httpx.Client]]:
    site = Site()
    files = make_loopback_identity(tmp_path_factory.mktemp("loopback"))
    config = uvicorn.Config(
        make_app(site.gateway),
        host="127.0.0.1",
        port=0,
        ssl_certfile=str(files.certificate),
        ssl_keyfile=str(files.key),
        lifespan="off",
        log_level="critical",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(
        base_url=f"https://127.0.0.1:{port}",
        verify=ssl.create_default_context(cafile=files.ca),
        trust_env=False,
    ) as client:
        yield site, client
    server.should_exit = True
    thread.join()


def test_a_poll_over_https_passes(served: tuple[Site, httpx.Client]) -> None:
    response = served[1].post("/v1/fleet/pull-messages", content=poll())

    assert response.status_code == 200
    assert response.headers["content-type"] == "application/protobuf"


def test_a_9_mib_body_over_https_is_read_and_dropped(served: tuple[Site, httpx.Client]) -> None:
    """Cut off in mid-body, SuperNode would send it again for ever."""
    body = push_object("ab" * 32, bytes(9 << 20))

    response = served[1].post("/v1/fleet/push-object", content=body)

    assert response.status_code == 403


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/control/list-nodes"),
        ("POST", "/v1/runtime/acquire-task"),
        ("POST", "/v1/fleet/pull-messages/x"),
        ("GET", "/v1/fleet/pull-messages"),
        ("GET", "/docs"),
        ("GET", "/"),
    ],
)
def test_any_other_path_or_method_is_not_there(
    served: tuple[Site, httpx.Client], method: str, path: str
) -> None:
    before = len(served[0].channel.reached)

    assert served[1].request(method, path).status_code in (404, 405)
    assert len(served[0].channel.reached) == before


def test_a_defect_is_503_because_supernode_would_not_survive_500(
    served: tuple[Site, httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, client = served
    monkeypatch.setattr(site.channel, "forward", None)

    assert client.post("/v1/fleet/pull-messages", content=poll()).status_code == 503


def test_the_node_id_in_a_push_is_the_one_that_was_instructed(site: Site) -> None:
    reply = reply_to(site.instructed())
    site.guard.seal(reply)
    request = PushMessagesRequest.FromString(push_messages(reply))
    request.node.node_id = NODE + 1

    assert site.ask("push-messages", request.SerializeToString()).status == 403
