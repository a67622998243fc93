"""The hospital's HTTP proxy: passed by CONNECT with a password, blind to what is inside the TLS."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fedward_client.gateway.channel import EdgeChannel
from fedward_client.gateway.fleet import Answer
from fedward_client.proxy import Proxy, ProxyRefused, connect
from fedward_common.channel.credentials import TlsFiles
from fedward_common.errors import ChannelError, ConfigError
from fedward_common.trust.private_files import write_private
from tests.support.connect_proxy import ConnectProxy, connect_proxy
from tests.support.coordinator import Coordinator, coordinator
from tests.support.edge_process import free_port
from tests.support.pki import Authority, write_identity
from tests.support.relay import server_hello_versions

T = TypeVar("T")

OUTSIDE = "edge.north.example:443"
"""A name that only the proxy can resolve."""
CREDENTIALS = "fedward:p@ss:w%rd#1"
HEADERS = {"flwr-public-key": "bm9kZSBrZXk="}


@pytest.fixture(scope="module")
def far() -> Iterator[Coordinator]:
    with coordinator(name="edge.north.example") as running:
        yield running


def run(scenario: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(scenario, timeout=20))


def tls(far: Coordinator, folder: Path) -> TlsFiles:
    write_identity(folder, "peer", far.authority.site_identity("alpha"), far.authority.root)
    return TlsFiles(
        certificate=folder / "peer.pem", key=folder / "peer.key", ca=folder / "root.pem"
    )


async def one_call(
    far: Coordinator,
    folder: Path,
    proxy: Proxy | None,
    *,
    address: str = OUTSIDE,
    server_name: str | None = None,
    body: bytes = b"an update in clear?",
) -> Answer:
    channel = EdgeChannel(
        coordinator=address, server_name=server_name, tls=tls(far, folder), proxy=proxy
    )
    try:
        return await channel.forward("push-object", HEADERS, body)
    finally:
        await channel.close()


def named(proxy: ConnectProxy, folder: Path, credentials: str | None = CREDENTIALS) -> Proxy:
    """The proxy as site.toml names it, its password from a private file."""
    file = None
    if credentials is not None:
        file = folder / "proxy.auth"
        write_private(file, credentials.encode() + b"\n")
    made = Proxy.of(proxy.url, file)
    assert made is not None
    return made


def test_a_call_passes_the_proxy_with_a_password(far: Coordinator, tmp_path: Path) -> None:
    with connect_proxy({OUTSIDE: far.port}, credentials=CREDENTIALS) as proxy:
        answer = run(one_call(far, tmp_path, named(proxy, tmp_path)))

    assert answer.body == b"answer to an update in clear?"
    assert proxy.targets == [OUTSIDE]


def test_an_address_that_is_not_the_name_in_the_certificate_passes_with_server_name(
    far: Coordinator, tmp_path: Path
) -> None:
    address = "203.0.113.7:9443"
    with connect_proxy({address: far.port}) as proxy:
        way = named(proxy, tmp_path, None)
        answer = run(one_call(far, tmp_path, way, address=address, server_name=far.name))
        with pytest.raises(ChannelError, match="for another"):
            run(one_call(far, tmp_path, way, address=address))

    assert answer.status == 200


def test_tls_is_end_to_end_and_the_proxy_sees_no_plaintext(
    far: Coordinator, tmp_path: Path
) -> None:
    with connect_proxy({OUTSIDE: far.port}, credentials=CREDENTIALS) as proxy:
        run(one_call(far, tmp_path, named(proxy, tmp_path), body=b"an update in clear?" * 999))

    assert len(proxy.up) > 19 * 999
    for secret in (b"in clear?", b"push-object", b"bm9kZSBrZXk", b"alpha", b"answer to"):
        assert secret not in proxy.up
        assert secret not in proxy.down
    assert set(server_hello_versions(bytes(proxy.down))) == {0x0304}


def test_wrong_proxy_credentials_are_one_clear_error(far: Coordinator, tmp_path: Path) -> None:
    with (
        connect_proxy({OUTSIDE: far.port}, credentials=CREDENTIALS) as proxy,
        pytest.raises(ProxyRefused, match=r"user and password \(407\).*proxy_auth_file") as raised,
    ):
        run(one_call(far, tmp_path, named(proxy, tmp_path, "fedward:wrong")))

    assert "wrong" not in str(raised.value)
    assert proxy.up == b""


def test_a_proxy_that_forbids_the_address_is_named(far: Coordinator, tmp_path: Path) -> None:
    with (
        connect_proxy({}) as proxy,
        pytest.raises(ProxyRefused, match=r"answered 403.*let this host CONNECT") as raised,
    ):
        run(one_call(far, tmp_path, named(proxy, tmp_path, None)))

    assert proxy.url.removeprefix("http://") in str(raised.value)


def test_a_proxy_that_is_down_is_named(far: Coordinator, tmp_path: Path) -> None:
    nobody = Proxy.of(f"http://127.0.0.1:{free_port()}")

    with pytest.raises(ChannelError, match="found nobody there"):
        run(one_call(far, tmp_path, nobody))


def test_a_proxy_that_opens_the_tls_is_refused(far: Coordinator, tmp_path: Path) -> None:
    """What it shows is signed by a root of its own: no call gets through."""
    with (
        coordinator(Authority(federation="inspection"), name=far.name) as middle,
        connect_proxy({OUTSIDE: middle.port}) as proxy,
        pytest.raises(ChannelError, match="under the pinned root, found one of somebody else"),
    ):
        run(one_call(far, tmp_path, named(proxy, tmp_path, None)))

    assert middle.forwarded == []


def test_no_variable_of_the_environment_puts_a_proxy_in_between(
    far: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect_proxy({OUTSIDE: far.port}) as proxy:
        for name in ("https_proxy", "http_proxy", "grpc_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        with pytest.raises(ChannelError):
            run(one_call(far, tmp_path, None))

    assert proxy.heads == []


def test_no_proxy_in_the_environment_does_not_take_the_named_one_away(
    far: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "edge.north.example,127.0.0.1,*")
    with connect_proxy({OUTSIDE: far.port}) as proxy:
        run(one_call(far, tmp_path, named(proxy, tmp_path, None)))

    assert proxy.targets == [OUTSIDE]


def test_a_coordinator_on_this_host_is_reached_without_the_proxy(tmp_path: Path) -> None:
    with coordinator() as near, connect_proxy({}) as proxy:
        answer = run(one_call(near, tmp_path, named(proxy, tmp_path, None), address=near.address))

    assert answer.status == 200
    assert proxy.heads == []


def test_a_socket_through_the_proxy_carries_the_next_byte_untouched(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as far,
        connect_proxy({"far.example:9": far.getsockname()[1]}, credentials=CREDENTIALS) as proxy,
        connect("far.example", 9, proxy=named(proxy, tmp_path), timeout_seconds=5) as near,
    ):
        other, _ = far.accept()
        with other:
            other.sendall(b"first")
            assert near.recv(5) == b"first"


def test_a_proxy_whose_answer_never_ends_is_given_up() -> None:
    """A byte now and then keeps no socket's timeout from starting again; the whole has a limit."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        drip = Proxy(host="127.0.0.1", port=listener.getsockname()[1])

        def serve() -> None:
            raw, _ = listener.accept()
            with raw, contextlib.suppress(OSError):
                for _ in range(60):
                    raw.sendall(b"H")
                    time.sleep(0.05)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(TimeoutError):
            connect("far.example", 9, proxy=drip, timeout_seconds=0.5)
        thread.join(10)


@pytest.mark.parametrize(
    "url",
    [
        "https://proxy:3128",
        "http://me:secret@proxy:3128",
        "proxy:3128",
        "http://proxy:0",
        "http://p:1/x",
    ],
)
def test_a_proxys_url_is_only_host_and_port(url: str) -> None:
    with pytest.raises(ConfigError, match="http://host:port") as raised:
        Proxy.of(url)

    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(("text", "mode"), [("me:secret", 0o644), ("secret", 0o600), ("", 0o600)])
def test_credentials_that_others_may_read_or_that_are_none_are_refused(
    tmp_path: Path, text: str, mode: int
) -> None:
    file = tmp_path / "proxy.auth"
    file.write_text(text)
    file.chmod(mode)

    with pytest.raises(ConfigError) as raised:
        Proxy.of("http://proxy:3128", file)
    assert "secret" not in str(raised.value)


def test_the_password_is_not_in_the_proxys_representation(tmp_path: Path) -> None:
    file = tmp_path / "proxy.auth"
    write_private(file, b"me:secret")

    assert "secret" not in repr(Proxy.of("http://proxy:3128", file))
