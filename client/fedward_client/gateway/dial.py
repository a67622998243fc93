"""What grpc is told about the way to the coordinator: directly, or through the proxy of site.toml.

grpc would take a proxy from the environment (`https_proxy`, ...) by itself; that is always off
here. The named proxy is dialled as the channel's target with grpc's CONNECT handshake, because
grpc's own proxy option can be overruled by `no_proxy` and takes no password with an @ in it.
"""

import re
from typing import Final

from fedward_client.proxy import Proxy, ProxyRefused, is_loopback
from fedward_common.channel.credentials import Option, channel_options
from fedward_common.errors import ChannelError

PROXY_STATUS: Final = re.compile(r"HTTP proxy returned response code (\d{3})")


def dial(
    coordinator: str, *, server_name: str | None, proxy: Proxy | None
) -> tuple[str, list[Option]]:
    """The target and the options for a channel to `coordinator` (host:port).

    The name in the peer's certificate must be `server_name`, or else the host, in either case: who
    dials a proxy still talks TLS with the coordinator.
    """
    host = coordinator.rpartition(":")[0]
    options = dict(channel_options(host, server_name))
    options["grpc.enable_http_proxy"] = 0
    if proxy is None or is_loopback(host):
        return coordinator, list(options.items())
    name = server_name or host.strip("[]")
    options["grpc.ssl_target_name_override"] = name
    # grpc takes a call's host from the target, which is the proxy, and compares it with the name.
    options["grpc.default_authority"] = name
    options["grpc.http_connect_server"] = coordinator
    if proxy.authorization is not None:
        options["grpc.http_connect_headers"] = f"Proxy-Authorization:{proxy.authorization}"
    return proxy.address, list(options.items())


def explained(details: str, *, coordinator: str, proxy: Proxy | None) -> ChannelError | None:
    """The one clear error for what grpc says of a connection that was not made, where it says it.

    `details` is grpc's text and is not repeated: a peer may have put words into it.
    """
    if proxy is not None:
        if match := PROXY_STATUS.search(details):
            return ProxyRefused(proxy, int(match[1]))
        if "Failed to connect to remote host" in details:
            return ChannelError(
                f"proxy {proxy.address}: expected it to answer, found nobody there. Correct "
                "coordinator.proxy, or ask the network team"
            )
    for sign, found in TLS_SIGNS.items():
        if sign in details:
            return ChannelError(f"coordinator {coordinator}: {found}")
    return None


TLS_SIGNS: Final = {
    "certificate has expired": (
        "expected a certificate that is valid now, found one that has ended. Check this machine's "
        "clock; if it is right, the operator must renew the certificate"
    ),
    "certificate is not yet valid": (
        "expected a certificate that is valid now, found one that is not valid yet. Check this "
        "machine's clock; if it is right, ask the operator"
    ),
    "CERTIFICATE_VERIFY_FAILED": (
        "expected a certificate under the pinned root, found one of somebody else. Run "
        "`fedward-client doctor`: it names who is in between. Never add that root to the trust"
    ),
    "Hostname Verification Check failed": (
        "expected a certificate for this name, found one of the federation for another. Set "
        "coordinator.server_name to the name in it, or correct the address"
    ),
}
