"""The entry point of the edge's process."""

import asyncio

from fedward_common.channel.tls import require_tls13
from fedward_server.settings import CoordinatorSettings


def run_edge(settings: CoordinatorSettings) -> None:
    """Runs the edge until SIGTERM or SIGINT, then lets calls end within a second and returns.

    Raises:
        ConfigError: a certificate or key file is missing or open to others.
        StartError: grpc was imported too early, the port is in use, or the self-test failed.
    """
    require_tls13()
    # rules 17: grpc reads its cipher list when it is imported, so the line above comes first.
    from fedward_server.edge.server import serve_edge  # noqa: PLC0415

    asyncio.run(serve_edge(settings))
