"""The list of what is looked at, from the settings file to the last log."""

import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

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
    memory,
    ok,
    private_folder,
    program,
    read_meminfo,
    socket_paths,
    telemetry,
    versions,
    warn,
)
from fedward_common.errors import ConfigError, FedwardError, StartError
from fedward_common.processes import offline_environment
from fedward_server.adapters.certificate_authority import ISSUING, ISSUING_KEY, ROOT, ROOT_KEY
from fedward_server.adapters.model_package import verify_package
from fedward_server.adapters.run_files import LOG, MODEL
from fedward_server.bundle import bundle_folder
from fedward_server.doctor.clock import clock, last_line
from fedward_server.doctor.listeners import enrolment_listener, ports, separation
from fedward_server.doctor.registry import Registry, joins_expected, registry, site_certificates
from fedward_server.models import package_path
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
    now = datetime.now(UTC)
    sites = Registry.read(settings.database)
    return Examination(
        subject=f"coordinator of {settings.federation} ({config})",
        findings=(
            ok("settings", f"{config}: read, every key known"),
            _password("settings.password", config, sites),
            *_trust(settings, now),
            registry("registry", sites),
            site_certificates("sites.expiry", sites, now=now),
            *enrolment_listener(settings, expected=joins_expected(sites, now=now)),
            *ports(settings),
            separation("network", settings.isolation),
            *_machine(settings, offline_environment()),
            clock("clock", now=now, newest=last_line(settings.edge_log)),
            *_logs(settings),
            models("models", settings.state),
            bundle("bundle"),
        ),
    )


def _password(name: str, config: Path, sites: Registry) -> Finding:
    """Whether a password in the database's URL is for Fedward's eyes only."""
    if sites.has_password and config.stat().st_mode & 0o007:
        return warn(
            name,
            f"{config}: holds the database's password and everybody may read it",
            f"Run: chmod o-rwx {config}",
        )
    return ok(name, "none in the settings that others may read")


def _trust(settings: CoordinatorSettings, now: datetime) -> Iterator[Finding]:
    tls, ours = settings.tls, {os.geteuid()}
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


def _machine(settings: CoordinatorSettings, environment: Mapping[str, str]) -> Iterator[Finding]:
    yield private_folder("folder.state", settings.state)
    yield private_folder("folder.run", settings.run)
    yield socket_paths("sockets", (settings.kick_socket, settings.superlink_socket))
    yield disk("disk", settings.state, fails_below=GIB // 4, warns_below=5 * GIB)
    yield memory("memory", read_meminfo(), fails_below=GIB, warns_below=4 * GIB)
    yield telemetry("telemetry", environment)
    yield program("flower-superlink", environment)
    yield program("flower-superexec", environment)
    yield from versions("fedward-server", "fedward-common")


def _logs(settings: CoordinatorSettings) -> Iterator[Finding]:
    """The logs of the edge, of the operators' desk, of the enrolment listener and of each run."""
    yield event_log("log.edge", settings.edge_log)
    yield event_log("log.desk", settings.desk_log)
    yield event_log("log.enrolment", settings.enrolment_log)
    for path in sorted((settings.state / "runs").glob(f"*/{LOG}")):
        yield event_log(f"log.{path.parent.name}", path)


def models(name: str, state: Path) -> Finding:
    """Whether every model package verifies; how many models wait for their lead's signature."""
    packages = sorted((state / "models").glob("*"))
    for package in packages:
        try:
            verify_package(package)
        except FedwardError as error:
            return fail(
                name,
                f"{package}: {error}",
                "No site is offered it. Keep it, and have the study's lead sign the run's model "
                "again: fedward-server study sign-model",
            )
    unsigned = [
        path.parent.name
        for path in sorted((state / "runs").glob(f"*/{MODEL}"))
        if not package_path(state, path.parent.name).exists()
    ]
    waiting = f", {len(unsigned)} wait for their lead's signature" if unsigned else ""
    return ok(name, f"{len(packages)} signed and whole{waiting}")


def bundle(name: str) -> Finding:
    """Whether the installation has the code-free Flower bundle."""
    try:
        bundle_folder()
    except StartError as error:
        return fail(name, str(error), "Install fedward-server again")
    return ok(name, "installed")
