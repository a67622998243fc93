"""grpc's credentials and settings for both ends of the channel. Import it after `require_tls13`."""

import socket
import ssl
import tempfile
import threading
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import grpc

from fedward_common.channel.routes import MAX_MESSAGE_BYTES
from fedward_common.channel.tls import SELF_TEST_SECONDS
from fedward_common.errors import ConfigError, StartError
from fedward_common.trust.certificates import Identity, expires_at, make_loopback_identity

Option = tuple[str, int | str]

KEEPALIVE_MS: Final = 10_000
KEEPALIVE_TIMEOUT_MS: Final = 5_000
"""A silent peer is given up after 5 s, by both sides (rules 19)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TlsFiles:
    """Where a process's certificate chain, its key and the federation's root lie."""

    certificate: Path
    key: Path
    ca: Path

    def read(self) -> tuple[Identity, bytes]:
        """The identity and the root in PEM.

        Raises:
            ConfigError: a file is missing or not readable, or the key is open to others.
        """
        try:
            if self.key.stat().st_mode & 0o077:
                raise ConfigError(
                    f"{self.key}: expected a private key of mode 0600, found it open to others. "
                    f"Run: chmod 600 {self.key}"
                )
            identity = Identity(
                certificate_pem=self.certificate.read_bytes(), key_pem=self.key.read_bytes()
            )
            root = self.ca.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{error.filename}: expected a readable file, found {error.strerror}"
            ) from error
        expires_at(identity.certificate_pem)
        expires_at(root)
        return identity, root


def server_credentials(identity: Identity, root_pem: bytes) -> grpc.ServerCredentials:
    """Credentials of the edge: nobody without a certificate of the federation gets a connection."""
    return grpc.ssl_server_credentials(
        [(identity.key_pem, identity.certificate_pem)],
        root_certificates=root_pem,
        require_client_auth=True,
    )


def channel_credentials(identity: Identity, root_pem: bytes) -> grpc.ChannelCredentials:
    """Credentials of a gateway: trusts the federation's root only, never the system's store."""
    return grpc.ssl_channel_credentials(
        root_certificates=root_pem,
        private_key=identity.key_pem,
        certificate_chain=identity.certificate_pem,
    )


def server_options() -> list[Option]:
    """Sizes and keepalive of the edge; the port is never shared with another process."""
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", 16384),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
        ("grpc.server_handshake_timeout_ms", 10_000),
    ]


def channel_options(host: str, server_name: str | None) -> list[Option]:
    """Sizes, keepalive and patience of a gateway; no proxy stands before a loopback coordinator."""
    options: list[Option] = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 250),
        ("grpc.min_reconnect_backoff_ms", 250),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.enable_retries", 0),
    ]
    if _is_loopback(host):
        options.append(("grpc.enable_http_proxy", 0))
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    return options


def prove_client() -> None:
    """Returns when this process's grpc refuses a server that speaks TLS 1.2 at most.

    The gateway's start-up self-test: a listener of this process offers TLS 1.2 only, with a
    certificate that the client trusts, so that nothing but the version can be the reason.

    Raises:
        StartError: the handshake succeeded, or never came.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket() as listener:
        files = make_loopback_identity(Path(folder))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(files.certificate, files.key)
        context.set_alpn_protocols(["h2"])
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(SELF_TEST_SECONDS)
        outcome: list[str] = []
        thread = threading.Thread(target=_handshake, args=(listener, context, outcome))
        thread.start()
        target = f"127.0.0.1:{listener.getsockname()[1]}"
        credentials = grpc.ssl_channel_credentials(root_certificates=files.ca.read_bytes())
        with grpc.secure_channel(
            target, credentials, channel_options("127.0.0.1", None)
        ) as channel:
            channel.subscribe(lambda _state: None, try_to_connect=True)
            thread.join()
    if outcome != ["refused"]:
        found = outcome[0] if outcome else "no connection"
        raise StartError(
            f"gateway: expected TLS 1.2 to be refused, found {found}. Is grpcio the pinned one?"
        )


def _handshake(listener: socket.socket, context: ssl.SSLContext, outcome: list[str]) -> None:
    try:
        connection, _ = listener.accept()
    except OSError:
        return
    connection.settimeout(SELF_TEST_SECONDS)
    try:
        with context.wrap_socket(connection, server_side=True) as channel:
            outcome.append(str(channel.version()))
    except OSError:  # ssl.SSLError included
        outcome.append("refused")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
