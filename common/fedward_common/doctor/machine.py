"""Checks of the machine: ports, versions, what calls home, who else is on it."""

import importlib.metadata
import pwd
import re
import shutil
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Final

from fedward_common.doctor.findings import Finding, fail, ok, warn
from fedward_common.errors import StartError
from fedward_common.processes import require_free_port

SILENCED: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
FRAMEWORKS: Final = ("flwr", "grpcio", "torch", "opacus")
PEOPLE: Final = range(1000, 65534)
"""User ids of people, as Debian and Red Hat give them out."""


def loopback_port(
    name: str, port: int, *, key: str, ours: Callable[[], bool], host: str = "127.0.0.1"
) -> Finding:
    """Whether the port is free, or in use by Fedward itself (`ours` is asked then)."""
    try:
        require_free_port(port, name=name, key=key, host=host)
    except StartError:
        if ours():
            return ok(name, f"port {port}: in use by Fedward")
        return fail(
            name,
            f"port {port} of {host}: in use by another program",
            f"Stop that program (ss -ltnp 'sport = :{port}' names it) or set another {key}",
        )
    return ok(name, f"port {port}: free")


def telemetry(name: str, environment: Mapping[str, str]) -> Finding:
    """Whether `environment`, as a child gets it, switches off what would call home."""
    wrong = sorted(key for key, value in SILENCED.items() if environment.get(key) != value)
    if wrong:
        fix = " ".join(f"{key}={SILENCED[key]}" for key in wrong)
        return fail(name, f"not off for child processes: {', '.join(wrong)}", f"Set {fix}")
    return ok(name, "telemetry, update checks and installs are off in every child")


def program(name: str, environment: Mapping[str, str]) -> Finding:
    """Whether the program `name` is where child processes look for it."""
    if shutil.which(name, path=environment.get("PATH", "")) is None:
        return fail(f"program.{name}", "not found", "Install Fedward's dependencies again")
    return ok(f"program.{name}", "found")


def versions(
    *distributions: str,
    installed: Callable[[str], str] = importlib.metadata.version,
    names: Sequence[str] = FRAMEWORKS,
) -> list[Finding]:
    """Whether the frameworks are of the versions that our installed distributions ask for."""
    asked: dict[str, str] = {}
    for distribution in distributions:
        for line in _requirements(distribution):
            match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*([^;]*)", line)
            if match and "extra ==" not in line:
                asked.setdefault(match[1].lower(), match[2].strip())
    return [_version(name, asked.get(name), installed) for name in names]


def _requirements(distribution: str) -> list[str]:
    try:
        return importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _version(name: str, asked: str | None, installed: Callable[[str], str]) -> Finding:
    label = f"version.{name}"
    if asked is None:
        return warn(label, "no distribution of Fedward asks for it", "Install Fedward again")
    repair = f'Run: pip install "{name}{asked}"'
    try:
        found = installed(name)
    except importlib.metadata.PackageNotFoundError:
        return fail(label, f"not installed; {asked} is needed", repair)
    if not satisfies(found, asked):
        return fail(label, f"{found}; {asked} is needed", repair)
    return ok(label, f"{found} ({asked})")


def satisfies(version: str, specifier: str) -> bool:
    """Whether the release number of `version` fits clauses like ">=2.9,<3"; unknown ones do not."""
    return all(_fits(_release(version), clause.strip()) for clause in specifier.split(","))


def _fits(found: tuple[int, ...], clause: str) -> bool:
    match = re.fullmatch(r"(==|>=|<=|<|>|!=)\s*(\d+(?:\.\d+)*)", clause)
    if match is None:
        return False
    pairs = list(zip_longest(found, _release(match[2]), fillvalue=0))
    have, want = [a for a, _ in pairs], [b for _, b in pairs]
    return {
        "==": have == want,
        "!=": have != want,
        ">=": have >= want,
        "<=": have <= want,
        ">": have > want,
        "<": have < want,
    }[match[1]]


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def network_separation(
    name: str, *, interfaces: Collection[str], strangers: Collection[int]
) -> Finding:
    """Whether Flower's local interfaces are out of reach of the host's other users (rules 15)."""
    if set(interfaces) <= {"lo"}:
        return ok(name, "a private network namespace: loopback only")
    if not strangers:
        return ok(name, "no private network namespace, but nobody else has an account here")
    return warn(
        name,
        f"no private network namespace, and other users on this host ({len(strangers)}): "
        "Flower's loopback ports are open to them",
        "Give Fedward a host, virtual machine or container of its own",
    )


def read_interfaces() -> frozenset[str]:
    """The network interfaces of this process's namespace."""
    return frozenset(interface for _, interface in socket.if_nameindex())


def read_strangers(*, ours: Collection[int]) -> frozenset[int]:
    """The user ids of people with a login or a process on this host, without `ours`."""
    shells = ("nologin", "false", "sync")
    people = {one.pw_uid for one in pwd.getpwall() if not one.pw_shell.endswith(shells)}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            people.add(process.stat().st_uid)
        except OSError:  # it has ended
            continue
    return frozenset(uid for uid in people if uid in PEOPLE) - frozenset(ours)
