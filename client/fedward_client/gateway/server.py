"""The gateway's process, assembled: channel, guard, HTTPS on loopback, self-test."""

import asyncio
import signal
import socket
from contextlib import AsyncExitStack
from typing import Final

import structlog
import uvicorn

from fedward_client.adapters.flower_fleet import FlowerFleetMessages
from fedward_client.gateway.caller import SuperNode
from fedward_client.gateway.channel import EdgeChannel
from fedward_client.gateway.passage import Gateway
from fedward_client.gateway.process import GatewayConfig
from fedward_client.gateway.web import make_app
from fedward_client.guard.client import GuardClient
from fedward_common.channel.credentials import TlsFiles, prove_client
from fedward_common.errors import StartError
from fedward_common.trust.certificates import make_loopback_identity

STOP_SECONDS: Final = 2
KEEP_ALIVE_SECONDS: Final = 60
MAX_CONNECTIONS: Final = 64
"""SuperNode uses a handful. Each may hold 8 MiB before it is known who calls."""
LOOPBACK: Final = "127.0.0.1"

_log = structlog.get_logger(__name__)


async def serve_gateway(config: GatewayConfig) -> None:
    """Serves until SIGTERM or SIGINT."""
    await asyncio.to_thread(prove_client)
    async with AsyncExitStack() as stack:
        channel = EdgeChannel(
            coordinator=config.coordinator,
            server_name=config.server_name,
            tls=TlsFiles(certificate=config.certificate, key=config.key, ca=config.ca),
        )
        stack.push_async_callback(channel.close)
        gateway = Gateway(
            channel=channel,
            guard=GuardClient(config.guard_socket),
            fleet=FlowerFleetMessages(),
            caller=SuperNode(public_key=config.node_public_key),
        )
        loopback = make_loopback_identity(config.loopback)
        listener = _bind(config.port)
        server = uvicorn.Server(
            uvicorn.Config(
                make_app(gateway),
                ssl_certfile=str(loopback.certificate),
                ssl_keyfile=str(loopback.key),
                http="h11",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                limit_concurrency=MAX_CONNECTIONS,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=STOP_SECONDS,
            )
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            # uvicorn listens for the signals itself and raises them again when it has stopped:
            # with a handler of ours in place that second time ends nothing.
            asyncio.get_running_loop().add_signal_handler(number, lambda: None)
        _log.info("gateway.started", port=config.port)
        await server.serve(sockets=[listener])
        _log.info("gateway.stopped")


def _bind(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
    except OSError as error:
        listener.close()
        raise StartError(
            f"gateway: expected port {port} of {LOOPBACK} (ports.gateway) to be free, found it in "
            "use. Stop what listens there or set another port"
        ) from error
    return listener
