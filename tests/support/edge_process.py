"""A real edge: own process, real sockets, a real registry, and a SuperLink that only records."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fedward_client.gateway.channel import EdgeChannel
from fedward_common.channel.credentials import TlsFiles
from fedward_common.channel.tls import CIPHER_VARIABLE
from fedward_common.log.events import read_events
from fedward_common.trust.certificates import Identity, make_loopback_identity
from fedward_server.adapters.registry import SqlRegistry, open_registry
from fedward_server.sandbox.layout import free_ports
from fedward_server.settings import CoordinatorSettings, load_coordinator_settings
from tests.support.pki import Authority, Site, write_identity

START_SECONDS = 20.0


def free_port() -> int:
    return free_ports(1)[0]


def clean_environment() -> dict[str, str]:
    """The environment without the TLS setting: the process must set it itself."""
    return {k: v for k, v in os.environ.items() if k != CIPHER_VARIABLE}


def wait_until(condition: Any, *, seconds: float = START_SECONDS) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            raise AssertionError(f"not within {seconds} s")
        time.sleep(0.02)


class FakeSuperLink:
    """An HTTPS server on a Unix socket that answers everything with 200 and remembers it."""

    def __init__(self, socket_path: Path, identity_folder: Path) -> None:
        self.calls: list[tuple[str, dict[str, str], bytes]] = []
        files = make_loopback_identity(identity_folder)
        self._server = uvicorn.Server(
            uvicorn.Config(
                Starlette(routes=[Route("/{path:path}", self._answer, methods=["POST"])]),
                uds=str(socket_path),
                ssl_certfile=str(files.certificate),
                ssl_keyfile=str(files.key),
                lifespan="off",
                log_level="critical",
            )
        )
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started)

    async def _answer(self, request: Request) -> Response:
        self.calls.append((request.url.path, dict(request.headers), await request.body()))
        return Response(b"", media_type="application/protobuf")

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)


@dataclass
class RunningEdge:
    """An edge with everything that a test asks it."""

    settings: CoordinatorSettings
    authority: Authority
    sites: dict[str, Site]
    registry: SqlRegistry
    superlink: FakeSuperLink
    process: subprocess.Popen[bytes]
    folder: Path
    made: int = field(default=0)

    @property
    def address(self) -> str:
        return self.settings.listen

    def tls(self, identity: Identity, *, root: Identity | None = None) -> TlsFiles:
        self.made += 1
        folder = self.folder / f"peer-{self.made}"
        write_identity(folder, "peer", identity, root or self.authority.root)
        return TlsFiles(
            certificate=folder / "peer.pem", key=folder / "peer.key", ca=folder / "root.pem"
        )

    def channel(self, identity: Identity, *, address: str | None = None) -> EdgeChannel:
        return EdgeChannel(
            coordinator=address or self.address, server_name=None, tls=self.tls(identity)
        )

    def add_site(self, name: str, **certificate: Any) -> Site:
        site = self.authority.site(name, **certificate)
        self.registry.add(site.record)
        return site

    def logged(self, action: str, **fields: object) -> bool:
        """Whether the coordinator's log has such an event; waits a little for it."""

        def found() -> bool:
            return any(
                event.action == action and fields.items() <= event.fields.items()
                for event in read_events(self.settings.edge_log)
            )

        with contextlib.suppress(AssertionError):
            wait_until(found, seconds=5)
        return found()


@contextlib.contextmanager
def running_edge(folder: Path, *names: str) -> Iterator[RunningEdge]:
    """An edge for the sites `names`, in its own process, ready."""
    authority = Authority()
    write_identity(folder / "tls", "edge", authority.server_identity(), authority.root)
    path = folder / "coordinator.toml"
    path.write_text(
        f'federation = "north"\nlisten = "127.0.0.1:{free_port()}"\n'
        f"superlink_port = {free_port()}\n"
        '[tls]\ncertificate = "tls/edge.pem"\nkey = "tls/edge.key"\nca = "tls/root.pem"\n'
    )
    settings = load_coordinator_settings(path)
    registry = open_registry(settings.database)
    sites = {name: authority.site(name) for name in names}
    for site in sites.values():
        registry.add(site.record)
    settings.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    superlink = FakeSuperLink(settings.superlink_socket, settings.state / "loopback")
    code = (
        "import sys\nfrom pathlib import Path\nfrom fedward_server.edge import run_edge\n"
        "from fedward_server.settings import load_coordinator_settings\n"
        "run_edge(load_coordinator_settings(Path(sys.argv[1])))\n"
    )
    with (folder / "edge.out").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=clean_environment(),
        )
    try:
        wait_until(lambda: settings.kick_socket.exists() or process.poll() is not None)
        if process.poll() is not None:
            raise AssertionError((folder / "edge.out").read_text())
        yield RunningEdge(settings, authority, sites, registry, superlink, process, folder)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        superlink.stop()
        registry.close()
