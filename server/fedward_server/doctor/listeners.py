"""What listens, and for whom: the edge, enrolment, SuperLink in its private network."""

import os
from collections.abc import Iterator

from fedward_common.doctor import (
    Finding,
    fail,
    loopback_port,
    network_separation,
    ok,
    read_interfaces,
    read_strangers,
    shows_certificate_of,
    warn,
)
from fedward_common.namespace import IsolationSettings, private_network_refusal
from fedward_common.processes import port_open, socket_open
from fedward_server.serve import ready_file
from fedward_server.settings import CoordinatorSettings, probe_host


def ports(settings: CoordinatorSettings) -> Iterator[Finding]:
    """The edge's port, and SuperLink's where it has no network of its own."""
    yield loopback_port(
        "port.edge",
        settings.listen_port,
        key="listen",
        host=settings.listen_host,
        # A handshake without a site's certificate would be a refusal in the edge's log.
        ours=lambda: socket_open(settings.kick_socket),
    )
    if settings.isolation.network != "none" and private_network_refusal() is None:
        yield ok("port.superlink", f"port {settings.superlink_port} of its own private network")
        return
    yield loopback_port(
        "port.superlink",
        settings.superlink_port,
        key="superlink_port",
        ours=lambda: shows_certificate_of(
            settings.superlink_port, settings.state / "loopback" / "ca.pem"
        ),
    )


def enrolment_listener(settings: CoordinatorSettings, *, expected: bool) -> Iterator[Finding]:
    """Whether hospitals can join now, and whether enough operators are known to let them in."""
    enrolment, operators = settings.enrolment, len(settings.operators)
    if operators < enrolment.operators_needed:
        yield warn(
            "enrolment.operators",
            f"{operators} operators in the settings, {enrolment.operators_needed} are needed",
            "Run `fedward-server operator new NAME --key FILE` on each operator's own machine and "
            "put the lines it prints into the settings",
        )
    else:
        yield ok("enrolment.operators", f"{operators}, {enrolment.operators_needed} are needed")
    yield _listener("enrolment.listener", settings, expected=expected)


def _listener(name: str, settings: CoordinatorSettings, *, expected: bool) -> Finding:
    listen = settings.enrolment.listen
    if listen is None:
        return ok(name, "none: hospitals join by carried files")
    if not settings.enrolment.open:
        return ok(name, "closed by the settings (enrolment.open = false)")
    port = int(listen.rpartition(":")[2])
    answers, running = port_open(port, probe_host(listen)), ready_file(settings).exists()
    if answers and not (running and expected):
        return fail(
            name,
            f"port {port}: in use, and it should be open only while an invite is",
            f"Find out which program listens there (ss -ltnp 'sport = :{port}')",
        )
    if expected and running and not answers:
        return warn(
            name,
            f"port {port}: a hospital is expected and nothing listens",
            f"It opens within seconds of an invite. See {settings.state / 'logs'}/enrolment.log",
        )
    return ok(name, f"port {port}: {'open, a hospital is expected' if answers else 'closed'}")


def separation(name: str, isolation: IsolationSettings) -> Finding:
    """Whether Flower's local interfaces are out of reach of the host's other users (rules 15)."""
    refusal = None if isolation.network == "none" else private_network_refusal()
    if isolation.network != "none" and refusal is None:
        return ok(name, "SuperLink and ServerApp get a private network namespace")
    if isolation.network == "required":
        return fail(
            name,
            f"a private network is required and not to be had: {refusal}",
            "Allow user namespaces, start as root, or choose another network in [isolation]",
        )
    return network_separation(
        name, interfaces=read_interfaces(), strangers=read_strangers(ours={os.geteuid()})
    )
