"""`fedward-client run`: the site's processes, supervised.

The guard comes first and goes last; nothing can leave while it is down. SuperNode and the worker
see loopback only; the gateway alone talks to the coordinator.
"""

import os
import secrets
import signal
import sys
from pathlib import Path
from typing import Final

import structlog

from fedward_client.settings import SiteSettings
from fedward_common.processes import (
    ChildSpec,
    Supervisor,
    port_open,
    require_free_port,
    socket_open,
)
from fedward_common.trust.certificates import make_loopback_identity
from fedward_common.trust.private_files import write_private

SETTINGS_VARIABLE: Final = "FEDWARD_SITE_SETTINGS"
TASK_POLL_SECONDS: Final = "0.2"

_log = structlog.get_logger(__name__)


def run_site(settings: SiteSettings, *, settings_file: Path) -> None:
    """Runs the site until SIGTERM or SIGINT; every child ends with it.

    Raises:
        StartError: a port is in use, a program is missing, a child does not come up.
    """
    os.umask(0o077)
    require_free_port(settings.ports.gateway, name="gateway", key="ports.gateway")
    require_free_port(settings.ports.runtime, name="SuperNode", key="ports.runtime")
    supervisor = Supervisor()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, supervisor.ask_to_stop)
    try:
        for child in _children(settings, settings_file):
            supervisor.start(child)
        _log.info("site.ready", site=settings.site)
        supervisor.watch()
    finally:
        supervisor.stop()


def _children(settings: SiteSettings, settings_file: Path) -> list[ChildSpec]:
    """The children in start order: guard, gateway, SuperNode, worker."""
    logs = settings.folders.state / "logs"
    loopback = make_loopback_identity(settings.folders.state / "loopback")
    secret = settings.folders.state / "superexec.secret"
    if not secret.exists():
        write_private(secret, secrets.token_bytes(32))

    def own(command: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "fedward_client", command, "--config", str(settings_file))

    return [
        ChildSpec(
            name="guard",
            command=own("guard"),
            log_file=logs / "guard.log",
            ready=lambda: socket_open(settings.gateway_socket),
        ),
        ChildSpec(
            name="gateway",
            command=own("gateway"),
            log_file=logs / "gateway.log",
            ready=lambda: port_open(settings.ports.gateway),
        ),
        ChildSpec(
            name="supernode",
            command=(
                "flower-supernode",
                "--superlink",
                f"127.0.0.1:{settings.ports.gateway}",
                "--root-certificates",
                str(loopback.ca),
                "--auth-supernode-private-key",
                str(settings.keys.node_key),
                "--isolation",
                "process",
                "--superexec-auth-secret-file",
                str(secret),
                "--host",
                "127.0.0.1",
                "--port",
                str(settings.ports.runtime),
            ),
            log_file=logs / "supernode.log",
            environment={"FLWR_HOME": str(settings.folders.state / "flower")},
            ready=lambda: port_open(settings.ports.runtime),
        ),
        ChildSpec(
            name="worker",
            command=own("worker"),
            log_file=logs / "worker.log",
            environment={
                "FLWR_HOME": str(settings.folders.state / "flower-worker"),
                "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": TASK_POLL_SECONDS,
                SETTINGS_VARIABLE: str(settings_file.resolve()),
                "OMP_NUM_THREADS": "1",
            },
        ),
    ]
