"""The entry point of the gateway's process and what it is started with."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from fedward_common.channel.tls import require_tls13


@dataclass(frozen=True, kw_only=True, slots=True)
class GatewayConfig:
    """What the gateway needs of site.toml.

    `coordinator` is host:port of the edge; `server_name` the name in its certificate where that is
    not the host. `loopback` is the folder of the identity that SuperNode trusts
    (`make_loopback_identity`), `guard_socket` the guard's gateway socket, `node_public_key` the
    `flwr-public-key` of the one SuperNode that may call.
    """

    coordinator: str
    server_name: str | None
    certificate: Path
    key: Path
    ca: Path
    port: int
    loopback: Path
    guard_socket: Path
    node_public_key: str


def run_gateway(config: GatewayConfig) -> None:
    """Runs the gateway until SIGTERM or SIGINT, then lets calls end within two seconds and returns.

    Raises:
        ConfigError: a certificate or key file is missing or open to others.
        StartError: grpc was imported too early, the port is in use, or the self-test failed.
    """
    require_tls13()
    # rules 17: grpc reads its cipher list when it is imported, so the line above comes first.
    from fedward_client.gateway.server import serve_gateway  # noqa: PLC0415

    asyncio.run(serve_gateway(config))
