"""Abuse of the edge, each test named after its attack, with the line that it leaves in the log.

A peer that never ends its handshake is the one that leaves none: grpc closes it and says nothing.
"""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedward_common.channel import channel_pb2 as wire
from fedward_common.channel import channel_pb2_grpc as stubs
from fedward_common.channel.refusals import Refusal
from fedward_common.ids import SiteId
from fedward_common.log.events import read_events
from fedward_common.trust.certificates import Identity, NodeKey
from fedward_server.adapters.run_files import LOG, RunFolder
from fedward_server.edge.gate import CALLS_UNDER_WAY
from fedward_server.edge.listening import MESSAGE_SECONDS
from fedward_server.sign_model import sign_model
from fedward_server.study_run import StudyRun
from tests.support.edge_process import RunningEdge, running_edge
from tests.support.federation import FakeClock, FakeFleet, FakeSite, FakeStore
from tests.support.finished_run import FinishedRun, finished_run
from tests.support.pki import Site, now

NAMES = ("alpha", "beta", "gamma", "outside")
TRIES = 3
FORWARD = "/fedward.channel.v1.FedwardChannel/Forward"


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEdge]:
    with running_edge(tmp_path_factory.mktemp("edge"), *NAMES) as running:
        yield running


@pytest.fixture(scope="module")
def finished(edge: RunningEdge) -> FinishedRun:
    """A finished run of alpha, beta and gamma whose model its lead has signed."""
    run = finished_run(edge.settings.state, *(edge.sites[name] for name in NAMES[:3]))
    sign_model(run.state, run.name, key=run.lead)
    return run


@contextmanager
def connected(edge: RunningEdge, identity: Identity) -> Iterator[grpc.Channel]:
    """A connection without any limit of its own."""
    credentials = grpc.ssl_channel_credentials(
        edge.authority.root.certificate_pem, identity.key_pem, identity.certificate_pem
    )
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(edge.address, credentials, options) as channel:
        yield channel


def asked(site: Site, **changes: Any) -> wire.ForwardRequest:
    headers = {"flwr-public-key": site.node_key.header}
    return wire.ForwardRequest(
        **{"route": "send-node-heartbeat", "headers": headers, "body": b""} | changes
    )


def call(edge: RunningEdge, identity: Identity, request: wire.ForwardRequest) -> wire.ForwardReply:
    with connected(edge, identity) as channel:
        return stubs.FedwardChannelStub(channel).Forward(request, timeout=20)


def passes(edge: RunningEdge, name: str) -> bool:
    site = edge.sites[name]
    return call(edge, site.identity, asked(site)).status == 200


# Slow loris.


def test_slow_loris_before_the_handshake_is_closed_and_keeps_nobody_out(edge: RunningEdge) -> None:
    with ExitStack() as opened:
        silent = [
            opened.enter_context(
                socket.create_connection(
                    (edge.settings.listen_host, edge.settings.listen_port), timeout=20
                )
            )
            for _ in range(300)
        ]
        for peer in silent[::2]:
            peer.sendall(b"\x16\x03\x01")

        assert passes(edge, "alpha")
        assert silent[0].recv(1) == silent[-1].recv(1) == b""


def test_slow_loris_with_a_certificate_is_ended_and_keeps_nobody_out(edge: RunningEdge) -> None:
    """A member holds calls open whose message never comes: more than it may have at a time."""
    site = edge.sites["beta"]

    def never() -> Iterator[bytes]:
        time.sleep(2 * MESSAGE_SECONDS)
        yield from ()

    with connected(edge, site.identity) as channel, ThreadPoolExecutor(2 * CALLS_UNDER_WAY) as pool:
        held = channel.stream_unary(FORWARD)
        calls = [held.future(never()) for _ in range(CALLS_UNDER_WAY + 8)]
        time.sleep(1.0)

        assert passes(edge, "alpha")
        done = [
            wire.ForwardReply.FromString(reply).error_code
            for reply in pool.map(lambda one: one.result(3 * MESSAGE_SECONDS), calls)
        ]
    assert sorted(set(done)) == sorted({Refusal.RATE.value, Refusal.SLOW.value})
    assert done.count(Refusal.SLOW.value) == CALLS_UNDER_WAY
    assert edge.logged("edge.refused", code="slow", site="beta", route="forward")
    assert passes(edge, "beta")


def test_a_revoked_site_cannot_hold_a_call_open(edge: RunningEdge) -> None:
    """Its certificate is still good for a handshake: it is refused before its message is read."""
    site = edge.add_site("gone")
    edge.registry.revoke(SiteId("gone"))

    def never() -> Iterator[bytes]:
        time.sleep(1.5)
        yield from ()

    with connected(edge, site.identity) as channel:
        started = time.monotonic()
        reply = wire.ForwardReply.FromString(channel.stream_unary(FORWARD)(never(), timeout=20))
        waited = time.monotonic() - started

    assert reply.error_code == "site-revoked"
    assert waited < MESSAGE_SECONDS
    assert edge.logged("edge.refused", code="site-revoked", site="gone")


# Sizes.


def test_a_200_mb_body_is_refused_and_not_taken_in(edge: RunningEdge) -> None:
    site = edge.sites["alpha"]
    before, resident = len(edge.superlink.calls), _resident_bytes(edge)

    # In a few full runs of all tests no line came: grpc refuses such a call by itself, and may be
    # done with it before our code has heard of it. It is refused all the same.
    for _ in range(TRIES):
        with pytest.raises(grpc.RpcError) as caught:
            call(edge, site.identity, asked(site, body=bytes(200_000_000)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        if edge.logged("edge.refused", code="body-too-large", site="alpha"):
            break
    else:
        pytest.fail("expected a line for a call that is too large, found none")
    assert len(edge.superlink.calls) == before
    assert _resident_bytes(edge) - resident < 100_000_000


def _resident_bytes(edge: RunningEdge) -> int:
    status = Path(f"/proc/{edge.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


# Stolen and foreign papers.


def test_a_stolen_certificate_with_another_node_key_is_refused(edge: RunningEdge) -> None:
    """The thief has the hospital's TLS identity, and a Flower key of its own."""
    site, before = edge.sites["alpha"], len(edge.superlink.calls)
    request = asked(site, headers={"flwr-public-key": NodeKey.generate().header})

    assert call(edge, site.identity, request).error_code == "node-key"
    assert edge.logged("edge.refused", code="node-key", site="alpha", route="send-node-heartbeat")
    assert len(edge.superlink.calls) == before


@pytest.mark.parametrize("name", ["Hello", "Renew", "ListModels", "FetchModel"])
def test_a_revoked_site_is_told_nothing_by_any_operation(edge: RunningEdge, name: str) -> None:
    site_id = f"left-{name.lower()}"
    site = edge.add_site(site_id)
    edge.registry.revoke(SiteId(site_id))
    request = {
        "Hello": wire.HelloRequest,
        "Renew": wire.RenewRequest,
        "ListModels": wire.ListModelsRequest,
        "FetchModel": wire.FetchModelRequest,
    }[name]()

    with connected(edge, site.identity) as channel:
        reply = getattr(stubs.FedwardSiteStub(channel), name)(request, timeout=10)

    assert reply.error_code == "site-revoked"
    assert edge.logged("edge.refused", code="site-revoked", site=site_id)


def test_a_foreign_certificate_gets_no_model_list(edge: RunningEdge) -> None:
    stranger = type(edge.authority)().site_identity("alpha")

    with connected(edge, stranger) as channel, pytest.raises(grpc.RpcError) as caught:
        stubs.FedwardSiteStub(channel).ListModels(wire.ListModelsRequest(), timeout=5)

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert edge.logged("edge.handshake-refused", code="unknown-authority")


def test_a_certificate_of_tomorrow_is_refused_in_the_handshake(edge: RunningEdge) -> None:
    early = edge.authority.site_identity("alpha", at=now() + timedelta(days=2))

    with connected(edge, early) as channel, pytest.raises(grpc.RpcError):
        stubs.FedwardSiteStub(channel).Hello(wire.HelloRequest(), timeout=5)

    assert edge.logged("edge.handshake-refused", code="certificate-not-yet-valid")


# Models.


def test_a_site_of_the_study_fetches_its_model_and_the_log_says_so(
    edge: RunningEdge, finished: FinishedRun
) -> None:
    with connected(edge, edge.sites["alpha"].identity) as channel:
        stub = stubs.FedwardSiteStub(channel)
        (entry,) = stub.ListModels(wire.ListModelsRequest(), timeout=10).models
        reply = stub.FetchModel(
            wire.FetchModelRequest(run=entry.run, file="model.safetensors"), timeout=10
        )

    assert len(reply.content) == reply.size == entry.files["model.safetensors"]
    assert edge.logged(
        "edge.object",
        site="alpha",
        direction="out",
        kind="model",
        sha256=entry.model_sha256,
        run=finished.name,
    )


@pytest.mark.parametrize("file", ["model.safetensors", "../../../keys/lead.pem"])
def test_a_model_of_a_study_without_this_site_is_refused(
    edge: RunningEdge, finished: FinishedRun, file: str
) -> None:
    with connected(edge, edge.sites["outside"].identity) as channel:
        stub = stubs.FedwardSiteStub(channel)
        listed = stub.ListModels(wire.ListModelsRequest(), timeout=10)
        reply = stub.FetchModel(wire.FetchModelRequest(run=finished.name, file=file), timeout=10)

    assert (list(listed.models), reply.error_code, reply.content) == ([], "model", b"")
    assert edge.logged("edge.refused", code="model", site="outside", route="fetch-model")


# The run behind the edge.


def test_a_flower_message_from_a_node_outside_the_study_is_not_believed(
    tmp_path: Path, finished: FinishedRun, edge: RunningEdge
) -> None:
    """Another member of the federation answers in the place of a site of the study."""
    clock, log = FakeClock(), RunFolder(tmp_path / "run")
    fakes = {
        SiteId(name): FakeSite(name=SiteId(name), key=edge.sites[name].signing_key)
        for name in NAMES[:3]
    }
    fakes[SiteId("gamma")].key = edge.sites["outside"].signing_key
    run = StudyRun(
        study=finished.study,
        signed_study=finished.signed.canonical,
        fleet=FakeFleet(sites=fakes, clock=clock),
        clock=clock,
        store=FakeStore(),
        events=log,
    )

    result = run.run()

    assert result.committed_rounds == finished.study.rounds
    lost = [
        event
        for event in read_events(tmp_path / "run" / LOG)
        if event.action == "site.lost" and event.fields["kind"] == "train"
    ]
    assert {event.fields["site"] for event in lost} == {"gamma"}
    assert "expected the key named in the study" in lost[0].fields["reason"]
