"""TLS 1.3 and nothing below it, before grpc is there and proven after (rules 17).

grpcio has no setting for a minimum version. Its cipher list names TLS 1.2 suites only, so a list
with one suite that no peer can use leaves 1.3. grpc reads the list when it is first imported, so
this module must not import it; `credentials` does.
"""

import os
import socket
import ssl
import sys
from typing import Final

from fedward_common.errors import StartError

CIPHER_VARIABLE: Final = "GRPC_SSL_CIPHER_SUITES"
TLS13_ONLY: Final = "ECDHE-PSK-AES128-CBC-SHA"
TLS13_ENVIRONMENT: Final = {CIPHER_VARIABLE: TLS13_ONLY}
"""What a parent may add to the environment of a process that will use the channel."""

SELF_TEST_SECONDS: Final = 5.0


def require_tls13() -> None:
    """Makes grpc, imported after this call, speak TLS 1.3 only. The first act of edge and gateway.

    Raises:
        StartError: grpc was imported before, without the setting: it would accept TLS 1.2.
    """
    if os.environ.get(CIPHER_VARIABLE) == TLS13_ONLY:
        return
    if "grpc" in sys.modules:
        raise StartError(
            f"channel: expected {CIPHER_VARIABLE} before grpc is imported, found grpc imported "
            "without it. Import the edge or the gateway first, or set the variable for the process"
        )
    os.environ.update(TLS13_ENVIRONMENT)
    # These could silence the lines from which the edge learns of refused handshakes.
    os.environ.pop("GRPC_VERBOSITY", None)
    os.environ.pop("GRPC_TRACE", None)


def prove_server(host: str, port: int) -> None:
    """Returns when the listener refuses TLS 1.2 and accepts TLS 1.3. The edge's start-up self-test.

    The listener's certificate is not checked: what is tested is its lower bound.

    Raises:
        StartError: it accepts TLS 1.2, or answers neither.
    """
    if (found := _offered(host, port, ssl.TLSVersion.TLSv1_2)) is not None:
        raise StartError(
            f"edge: expected TLS 1.2 to be refused, found {found}. Is grpcio the pinned version?"
        )
    if _offered(host, port, ssl.TLSVersion.TLSv1_3) is None:
        raise StartError("edge: expected TLS 1.3 to be accepted, found no answer. See its log")


def _offered(host: str, port: int, version: ssl.TLSVersion) -> str | None:
    """The version agreed on when exactly `version` is offered, or None."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, port), timeout=SELF_TEST_SECONDS) as connection,
            context.wrap_socket(connection) as channel,
        ):
            return channel.version()
    except OSError:  # ssl.SSLError included
        return None
