"""`fedward-server serve`: the coordinator's processes, supervised.

SuperLink and the ServerApp's executor listen and talk on loopback only; the edge alone faces the
sites. Everything is configured by coordinator.toml.
"""

import os
import secrets
import signal
import sys
from pathlib import Path
from typing import Final

import structlog

from fedward_common.errors import StartError
from fedward_common.processes import ChildSpec, Supervisor, port_open, require_free_port
from fedward_common.trust.certificates import LoopbackIdentity, make_loopback_identity
from fedward_common.trust.private_files import write_private
from fedward_server.adapters.flower_control import FlowerControl
from fedward_server.adapters.registry import open_registry
from fedward_server.settings import CoordinatorSettings

SETTINGS_VARIABLE: Final = "FEDWARD_COORDINATOR_SETTINGS"

_log = structlog.get_logger(__name__)


def serve(settings: CoordinatorSettings, *, settings_file: Path) -> None:
    """Runs the coordinator until SIGTERM or SIGINT; every child ends with it.

    Raises:
        StartError: a port is in use, a program is missing, a child does not come up.
    """
    os.umask(0o077)
    for folder in (settings.state, settings.run):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    ready_file(settings).unlink(missing_ok=True)
    require_free_port(settings.superlink_port, name="SuperLink", key="superlink_port")
    require_free_port(settings.listen_port, name="edge", key="listen", host=settings.listen_host)
    supervisor = Supervisor()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, supervisor.ask_to_stop)
    try:
        for child in _children(settings, settings_file):
            supervisor.start(child)
            if child.name == "superlink":
                _register_nodes(settings)
        ready_file(settings).touch()
        _log.info("serve.ready", federation=settings.federation)
        supervisor.watch()
    finally:
        ready_file(settings).unlink(missing_ok=True)
        supervisor.stop()


def _register_nodes(settings: CoordinatorSettings) -> None:
    """Makes SuperLink know the node key of every active site."""
    loopback = make_loopback_identity(settings.state / "loopback")
    registry = open_registry(settings.database)
    with FlowerControl(port=settings.superlink_port, ca_certificate=loopback.ca) as control:
        for site in registry.active_sites():
            control.register_node(site.node_public_key_bytes, name=site.site_id)


def _children(settings: CoordinatorSettings, settings_file: Path) -> list[ChildSpec]:
    """The children in start order: SuperLink, the ServerApp's executor, the edge."""
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
            ready=lambda: port_open(settings.superlink_port),
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
        ),
        ChildSpec(
            name="edge",
            command=(
                sys.executable,
                "-m",
                "fedward_server",
                "edge",
                "--config",
                str(settings_file),
            ),
            log_file=logs / "edge.log",
            ready=lambda: port_open(settings.listen_port, settings.probe_host),
        ),
    ]


def _superlink(
    settings: CoordinatorSettings, loopback: LoopbackIdentity, *, secret: Path
) -> tuple[str, ...]:
    return (
        *("flower-superlink", "--host", "127.0.0.1", "--port", str(settings.superlink_port)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
        *("--database", str(settings.state / "superlink.db"), "--enable-supernode-auth"),
        *("--ssl-ca-certfile", str(loopback.ca), "--ssl-certfile", str(loopback.certificate)),
        *("--ssl-keyfile", str(loopback.key), "--disable-runtime-dependency-installation"),
    )


def ready_file(settings: CoordinatorSettings) -> Path:
    """A file that is there while the coordinator takes sites and studies."""
    return settings.run / "ready"


def require_running(settings: CoordinatorSettings) -> None:
    """Returns when this coordinator's SuperLink answers on loopback.

    Raises:
        StartError: it does not.
    """
    if not port_open(settings.superlink_port):
        raise StartError(
            f"coordinator: expected SuperLink on port {settings.superlink_port}, found nothing. "
            "Start it with `fedward-server serve --config ...`"
        )
