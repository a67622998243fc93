"""Guard and gateway as programs, from one site.toml: encrypted keys, a proxy in between."""

import contextlib
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tomli_w

from fedward_client.adapters.key_files import (
    is_encrypted,
    write_node_key,
    write_signing_key,
    write_tls_key,
)
from fedward_client.settings import SiteSettings, load_site_settings
from fedward_common.log.events import read_events
from fedward_common.processes import socket_open
from fedward_common.trust.private_files import write_private
from tests.support.connect_proxy import connect_proxy
from tests.support.edge_process import RunningEdge, clean_environment, running_edge, wait_until
from tests.support.flower_node import signed_headers
from tests.support.guard_site import site_values
from tests.support.pki import Site

OUTSIDE = "edge.north.example:443"
PASSPHRASE = b"a passphrase of some length"
CREDENTIALS = "fedward:s3cr3t"


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEdge]:
    with running_edge(tmp_path_factory.mktemp("edge"), "alpha") as running:
        yield running


def write_site(folder: Path, edge: RunningEdge, *, proxy: str, run: str) -> SiteSettings:
    site, keys = edge.sites["alpha"], folder / "keys"
    keys.mkdir(parents=True, mode=0o700)
    (keys / "tls.pem").write_bytes(site.identity.certificate_pem)
    (keys / "ca.pem").write_bytes(edge.authority.root.certificate_pem)
    write_tls_key(keys / "tls.key", site.identity.key_pem, passphrase=PASSPHRASE)
    write_node_key(keys / "node.key", site.node_key, passphrase=PASSPHRASE)
    write_signing_key(keys / "signing.pem", site.signing_key, passphrase=PASSPHRASE)
    write_private(folder / "passphrase", PASSPHRASE + b"\n")
    write_private(folder / "proxy.auth", CREDENTIALS.encode())
    values: dict[str, Any] = site_values(site="alpha")
    values |= {
        "federation": "north",
        "coordinator": {
            "address": OUTSIDE,
            "server_name": "localhost",
            "proxy": proxy,
            "proxy_auth_file": "proxy.auth",
        },
        "folders": {"state": "state", "run": run},
        "keys": {
            "tls_certificate": "keys/tls.pem",
            "tls_key": "keys/tls.key",
            "ca": "keys/ca.pem",
            "node_key": "keys/node.key",
            "signing_key": "keys/signing.pem",
            "passphrase_file": "passphrase",
        },
    }
    (folder / "site.toml").write_text(tomli_w.dumps(values))
    return load_site_settings(folder / "site.toml")


@contextlib.contextmanager
def programs(settings: SiteSettings) -> Iterator[None]:
    """`fedward-client guard` and `fedward-client gateway`, up until the end."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name, path in (("guard", settings.gateway_socket), ("gateway", settings.fleet_socket)):
            command = [sys.executable, "-m", "fedward_client", name, "--config"]
            process = subprocess.Popen([*command, str(settings.source)], env=clean_environment())
            started.append(process)
            wait_until(lambda: socket_open(path) or process.poll() is not None)  # noqa: B023
            assert process.poll() is None, name
        yield
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def heartbeat(settings: SiteSettings, site: Site) -> int:
    """The answer to a call of SuperNode through the gateway."""
    context = ssl.create_default_context(cafile=settings.folders.state / "loopback" / "ca.pem")
    transport = httpx.HTTPTransport(uds=str(settings.fleet_socket), verify=context)
    with httpx.Client(base_url="https://localhost/v1/fleet/", transport=transport) as supernode:
        headers = signed_headers(site.node_key)
        return supernode.post("send-node-heartbeat", content=b"", headers=headers).status_code


def test_a_site_with_encrypted_keys_behind_a_proxy_reaches_superlink_and_writes_down_its_hello(
    edge: RunningEdge, tmp_path: Path
) -> None:
    port = edge.settings.listen_port
    with (
        tempfile.TemporaryDirectory() as run,
        connect_proxy({OUTSIDE: port}, credentials=CREDENTIALS) as proxy,
    ):
        settings = write_site(tmp_path, edge, proxy=proxy.url, run=run)
        with programs(settings):
            answers = [heartbeat(settings, edge.sites["alpha"]) for _ in range(3)]

            def greeted() -> bool:
                return any(
                    event.fields.get("kind") == "hello"
                    for event in read_events(settings.audit_path)
                )

            wait_until(greeted)

    assert answers == [200, 200, 200]
    assert set(proxy.targets) == {OUTSIDE}
    assert b"send-node-heartbeat" not in proxy.up
    assert edge.superlink.calls[-1][0] == "/v1/fleet/send-node-heartbeat"
    assert is_encrypted(settings.keys.tls_key)


def test_behind_a_proxy_that_does_not_know_the_site_supernode_waits(
    edge: RunningEdge, tmp_path: Path
) -> None:
    before = len(edge.superlink.calls)
    with (
        tempfile.TemporaryDirectory() as run,
        connect_proxy({OUTSIDE: edge.settings.listen_port}, credentials="other:one") as proxy,
    ):
        settings = write_site(tmp_path, edge, proxy=proxy.url, run=run)
        with programs(settings):
            answer = heartbeat(settings, edge.sites["alpha"])

    assert answer == 503
    assert len(edge.superlink.calls) == before
    assert proxy.up == b""
