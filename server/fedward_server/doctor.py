"""`fedward-server doctor`: whether the coordinator's side is in order before (and while) it runs.

Nothing is changed, and no key or database URL is in what it says.
"""

import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from fedward_common.doctor import (
    Examination,
    Finding,
    IdentityFiles,
    certificate_chain,
    certificate_expiry,
    disk,
    event_log,
    fail,
    key_file,
    loopback_port,
    memory,
    network_separation,
    ok,
    private_folder,
    program,
    read_interfaces,
    read_meminfo,
    read_strangers,
    shows_certificate_of,
    socket_paths,
    telemetry,
    versions,
    warn,
)
from fedward_common.errors import ConfigError, StartError
from fedward_common.processes import offline_environment, socket_open
from fedward_server.adapters.certificate_authority import ISSUING, ISSUING_KEY, ROOT, ROOT_KEY
from fedward_server.adapters.registry import SqlRegistry
from fedward_server.adapters.run_files import LOG
from fedward_server.bundle import bundle_folder
from fedward_server.settings import CoordinatorSettings, load_coordinator_settings

GIB: Final = 1 << 30


def examine_coordinator(config: Path) -> Examination:
    """Everything that `doctor` finds about the coordinator of `config`.

    A settings file that cannot be read is a finding like any other.
    """
    try:
        settings = load_coordinator_settings(config)
    except ConfigError as error:
        found = fail("settings", str(error), f"Correct {config}")
        return Examination(subject=str(config), findings=(found,))
    return Examination(
        subject=f"coordinator of {settings.federation} ({config})",
        findings=(
            ok("settings", f"{config}: read, every key known"),
            *_trust(settings),
            *_network(settings),
            *_machine(settings, offline_environment()),
            *_logs(settings),
            registry("registry", settings.database),
            bundle("bundle"),
        ),
    )


def _trust(settings: CoordinatorSettings) -> Iterator[Finding]:
    tls, ours, now = settings.tls, {os.geteuid()}, datetime.now(UTC)
    files = IdentityFiles(certificate=tls.certificate, key=tls.key, root=tls.ca)
    yield key_file("key.tls", tls.key, owners=ours)
    expiry = certificate_expiry("certificate.expiry", files, now=now)
    yield expiry
    yield certificate_chain(
        "certificate.chain", files, role="server", expired=expiry.level == "fail"
    )
    folder = settings.authority_folder
    if not (folder / ROOT).exists():
        return
    yield key_file("authority.issuing-key", folder / ISSUING_KEY, owners=ours)
    authority = IdentityFiles(
        certificate=folder / ISSUING, key=folder / ISSUING_KEY, root=folder / ROOT
    )
    yield certificate_expiry("authority.expiry", authority, now=now)
    yield root_key("authority.root-key", folder / ROOT_KEY)


def root_key(name: str, path: Path) -> Finding:
    """Whether the root's key is off this machine, where it is needed once in two years."""
    if not path.exists():
        return ok(name, "not on this machine")
    return warn(
        name,
        f"{path}: the root's key is on the machine that faces the sites",
        "Move it to a medium in a safe; it is needed only to renew the issuing authority",
    )


def _network(settings: CoordinatorSettings) -> Iterator[Finding]:
    yield loopback_port(
        "port.edge",
        settings.listen_port,
        key="listen",
        host=settings.listen_host,
        # A handshake without a site's certificate would be a refusal in the edge's log.
        ours=lambda: socket_open(settings.kick_socket),
    )
    yield loopback_port(
        "port.superlink",
        settings.superlink_port,
        key="superlink_port",
        ours=lambda: shows_certificate_of(
            settings.superlink_port, settings.state / "loopback" / "ca.pem"
        ),
    )
    yield network_separation(
        "network", interfaces=read_interfaces(), strangers=read_strangers(ours={os.geteuid()})
    )


def _machine(settings: CoordinatorSettings, environment: Mapping[str, str]) -> Iterator[Finding]:
    yield private_folder("folder.state", settings.state)
    yield private_folder("folder.run", settings.run)
    yield socket_paths("sockets", (settings.kick_socket,))
    yield disk("disk", settings.state, fails_below=GIB // 4, warns_below=5 * GIB)
    yield memory("memory", read_meminfo(), fails_below=GIB, warns_below=4 * GIB)
    yield telemetry("telemetry", environment)
    yield program("flower-superlink", environment)
    yield program("flower-superexec", environment)
    yield from versions("fedward-server", "fedward-common")


def _logs(settings: CoordinatorSettings) -> Iterator[Finding]:
    """The edge's log and each run's."""
    yield event_log("log.edge", settings.edge_log)
    for path in sorted((settings.state / "runs").glob(f"*/{LOG}")):
        yield event_log(f"log.{path.parent.name}", path)


def registry(name: str, url: str) -> Finding:
    """Whether the registry of sites can be read; its schema is left as it is."""
    repair = "Restore the registry from the newest copy, or correct database in the settings"
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").exists():
            return ok(name, "none yet: made at the first start")
        sites = SqlRegistry(create_engine(parsed))
        try:
            active = len(sites.active_sites())
        finally:
            sites.close()
    except (SQLAlchemyError, ModuleNotFoundError, ValueError) as error:
        return fail(name, f"cannot be read ({type(error).__name__})", repair)
    if active == 0:
        return warn(name, "no active site", "Register the sites of the federation")
    return ok(name, f"{active} active sites")


def bundle(name: str) -> Finding:
    """Whether the installation has the code-free Flower bundle."""
    try:
        bundle_folder()
    except StartError as error:
        return fail(name, str(error), "Install fedward-server again")
    return ok(name, "installed")
