"""rules 17: what the edge agrees on, read from the bytes on the wire: TLS 1.3, nothing below."""

import asyncio
import socket
import ssl
from collections.abc import Iterator

import pytest

from fedward_client.gateway.fleet import Answer
from tests.support.edge_process import RunningEdge, running_edge
from tests.support.relay import recording_relay, server_hello_versions

TLS_1_2, TLS_1_3 = 0x0303, 0x0304


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEdge]:
    with running_edge(tmp_path_factory.mktemp("edge"), "alpha") as running:
        yield running


def python_client(edge: RunningEdge, version: ssl.TLSVersion) -> ssl.SSLContext:
    """A client with the good site's certificate that speaks exactly `version`."""
    files = edge.tls(edge.sites["alpha"].identity)
    context = ssl.create_default_context(cafile=files.ca)
    context.load_cert_chain(files.certificate, files.key)
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    return context


def test_the_server_hello_of_the_edge_selects_tls_1_3(edge: RunningEdge) -> None:
    site = edge.sites["alpha"]

    async def call(port: int) -> Answer:
        channel = edge.channel(site.identity, address=f"127.0.0.1:{port}")
        try:
            return await channel.forward(
                "get-run", {"flwr-public-key": site.node_key.header}, b"in clear?"
            )
        finally:
            await channel.close()

    with recording_relay((edge.settings.listen_host, edge.settings.listen_port)) as recording:
        answer = asyncio.run(call(recording.port))

    assert answer.status == 200
    assert set(server_hello_versions(bytes(recording.to_client))) == {TLS_1_3}
    assert b"in clear?" not in recording.to_server
    assert site.node_key.header.encode()[:40] not in recording.to_server


def test_a_client_limited_to_tls_1_2_is_refused_and_logged(edge: RunningEdge) -> None:
    context = python_client(edge, ssl.TLSVersion.TLSv1_2)

    with (
        socket.create_connection(("127.0.0.1", edge.settings.listen_port), timeout=5) as tcp,
        pytest.raises(OSError, match=r"SSL|reset"),
    ):
        context.wrap_socket(tcp, server_hostname="localhost")
    assert edge.logged("edge.handshake-refused", code="tls-version")


def test_the_same_client_with_tls_1_3_is_accepted(edge: RunningEdge) -> None:
    context = python_client(edge, ssl.TLSVersion.TLSv1_3)

    with (
        socket.create_connection(("127.0.0.1", edge.settings.listen_port), timeout=5) as tcp,
        context.wrap_socket(tcp, server_hostname="localhost") as channel,
    ):
        assert channel.version() == "TLSv1.3"
        assert channel.selected_alpn_protocol() == "h2"


def test_the_reader_of_the_recording_tells_tls_1_2_apart(edge: RunningEdge) -> None:
    """The test of the test: the same relay and reader on a server that speaks 1.2."""
    files = edge.tls(edge.authority.server_identity())
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    server.load_cert_chain(files.certificate, files.key)
    client = python_client(edge, ssl.TLSVersion.TLSv1_2)

    async def exchange() -> bytes:
        listener = await asyncio.start_server(
            lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=server
        )
        with recording_relay(listener.sockets[0].getsockname()) as recording:
            _, writer = await asyncio.open_connection(
                "127.0.0.1", recording.port, ssl=client, server_hostname="localhost"
            )
            writer.close()
        listener.close()
        return bytes(recording.to_client)

    assert server_hello_versions(asyncio.run(exchange())) == [TLS_1_2]
