"""The way to the coordinator, who is on it, and the site's own ports."""

import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Final

from fedward_client.doctor.keys import owners_of
from fedward_client.peer import (
    HAS_EXPIRED,
    NAME_MISMATCH,
    NOT_YET_VALID,
    Target,
    look,
    tls_channel,
)
from fedward_client.proxy import Proxy, ProxyRefused, is_loopback
from fedward_client.settings import CoordinatorAddress, SiteSettings
from fedward_common import doctor as shared
from fedward_common.doctor import Finding, IdentityFiles, fail, ok, warn
from fedward_common.errors import ConfigError, StartError
from fedward_common.namespace import open_network
from fedward_common.processes import socket_open

PROXY_VARIABLES: Final = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost"})


def network(
    settings: SiteSettings, files: IdentityFiles, environment: Mapping[str, str]
) -> Iterator[Finding]:
    """Proxy, coordinator, the separation of Flower's interfaces, ports where they are not."""
    coordinator = settings.coordinator
    target = Target.of(coordinator.address, coordinator.server_name)
    proxy, finding = named_proxy("proxy", coordinator, target)
    found = (
        None if finding.level == "fail" else reachable("coordinator", target, files, proxy=proxy)
    )
    reached = found is not None and found.level == "ok"
    yield proxies(finding, target, environment, reached=reached) if proxy is None else finding
    if found is not None:
        yield found
    yield from _separation(settings)


def named_proxy(
    name: str, coordinator: CoordinatorAddress, target: Target
) -> tuple[Proxy | None, Finding]:
    """The proxy that site.toml names, and whether its credentials are in order."""
    try:
        proxy = Proxy.of(coordinator.proxy, coordinator.proxy_auth_file)
    except ConfigError as error:
        return None, fail(name, str(error), "Correct coordinator.proxy and proxy_auth_file")
    if proxy is None:
        return None, ok(name, "none, and no variable names one")
    if is_loopback(target.host):
        return None, ok(name, f"{proxy.address}: not used, {target} is this machine")
    return proxy, ok(name, f"{proxy.address} stands before {target}, as coordinator.proxy says")


def proxies(
    finding: Finding, target: Target, environment: Mapping[str, str], *, reached: bool
) -> Finding:
    """`finding`, or what variables for a proxy mean for Fedward, which takes none from them.

    `environment` is what child processes get. Flower's own libraries do read it, for loopback:
    NO_PROXY must name that, in both spellings.
    """
    for key in ("NO_PROXY", "no_proxy"):
        if not set(environment.get(key, "").split(",")) >= LOOPBACK:
            return fail(
                finding.name,
                f"{key} of child processes does not name loopback",
                f"Set {key}={','.join(sorted(LOOPBACK))}",
            )
    names = sorted(
        key for key, value in environment.items() if key.lower() in PROXY_VARIABLES and value
    )
    if finding.level != "ok" or not names:
        return finding
    found = f"{', '.join(names)}: not used for {target}, coordinator.proxy names none"
    if reached:
        return ok(finding.name, found)
    return warn(
        finding.name,
        found,
        "If this network asks for a proxy, write it into coordinator.proxy, and its user:password "
        "into the file of coordinator.proxy_auth_file",
    )


def reachable(name: str, target: Target, files: IdentityFiles, *, proxy: Proxy | None) -> Finding:
    """Whether the edge answers over TLS 1.3 with a certificate of the pinned root and takes ours.

    A certificate of somebody else is an intercepting proxy or another machine: its issuer is named.
    """
    if not 1 <= target.port <= 65535:
        return fail(name, f"{target}: no such port", "Correct coordinator.address")
    context = shared.tls13_client()
    context.check_hostname = True
    try:
        context.load_verify_locations(files.root)
        context.load_cert_chain(files.certificate, files.key, password=files.password)
    except (OSError, ValueError):
        return fail(name, "not tried: the certificates are not in order", "Mend them first")
    allow = f"Ask the network team to pass {target} through unopened; ask the operator if it runs"
    try:
        with tls_channel(target, proxy, context) as channel:
            return _answer(name, target, channel)
    except ProxyRefused as error:
        return fail(name, f"{target}: {error}", "Correct the proxy's settings, or ask for the way")
    except ssl.SSLCertVerificationError as error:
        return fail(name, *_foreign(target, error, proxy=proxy))
    except ssl.SSLError as error:
        issuer = look(target, proxy).issuer
        found = f"{shared.ssl_reason(error)} instead of TLS 1.3, issuer {issuer}"
        return fail(name, f"{target}: {found}", allow)
    except (socket.gaierror, ValueError):
        return fail(name, f"{target}: the name is not known here", "Check the address and DNS")
    except OSError as error:
        return fail(name, f"{target}: {error.strerror or error}", allow)


def _answer(name: str, target: Target, channel: ssl.SSLSocket) -> Finding:
    # TLS 1.3: whether the peer takes our certificate is only known from what comes next.
    try:
        data, reason = channel.recv(1), "connection closed"
    except TimeoutError:
        fix = "Check that the address is the edge of the federation"
        return warn(name, f"{target}: right certificate, but it says nothing", fix)
    except OSError as error:  # ssl.SSLError included
        data, reason = b"", shared.ssl_reason(error)
    if not data:
        fix = "Ask the operator: its log says why. An expired certificate needs a new one"
        return fail(name, f"{target}: it refuses this site's certificate ({reason})", fix)
    return ok(name, f"{target}: {channel.version()}, pinned root, takes this site's certificate")


def _foreign(
    target: Target, error: ssl.SSLCertVerificationError, *, proxy: Proxy | None
) -> tuple[str, str]:
    """What was found and how to fix it, when the coordinator shows a certificate we do not take."""
    if error.verify_code in NAME_MISMATCH:
        return (
            f"{target}: a certificate of the federation, but not for {target.server_name}",
            "Set coordinator.server_name to the name in it, or correct the address",
        )
    if error.verify_code in (NOT_YET_VALID, HAS_EXPIRED):
        return (
            f"{target}: {error.verify_message}",
            "Check this machine's clock; if it is right, the operator must renew the certificate",
        )
    return (
        f"{target}: a certificate issued by {look(target, proxy).issuer}, not under the pinned "
        "root",
        "If that is your network's TLS inspection, ask for a no-decrypt rule for this address; "
        "otherwise the address is wrong, or somebody is in between. Never add it to the trust",
    )


def _separation(settings: SiteSettings) -> Iterator[Finding]:
    """Whether Flower's interfaces are out of reach of the host's other users (rules 15)."""
    try:
        private, _ = open_network(settings.isolation)
    except StartError as error:
        yield fail("network", str(error), "Allow user namespaces, or start the site as root")
        return
    if private is not None:
        private.close()
        yield ok("network", "Flower's processes get a private network: loopback only")
        return
    yield from _ports(settings)
    yield shared.network_separation(
        "network",
        interfaces=shared.read_interfaces(),
        strangers=shared.read_strangers(ours={os.geteuid()} | owners_of(settings)),
    )


def _ports(settings: SiteSettings) -> Iterator[Finding]:
    """Without a private network, the ports are those of the host's loopback."""
    root, ports = settings.folders.state / "loopback" / "ca.pem", settings.ports
    yield shared.loopback_port(
        "port.gateway",
        ports.gateway,
        key="ports.gateway",
        ours=lambda: shared.shows_certificate_of(ports.gateway, root),
    )
    # SuperNode's port shows nothing of its own: it counts as ours while this site's guard answers.
    yield shared.loopback_port(
        "port.runtime",
        ports.runtime,
        key="ports.runtime",
        ours=lambda: socket_open(settings.gateway_socket),
    )
