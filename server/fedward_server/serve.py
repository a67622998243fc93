"""`fedward-server serve`: the coordinator's processes, supervised.

SuperLink and the ServerApp's executor live in a network of their own with nothing but loopback
(rules 15); a bridge leads to it from a Unix socket that only this user may connect to. The edge
alone faces the sites. Everything is configured by coordinator.toml.
"""

import fcntl
import os
import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import structlog

from fedward_common.bridge import bridge_command
from fedward_common.errors import StartError
from fedward_common.namespace import PrivateNetwork, open_network
from fedward_common.processes import (
    AWAKE,
    ChildSpec,
    Supervisor,
    port_open,
    require_free_port,
    socket_open,
)
from fedward_common.trust.certificates import LoopbackIdentity, make_loopback_identity
from fedward_common.trust.private_files import remove_drafts, write_private
from fedward_server.adapters.flower_control import FlowerControl
from fedward_server.adapters.registry import open_registry
from fedward_server.adapters.superlink_state import keep_copy, put_away, superlink_database
from fedward_server.settings import CoordinatorSettings

SETTINGS_VARIABLE: Final = "FEDWARD_COORDINATOR_SETTINGS"
LOCK: Final = "serve.lock"
DRAFT_SECONDS: Final = 60.0

_log = structlog.get_logger(__name__)


def serve(settings: CoordinatorSettings, *, settings_file: Path) -> None:
    """Runs the coordinator until SIGTERM or SIGINT; every child ends with it.

    Raises:
        StartError: a port is in use, a program is missing, a child does not come up, another
            coordinator works with this state.
    """
    os.umask(0o077)
    for folder in (settings.state, settings.run):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with only_one(settings):
        for folder in (settings.state, settings.state / "studies"):
            remove_drafts(folder, older_seconds=DRAFT_SECONDS)
        _serve(settings, settings_file)


@contextmanager
def only_one(settings: CoordinatorSettings) -> Iterator[None]:
    """Holds the coordinator's state for this process.

    Raises:
        StartError: another coordinator works with this state.
    """
    lock = os.open(settings.state / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StartError(
                f"coordinator: expected {settings.state} for itself, found another `serve` working "
                "with it. Stop that one, or give this one a state of its own"
            ) from error
        yield
    finally:
        os.close(lock)


def _serve(settings: CoordinatorSettings, settings_file: Path) -> None:
    ready_file(settings).unlink(missing_ok=True)
    require_free_port(settings.listen_port, name="edge", key="listen", host=settings.listen_host)
    if settings.enrolment.open and settings.enrolment.listen is not None:
        host, _, port = settings.enrolment.listen.rpartition(":")
        require_free_port(
            int(port), name="enrolment", key="enrolment.listen", host=host.strip("[]")
        )
    with ExitStack() as opened:
        network = _network(settings, opened)
        opened.callback(ready_file(settings).unlink, missing_ok=True)
        supervisor = Supervisor()
        opened.callback(put_away, settings)
        opened.callback(supervisor.stop)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, supervisor.ask_to_stop)
        for child in _children(settings, settings_file, supervisor, network):
            supervisor.start(child)
            if child.name == "bridge":
                register_nodes(settings)
        ready_file(settings).touch()
        _log.info("serve.ready", federation=settings.federation)
        supervisor.watch()


def _network(settings: CoordinatorSettings, opened: ExitStack) -> PrivateNetwork | None:
    """The private network of SuperLink and ServerApp, or the host's, which the log then says."""
    network, reason = open_network(settings.isolation)
    if network is None:
        _log.warning("network.shared", reason=reason)
        require_free_port(settings.superlink_port, name="SuperLink", key="superlink_port")
        return None
    opened.callback(network.close)
    if not network.hides_services:
        _log.warning("network.services-reachable")
    _log.info("network.private", federation=settings.federation)
    return network


def register_nodes(settings: CoordinatorSettings) -> None:
    """Makes SuperLink know the node key of every active site; known ones stay known.

    At the start, when a site was granted while the coordinator runs, and before a run.

    Raises:
        StartError: SuperLink refused or did not answer.
    """
    loopback = make_loopback_identity(settings.state / "loopback")
    registry = open_registry(settings.database)
    try:
        with FlowerControl(
            socket=settings.superlink_socket,
            port=settings.superlink_port,
            ca_certificate=loopback.ca,
        ) as control:
            for site in registry.active_sites():
                control.register_node(site.node_public_key_bytes, name=site.site_id)
        keep_copy(settings)
    finally:
        registry.close()


def _children(
    settings: CoordinatorSettings,
    settings_file: Path,
    supervisor: Supervisor,
    network: PrivateNetwork | None,
) -> list[ChildSpec]:
    """The children in start order: SuperLink, the way to it, its executor, the edge, enrolment."""
    state, logs = settings.state, settings.state / "logs"
    loopback = make_loopback_identity(state / "loopback")
    secret = state / "superexec.secret"
    if not secret.exists():
        write_private(secret, secrets.token_bytes(32))
    flower_home = {"FLWR_HOME": str(state / "flower")}
    return [
        ChildSpec(
            name="superlink",
            command=_superlink(settings, loopback, secret=secret),
            log_file=logs / "superlink.log",
            environment=flower_home,
            ready=lambda: supervisor.listens("superlink", settings.superlink_port),
            network=network,
            beats=AWAKE,
        ),
        ChildSpec(
            name="bridge",
            command=bridge_command(
                sys.executable, listen=settings.superlink_socket, to=settings.superlink_port
            ),
            log_file=logs / "bridge.log",
            ready=lambda: socket_open(settings.superlink_socket),
            network=network,
            beats=AWAKE,
        ),
        ChildSpec(
            name="serverapp",
            command=(
                *("flower-superexec", "--superexec-auth-secret-file", str(secret)),
                *("--runtime-api-address", f"127.0.0.1:{settings.superlink_port}"),
                *("--root-certificates", str(loopback.ca)),
            ),
            log_file=logs / "serverapp.log",
            environment=flower_home
            | {
                SETTINGS_VARIABLE: str(settings_file.resolve()),
                "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
                "OMP_NUM_THREADS": "1",
            },
            network=network,
            beats=AWAKE,
        ),
        ChildSpec(
            name="edge",
            command=_own("edge", settings_file),
            log_file=logs / "edge.log",
            ready=lambda: port_open(settings.listen_port, settings.probe_host),
            beats=AWAKE,
        ),
        ChildSpec(
            name="runs",
            command=_own("keep-runs", settings_file),
            log_file=logs / "runs.log",
            beats=AWAKE,
        ),
        *_enrolment(settings, settings_file),
    ]


def _enrolment(settings: CoordinatorSettings, settings_file: Path) -> list[ChildSpec]:
    """The listener's process, if sites may enrol over the network; it opens its port by itself."""
    if settings.enrolment.listen is None or not settings.enrolment.open:
        return []
    return [
        ChildSpec(
            name="enrolment",
            command=_own("enrol-listener", settings_file),
            log_file=settings.state / "logs" / "enrolment.log",
            beats=AWAKE,
        )
    ]


def _own(command: str, settings_file: Path) -> tuple[str, ...]:
    return (sys.executable, "-m", "fedward_server", command, "--config", str(settings_file))


def _superlink(
    settings: CoordinatorSettings, loopback: LoopbackIdentity, *, secret: Path
) -> tuple[str, ...]:
    return (
        *("flower-superlink", "--host", "127.0.0.1", "--port", str(settings.superlink_port)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
        *("--database", str(superlink_database(settings)), "--enable-supernode-auth"),
        *("--ssl-ca-certfile", str(loopback.ca), "--ssl-certfile", str(loopback.certificate)),
        *("--ssl-keyfile", str(loopback.key), "--disable-runtime-dependency-installation"),
    )


def ready_file(settings: CoordinatorSettings) -> Path:
    """A file that is there while the coordinator takes sites and studies."""
    return settings.run / "ready"


def require_running(settings: CoordinatorSettings) -> None:
    """Returns when the way to this coordinator's SuperLink is open.

    Raises:
        StartError: it is not, or not for this user.
    """
    if not socket_open(settings.superlink_socket):
        raise StartError(
            f"coordinator: expected an answer at {settings.superlink_socket}, found none. Start it "
            "with `fedward-server serve --config ...`, and run this as its user"
        )
