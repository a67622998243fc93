"""The entry point of the gateway's process and what it is started with."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedward_client.isolation.accounts import node_public_key
from fedward_client.settings import SiteSettings
from fedward_common.channel.blobs import MAX_BLOB_BYTES
from fedward_common.channel.tls import require_tls13


@dataclass(frozen=True, kw_only=True, slots=True)
class GatewayConfig:
    """What the gateway needs of site.toml.

    `coordinator` is host:port of the edge; `server_name` the name in its certificate where that is
    not the host. `socket` is where it listens for SuperNode, `loopback` the folder of the identity
    that SuperNode trusts (`make_loopback_identity`), `guard_socket` the guard's gateway socket,
    `node_public_key` the `flwr-public-key` of the one SuperNode that may call. `proxy` stands
    before the coordinator, and only where it is named. `phase_socket` is where the worker, the user
    `worker_user`, answers the steps of phases and gets the blobs of its messages; without it there
    are none here. `spool` is where replies wait while the coordinator is away; without it they wait
    at SuperNode. `blob_folder` is where blobs lie that come in, of at most `max_blob_bytes`.
    """

    coordinator: str
    server_name: str | None
    certificate: Path
    key: Path
    ca: Path
    socket: Path
    pulse_file: Path
    loopback: Path
    guard_socket: Path
    node_public_key: str
    passphrase_file: Path | None = None
    proxy: str | None = None
    proxy_auth_file: Path | None = None
    phase_socket: Path | None = None
    worker_user: str | None = None
    group: str | None = None
    spool: Path | None = None
    blob_folder: Path | None = None
    max_blob_bytes: int = MAX_BLOB_BYTES

    @classmethod
    def of(cls, settings: SiteSettings) -> Self:
        """The configuration that site.toml means.

        Raises:
            ConfigError: the node key is not in order.
        """
        keys, coordinator = settings.keys, settings.coordinator
        return cls(
            coordinator=coordinator.address,
            server_name=coordinator.server_name,
            certificate=keys.tls_certificate,
            key=keys.tls_key,
            ca=keys.ca,
            socket=settings.fleet_socket,
            pulse_file=settings.pulse_file,
            loopback=settings.folders.state / "loopback",
            guard_socket=settings.gateway_socket,
            node_public_key=node_public_key(settings),
            passphrase_file=keys.passphrase_file,
            proxy=coordinator.proxy,
            proxy_auth_file=coordinator.proxy_auth_file,
            phase_socket=settings.phase_socket,
            worker_user=settings.guard.worker_user,
            group=settings.guard.group,
            spool=settings.spool,
            blob_folder=settings.blob_folder,
            max_blob_bytes=settings.policy.max_blob_bytes,
        )


def run_gateway(config: GatewayConfig) -> None:
    """Runs the gateway until SIGTERM or SIGINT, then lets calls end within two seconds and returns.

    Raises:
        ConfigError: a certificate or key file is missing or open to others.
        StartError: grpc was imported too early, the socket is in use, or the self-test failed.
    """
    require_tls13()
    # rules 17: grpc reads its cipher list when it is imported, so the line above comes first.
    from fedward_client.gateway.server import serve_gateway  # noqa: PLC0415

    asyncio.run(serve_gateway(config))
