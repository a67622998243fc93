"""`fedward-client run`: the site's processes, supervised.

The guard comes first and goes last; nothing can leave while it is down. SuperNode and the worker
live in a network of their own with nothing but loopback, from which a bridge leads to the gateway's
Unix socket; the gateway alone talks to the coordinator. Started as root with users named in
[guard], each process is a user of its own (rules 14, 15).
"""

import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import structlog

from fedward_client.adapters.key_files import flower_node_key, read_passphrase
from fedward_client.isolation.accounts import SiteAccounts
from fedward_client.isolation.arrange import arrange
from fedward_client.isolation.flower import (
    node_home,
    supernode_command,
    supernode_environment,
    worker_environment,
    worker_home,
)
from fedward_client.settings import SiteSettings
from fedward_common.bridge import bridge_command
from fedward_common.namespace import PrivateNetwork, open_network
from fedward_common.processes import (
    AWAKE,
    ChildSpec,
    Supervisor,
    changed,
    require_free_port,
    socket_open,
)
from fedward_common.users import acting_as

_log = structlog.get_logger(__name__)


def run_site(settings: SiteSettings) -> None:
    """Runs the site until SIGTERM or SIGINT; every child ends with it.

    Raises:
        ConfigError: [guard] names users that this process cannot become, a key is not in order.
        StartError: no private network where one is required, a port is in use, a file belongs to
            somebody else, a program is missing, a child does not come up.
    """
    os.umask(0o077)
    accounts = SiteAccounts.of(settings)
    with ExitStack() as opened:
        network = _network(settings, opened)
        arrange(settings, accounts)
        passphrase = read_passphrase(settings.keys.passphrase_file)
        with acting_as(accounts.node):
            node_key = opened.enter_context(
                flower_node_key(
                    settings.keys.node_key, run=settings.folders.run, passphrase=passphrase
                )
            )
        if not accounts.separate:
            _log.warning("users.shared", uid=os.geteuid())
        supervisor = Supervisor(log_owner=accounts.guard)
        opened.callback(supervisor.stop)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, supervisor.ask_to_stop)
        site = _Site(settings, accounts, network, supervisor)
        for child in (*site.own(), *site.flowers(node_key)):
            supervisor.start(child)
        _log.info("site.ready", site=settings.site)
        supervisor.watch()


def _network(settings: SiteSettings, opened: ExitStack) -> PrivateNetwork | None:
    """The private network of SuperNode and worker, or the host's, which the log then says."""
    network, reason = open_network(settings.isolation)
    if network is None:
        _log.warning("network.shared", reason=reason)
        require_free_port(settings.ports.gateway, name="bridge", key="ports.gateway")
        require_free_port(settings.ports.runtime, name="SuperNode", key="ports.runtime")
        return None
    opened.callback(network.close)
    _log.info("network.private", site=settings.site)
    if not network.hides_services:
        _log.warning("network.services-reachable")
    return network


class _Site:
    """The children of a site; each list is in start order."""

    def __init__(
        self,
        settings: SiteSettings,
        accounts: SiteAccounts,
        network: PrivateNetwork | None,
        supervisor: Supervisor,
    ) -> None:
        self._settings = settings
        self._accounts = accounts
        self._network = network
        self._supervisor = supervisor

    def own(self) -> tuple[ChildSpec, ...]:
        """Guard and gateway: on the host's network, with keys."""
        settings, accounts = self._settings, self._accounts
        return (
            ChildSpec(
                name="guard",
                command=self._program("guard"),
                log_file=self._log_file("guard"),
                ready=lambda: socket_open(settings.gateway_socket),
                user=accounts.guard,
                home=settings.folders.state if accounts.separate else None,
                beats=AWAKE,
            ),
            ChildSpec(
                name="gateway",
                command=self._program("gateway"),
                log_file=self._log_file("gateway"),
                ready=lambda: socket_open(settings.fleet_socket),
                user=accounts.gateway,
                home=settings.fleet_socket.parent if accounts.separate else None,
                beats=AWAKE,
            ),
        )

    def flowers(self, node_key: Path) -> tuple[ChildSpec, ...]:
        """The way to the gateway, SuperNode and the worker: in the private network."""
        settings, ports = self._settings, self._settings.ports
        accounts, network, supervisor = self._accounts, self._network, self._supervisor
        return (
            ChildSpec(
                name="bridge",
                command=bridge_command(
                    sys.executable, listen=ports.gateway, to=settings.fleet_socket
                ),
                log_file=self._log_file("bridge"),
                ready=lambda: supervisor.listens("bridge", ports.gateway),
                user=accounts.gateway,
                home=settings.fleet_socket.parent if accounts.separate else None,
                network=network,
                beats=AWAKE,
            ),
            ChildSpec(
                name="supernode",
                command=supernode_command(settings, node_key=node_key),
                log_file=self._log_file("supernode"),
                environment=supernode_environment(settings),
                ready=lambda: supervisor.listens("supernode", ports.runtime),
                user=accounts.node,
                home=node_home(settings) if accounts.separate else None,
                network=network,
                beats={**AWAKE, "pulls": changed(settings.pulse_file)},
                # Flower ends it where only time helps: its old session must run out first.
                gives_up=False,
            ),
            ChildSpec(
                name="worker",
                command=self._program("worker"),
                log_file=self._log_file("worker"),
                environment=worker_environment(settings),
                user=accounts.worker,
                home=worker_home(settings) if accounts.separate else None,
                network=network,
                beats=AWAKE,
            ),
        )

    def _program(self, command: str) -> tuple[str, ...]:
        config = str(self._settings.source)
        return (sys.executable, "-m", "fedward_client", command, "--config", config)

    def _log_file(self, name: str) -> Path:
        return self._settings.folders.state / "logs" / f"{name}.log"
