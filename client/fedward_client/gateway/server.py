"""The gateway's process, assembled: channel, guard, HTTPS on a Unix socket, self-test."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Final

import structlog
import uvicorn

from fedward_client.adapters.flower_fleet import FlowerFleetMessages
from fedward_client.adapters.flower_records import object_ids
from fedward_client.adapters.key_files import read_passphrase
from fedward_client.adapters.tls_pair import SiteIdentity, TlsPair
from fedward_client.gateway.blobs import BlobDesk, Room
from fedward_client.gateway.caller import SuperNode
from fedward_client.gateway.channel import EdgeChannel
from fedward_client.gateway.greeting import own_versions
from fedward_client.gateway.outbox_file import OutboxFile
from fedward_client.gateway.passage import Gateway
from fedward_client.gateway.phases import PhaseAccess, PhaseDesk
from fedward_client.gateway.process import GatewayConfig
from fedward_client.gateway.pulse import PulseFile
from fedward_client.gateway.spool import Spool
from fedward_client.gateway.upkeep import Upkeep, ended, started
from fedward_client.gateway.web import make_app
from fedward_client.guard.client import GuardClient
from fedward_client.peer import Target, proven_sha256
from fedward_client.proxy import Proxy
from fedward_common.channel.credentials import prove_client
from fedward_common.doctor import IdentityFiles
from fedward_common.trust.certificates import LoopbackIdentity, make_loopback_identity
from fedward_common.unix_sockets import listen_unix
from fedward_common.users import user_id

STOP_SECONDS: Final = 2
KEEP_ALIVE_SECONDS: Final = 60
MAX_CONNECTIONS: Final = 64
"""SuperNode uses a handful. Each may hold 8 MiB before it is known who calls."""

_log = structlog.get_logger(__name__)


async def serve_gateway(config: GatewayConfig) -> None:
    """Serves until SIGTERM or SIGINT."""
    await asyncio.to_thread(prove_client)
    async with AsyncExitStack() as stack:
        passphrase = read_passphrase(config.passphrase_file)
        pair = TlsPair(certificate=config.certificate, key=config.key, passphrase=passphrase)
        pair.settle()
        proxy = Proxy.of(config.proxy, config.proxy_auth_file)
        channel = EdgeChannel(
            coordinator=config.coordinator,
            server_name=config.server_name,
            tls=SiteIdentity(pair=pair, ca=config.ca),
            proxy=proxy,
        )
        stack.push_async_callback(channel.close)
        guard = GuardClient(config.guard_socket)
        pulse = PulseFile(config.pulse_file)
        gateway = Gateway(
            channel=channel,
            guard=guard,
            fleet=FlowerFleetMessages(),
            caller=SuperNode(public_key=config.node_public_key),
            pulse=pulse,
            spool=_spool(config),
            kept=None if config.spool is None else OutboxFile(config.spool),
        )
        blobs = None
        if config.blob_folder is not None:
            blobs = BlobDesk(
                streams=channel,
                guard=guard,
                ask=gateway.ask,
                room=Room(
                    folder=config.blob_folder,
                    max_bytes=config.max_blob_bytes,
                    quota_bytes=2 * config.max_blob_bytes,
                ),
            )
            stack.push_async_callback(blobs.stop)
            gateway.carries_blobs(blobs)
        if (access := _phase_access(config)) is not None:
            desk = PhaseDesk(
                access=access,
                streams=channel,
                guard=guard,
                ask=gateway.ask,
                object_ids=object_ids,
                blobs=blobs,
            )
            await desk.start()
            stack.push_async_callback(desk.stop)
        # Before the socket, which says that the gateway is there: SuperNode reads its root then.
        server = _server(gateway, make_loopback_identity(config.loopback))
        listener = listen_unix(config.socket)
        pulse.beat()  # the socket's folder is there now
        stack.callback(config.socket.unlink, missing_ok=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            # uvicorn listens for the signals itself and raises them again when it has stopped:
            # with a handler of ours in place that second time ends nothing.
            asyncio.get_running_loop().add_signal_handler(number, lambda: None)
        upkeep = Upkeep(
            channel=channel,
            journal=guard,
            pair=pair,
            ca=config.ca,
            versions=own_versions(),
            clock=lambda: datetime.now(UTC),
            edge_certificate=_edge_certificate(config, proxy, passphrase),
        )
        stack.push_async_callback(ended, started(upkeep))
        stack.push_async_callback(ended, asyncio.create_task(pulse.run()))
        _log.info("gateway.started")
        await server.serve(sockets=[listener])
        _log.info("gateway.stopped")


def _phase_access(config: GatewayConfig) -> PhaseAccess | None:
    if config.phase_socket is None:
        return None
    user = config.worker_user
    uid = os.geteuid() if user is None else user_id(user, key="[guard] worker_user")
    return PhaseAccess(path=config.phase_socket, worker_uid=uid, group=config.group)


def _spool(config: GatewayConfig) -> Spool | None:
    """Where replies wait; nowhere, which the log then says, if there is no room for a folder."""
    if config.spool is None:
        return None
    try:
        return Spool(config.spool)
    except OSError as error:
        _log.warning("gateway.no-spool", error=type(error).__name__)
        return None


def _server(gateway: Gateway, loopback: LoopbackIdentity) -> uvicorn.Server:
    return uvicorn.Server(
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


def _edge_certificate(
    config: GatewayConfig, proxy: Proxy | None, passphrase: bytes | None
) -> Callable[[], str]:
    """Asks the edge for the digest of the certificate with which it proves who it is."""
    files = IdentityFiles(
        certificate=config.certificate, key=config.key, root=config.ca, passphrase=passphrase
    )
    target = Target.of(config.coordinator, config.server_name)
    return partial(proven_sha256, target, proxy, files)
