"""The channel with real sockets and the real edge in its own process.

Each attack is refused for its own reason, each is in the coordinator's log, the good site passes.
"""

import asyncio
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import grpc
import httpx
import pytest

from fedward_client.gateway.channel import EdgeChannel
from fedward_client.gateway.fleet import Answer
from fedward_common.channel import channel_pb2 as wire
from fedward_common.channel import channel_pb2_grpc as stubs
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.errors import ChannelError
from fedward_common.ids import SiteId
from fedward_common.log.events import verify
from fedward_common.trust.certificates import make_loopback_identity
from fedward_server.adapters.edge_kick import kick
from tests.support.edge import poll_body
from tests.support.edge_process import (
    RunningEdge,
    clean_environment,
    free_port,
    running_edge,
    wait_until,
)
from tests.support.flower_node import signed_headers
from tests.support.pki import Authority, Site, now

T = TypeVar("T")

BODY = b"body"


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEdge]:
    with running_edge(tmp_path_factory.mktemp("edge"), "alpha", "beta") as running:
        yield running


def run(scenario: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(scenario, timeout=20))


def headers(site: Site) -> dict[str, str]:
    return {"flwr-public-key": site.node_key.header}


async def one_call(
    opened: Callable[[], EdgeChannel], site: Site, *, route: str = "get-run", body: bytes = BODY
) -> Answer:
    channel = opened()
    try:
        return await channel.forward(route, headers(site), body)
    finally:
        await channel.close()


def refused(edge: RunningEdge, site: Site, *, key_of: Site | None = None, **call: Any) -> Refusal:
    """Why the edge refuses a call of `site`, whose connection it accepts."""
    with pytest.raises(CallRefused) as caught:
        run(one_call(lambda: edge.channel(site.identity), key_of or site, **call))
    return caught.value.refusal


def test_the_good_site_passes(edge: RunningEdge) -> None:
    site = edge.sites["alpha"]

    answer = run(one_call(lambda: edge.channel(site.identity), site))

    path, sent, body = edge.superlink.calls[-1]
    assert answer.status == 200
    assert (path, body) == ("/v1/fleet/get-run", BODY)
    assert sent["flwr-public-key"] == site.node_key.header
    assert edge.logged("edge.site-connected", site="alpha")


def test_a_peer_without_a_certificate_is_refused(edge: RunningEdge) -> None:
    credentials = grpc.ssl_channel_credentials(edge.authority.root.certificate_pem)

    async def call() -> None:
        async with grpc.aio.secure_channel(edge.address, credentials) as channel:
            await stubs.FedwardChannelStub(channel).Forward(
                wire.ForwardRequest(route="get-run"), timeout=5
            )

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        run(call())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert edge.logged("edge.handshake-refused", code="no-certificate")


def test_a_certificate_of_another_authority_is_refused(edge: RunningEdge) -> None:
    site = edge.sites["alpha"]
    stranger = Authority().site_identity("alpha")

    with pytest.raises(ChannelError, match="refused this site's certificate"):
        run(one_call(lambda: edge.channel(stranger), site))
    assert edge.logged("edge.handshake-refused", code="unknown-authority")


def test_an_expired_certificate_is_refused(edge: RunningEdge) -> None:
    site = edge.sites["alpha"]
    expired = edge.authority.site_identity("alpha", at=now() - timedelta(days=100))

    with pytest.raises(CallRefused, match="renew it") as caught:
        run(one_call(lambda: edge.channel(expired), site))
    assert caught.value.refusal is Refusal.CERTIFICATE_EXPIRED
    assert edge.logged("edge.handshake-refused", code="certificate-expired")


def test_a_certificate_of_tomorrow_is_one_clear_error_at_both_ends(edge: RunningEdge) -> None:
    site = edge.sites["alpha"]
    early = edge.authority.site_identity("alpha", at=now() + timedelta(days=2))

    with pytest.raises(CallRefused, match="check this machine's clock") as caught:
        run(one_call(lambda: edge.channel(early), site))
    assert caught.value.refusal is Refusal.CERTIFICATE_NOT_YET_VALID
    assert edge.logged("edge.handshake-refused", code="certificate-not-yet-valid")


def test_a_certificate_that_expires_on_a_live_connection_is_refused(edge: RunningEdge) -> None:
    site = edge.add_site("brief", lifetime=timedelta(seconds=3))

    async def scenario() -> None:
        channel = edge.channel(site.identity)
        assert (await channel.forward("get-run", headers(site), BODY)).status == 200
        await asyncio.sleep(4)
        await one_call(lambda: channel, site)

    with pytest.raises(CallRefused) as caught:
        run(scenario())
    assert caught.value.refusal is Refusal.CERTIFICATE_EXPIRED
    assert edge.logged("edge.refused", code="certificate-expired", site="brief")


def test_the_edges_own_certificate_is_not_one_for_clients(edge: RunningEdge) -> None:
    site = edge.sites["alpha"]

    with pytest.raises(ChannelError):
        run(one_call(lambda: edge.channel(edge.authority.server_identity()), site))
    assert edge.logged("edge.handshake-refused", code="certificate-purpose")


def test_a_revoked_site_is_refused_on_its_live_connection(edge: RunningEdge) -> None:
    site = edge.add_site("leaving")

    async def scenario() -> None:
        channel = edge.channel(site.identity)
        assert (await channel.forward("get-run", headers(site), BODY)).status == 200
        edge.registry.revoke(SiteId("leaving"))
        await one_call(lambda: channel, site)

    with pytest.raises(CallRefused) as caught:
        run(scenario())
    assert caught.value.refusal is Refusal.SITE_REVOKED
    assert edge.logged("edge.refused", code="site-revoked", site="leaving", route="forward")


def test_the_certificate_of_a_with_the_node_key_of_b_is_refused(edge: RunningEdge) -> None:
    refusal = refused(edge, edge.sites["alpha"], key_of=edge.sites["beta"])

    assert refusal is Refusal.NODE_KEY
    assert edge.logged("edge.refused", code="node-key", site="alpha")


@pytest.mark.parametrize("route", ["list-nodes", "../control/list-nodes", "/v1/control/start-run"])
def test_a_control_route_is_refused(edge: RunningEdge, route: str) -> None:
    before = len(edge.superlink.calls)

    assert refused(edge, edge.sites["alpha"], route=route) is Refusal.ROUTE
    assert edge.logged("edge.refused", code="route", site="alpha", route="other")
    assert len(edge.superlink.calls) == before


def test_a_9_mib_body_is_refused(edge: RunningEdge) -> None:
    before = len(edge.superlink.calls)

    refusal = refused(edge, edge.sites["alpha"], route="push-object", body=bytes(9 << 20))

    assert refusal is Refusal.BODY_TOO_LARGE
    assert edge.logged("edge.refused", code="body-too-large", site="alpha", route="push-object")
    assert len(edge.superlink.calls) == before


def test_a_body_over_grpcs_own_limit_is_refused_with_the_same_word(edge: RunningEdge) -> None:
    """Our gateway does not send it. (A client without a limit is refused by grpc: next test.)"""
    refusal = refused(edge, edge.sites["alpha"], route="push-object", body=bytes(17 << 20))

    assert refusal is Refusal.BODY_TOO_LARGE


def test_a_client_without_a_limit_does_not_get_more_than_16_mib_in(edge: RunningEdge) -> None:
    site = edge.sites["alpha"]
    before = len(edge.superlink.calls)
    credentials = grpc.ssl_channel_credentials(
        edge.authority.root.certificate_pem, site.identity.key_pem, site.identity.certificate_pem
    )
    request = wire.ForwardRequest(route="get-run", headers=headers(site), body=bytes(17 << 20))

    async def call() -> None:
        options = [("grpc.max_send_message_length", -1)]
        async with grpc.aio.secure_channel(edge.address, credentials, options) as channel:
            await stubs.FedwardChannelStub(channel).Forward(request, timeout=10)

    with pytest.raises(grpc.aio.AioRpcError, match="larger than max") as caught:
        run(call())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(edge.superlink.calls) == before


def test_a_site_cannot_pass_itself_off_as_the_coordinator(edge: RunningEdge) -> None:
    """Its certificate is for clients and names no host."""
    files = edge.tls(edge.sites["beta"].identity)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    context.set_alpn_protocols(["h2"])
    outcome: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            try:
                context.wrap_socket(connection, server_side=True).recv(1)
                outcome.append("accepted")
            except OSError:
                outcome.append("refused")

        thread = threading.Thread(target=serve)
        thread.start()
        site = edge.sites["alpha"]
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ChannelError):
            run(one_call(lambda: edge.channel(site.identity, address=address), site))
        thread.join(10)

    assert outcome == ["refused"]


def test_a_poll_stays_open_until_the_kick(edge: RunningEdge) -> None:
    site = edge.sites["beta"]

    async def scenario() -> float:
        channel = edge.channel(site.identity)
        polling = asyncio.ensure_future(
            one_call(lambda: channel, site, route="pull-messages", body=poll_body(7))
        )
        await asyncio.sleep(1.0)
        assert not polling.done()
        asked = len(edge.superlink.calls)

        assert await asyncio.to_thread(kick, edge.settings.kick_socket, [7])
        kicked = time.monotonic()
        while len(edge.superlink.calls) == asked:
            await asyncio.sleep(0.005)
        waited = time.monotonic() - kicked

        polling.cancel()
        await asyncio.gather(polling, return_exceptions=True)
        return waited

    assert run(scenario()) < 0.5


def test_the_log_of_all_this_is_an_unbroken_chain(edge: RunningEdge) -> None:
    assert verify(edge.settings.edge_log).entries > 1


def start_gateway(
    edge: RunningEdge, site: Site, folder: Path
) -> tuple[subprocess.Popen[bytes], Path]:
    """The site's gateway in its own process; no call of these tests asks the guard."""
    files, listening = edge.tls(site.identity), Path(tempfile.mkdtemp()) / "fleet.sock"
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from fedward_client.gateway import GatewayConfig, run_gateway\n"
        "address, cert, key, ca, socket, folder, node_key = sys.argv[1:]\n"
        "run_gateway(GatewayConfig(coordinator=address, server_name=None, certificate=Path(cert),"
        " key=Path(key), ca=Path(ca), socket=Path(socket), loopback=Path(folder),"
        " guard_socket=Path(folder) / 'none.sock', node_public_key=node_key,"
        " pulse_file=Path(folder) / 'pulse'))\n"
    )
    arguments = [edge.address, files.certificate, files.key, files.ca, listening, folder]
    arguments.append(site.node_key.header)
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], env=clean_environment()
    )
    wait_until(lambda: listening.exists() or process.poll() is not None)
    return process, listening


def test_supernodes_calls_reach_superlink_through_both_processes_and_a_lost_edge_is_503(
    tmp_path: Path,
) -> None:
    with running_edge(tmp_path / "coordinator", "alpha") as edge:
        site = edge.sites["alpha"]
        context = ssl.create_default_context(cafile=make_loopback_identity(tmp_path / "site").ca)
        gateway, listening = start_gateway(edge, site, tmp_path / "site")
        try:
            with httpx.Client(
                base_url="https://localhost/v1/fleet/",
                headers=signed_headers(site.node_key),
                transport=httpx.HTTPTransport(uds=str(listening), verify=context),
            ) as supernode:
                passed = supernode.post("send-node-heartbeat", content=b"").status_code
                edge.process.send_signal(signal.SIGTERM)
                ended = edge.process.wait(10)
                lost = supernode.post("send-node-heartbeat", content=b"").status_code
        finally:
            gateway.send_signal(signal.SIGTERM)
            gateway_ended = gateway.wait(10)

        assert (passed, lost) == (200, 503)
        assert edge.superlink.calls[0][0] == "/v1/fleet/send-node-heartbeat"
        assert (ended, gateway_ended) == (0, 0)
        assert edge.logged("edge.stopped")
        assert not edge.settings.kick_socket.exists()


def test_a_second_edge_on_the_same_port_says_so(edge: RunningEdge, tmp_path: Path) -> None:
    text = (edge.folder / "coordinator.toml").read_text()
    (tmp_path / "coordinator.toml").write_text(
        text.replace('"tls/', f'"{edge.folder}/tls/').replace(
            f"superlink_port = {edge.settings.superlink_port}", f"superlink_port = {free_port()}"
        )
    )
    code = (
        "import sys\nfrom pathlib import Path\nfrom fedward_server.edge import run_edge\n"
        "from fedward_server.settings import load_coordinator_settings\n"
        "run_edge(load_coordinator_settings(Path(sys.argv[1])))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "coordinator.toml")],
        capture_output=True,
        text=True,
        env=clean_environment(),
        check=False,
        timeout=30,
    )

    assert done.returncode != 0
    assert "StartError: edge: expected to listen on" in done.stderr
