"""`doctor`: findings with how to fix them, and the checks that coordinator and hospital share.

A check looks at the real thing, changes nothing and returns findings; it raises for nothing that it
examines. `found` and `fix` name settings and paths, never what is inside a file, a key, a patient's
value or the text of an environment variable (a proxy's URL may hold a password).
"""

import importlib.metadata
import os
import pwd
import re
import shutil
import socket
import ssl
import stat
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final, Literal

from fedward_common.errors import ConfigError, LedgerError, StartError
from fedward_common.log.events import verify
from fedward_common.processes import require_free_port
from fedward_common.trust.certificates import expires_at, make_loopback_identity

Level = Literal["ok", "warn", "fail"]

FORMAT: Final = "fedward-doctor/1"
EXIT_CODES: Final[Mapping[Level, int]] = {"ok": 0, "fail": 1, "warn": 2}
EXPIRY_MARGIN: Final = timedelta(days=21)
MAX_SOCKET_PATH: Final = 107
"""What the kernel takes for a Unix socket, in bytes."""
PROBE_SECONDS: Final = 5.0
NO_CHECK_TIME: Final = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python does not name."""
SILENCED: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
FRAMEWORKS: Final = ("flwr", "grpcio", "torch", "opacus")
PEOPLE: Final = range(1000, 65534)
"""User ids of people, as Debian and Red Hat give them out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What was looked at, what was found and, unless all is well, what to do."""

    name: str
    level: Level
    found: str
    fix: str = ""


def ok(name: str, found: str) -> Finding:
    """A finding that asks for nothing."""
    return Finding(name=name, level="ok", found=found)


def warn(name: str, found: str, fix: str) -> Finding:
    """A finding with which Fedward runs, but not as it should."""
    return Finding(name=name, level="warn", found=found, fix=fix)


def fail(name: str, found: str, fix: str) -> Finding:
    """A finding with which Fedward does not run, or must not."""
    return Finding(name=name, level="fail", found=found, fix=fix)


@dataclass(frozen=True, kw_only=True, slots=True)
class Examination:
    """All findings about one side, in the order they were made."""

    subject: str
    findings: tuple[Finding, ...]

    @property
    def level(self) -> Level:
        """The worst level found."""
        found = {finding.level for finding in self.findings}
        return "fail" if "fail" in found else "warn" if "warn" in found else "ok"

    @property
    def exit_code(self) -> int:
        """0 all is well, 1 something fails, 2 warnings only."""
        return EXIT_CODES[self.level]

    def as_json(self) -> dict[str, Any]:
        """A JSON value: `format`, `subject`, `level`, `findings` (name, level, found, fix)."""
        return {
            "format": FORMAT,
            "subject": self.subject,
            "level": self.level,
            "findings": [
                {"name": f.name, "level": f.level, "found": f.found, "fix": f.fix}
                for f in self.findings
            ],
        }

    def text(self) -> str:
        """For people: a line per finding, and below it how to fix it."""
        width = max((len(finding.name) for finding in self.findings), default=0)
        lines = [f"doctor: {self.subject}"]
        for finding in self.findings:
            mark = finding.level if finding.level == "ok" else finding.level.upper()
            lines.append(f"  {mark:<4}  {finding.name:<{width}}  {finding.found}")
            if finding.fix:
                lines.append(f"  {'':<4}  {'':<{width}}  -> {finding.fix}")
        counts = dict.fromkeys(EXIT_CODES, 0)
        for finding in self.findings:
            counts[finding.level] += 1
        lines.append(", ".join(f"{count} {level}" for level, count in counts.items()))
        return "\n".join(lines)


def key_file(name: str, path: Path, *, owners: Collection[int]) -> Finding:
    """Whether a private key is a regular file, 0600, and belongs to one of `owners`."""
    try:
        found, folder = path.lstat(), path.parent.stat()
    except OSError as error:
        return fail(name, f"{path}: {error.strerror}", "Name the key in the settings, or make it")
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISREG(found.st_mode):
        return fail(name, f"{path}: a link or no regular file", "Put the key file itself there")
    if found.st_uid not in owners:
        return fail(
            name,
            f"{path}: belongs to user {found.st_uid}, Fedward's is {_listed(owners)}",
            f"Run: chown {min(owners)} {path} - or run doctor as the user that runs Fedward",
        )
    if mode & 0o077:
        return fail(
            name,
            f"{path}: mode {mode:04o}, others may open it",
            f"Run: chmod 600 {path} - and replace the key if anyone could have read it",
        )
    if folder.st_mode & 0o002 and not folder.st_mode & stat.S_ISVTX:
        return fail(
            name,
            f"{path.parent}: everybody may put another file in the key's place",
            f"Run: chmod go-w {path.parent}",
        )
    return ok(name, f"{path}: mode {mode:04o}, right owner")


@dataclass(frozen=True, kw_only=True, slots=True)
class IdentityFiles:
    """Where a certificate chain, its private key and the pinned root lie."""

    certificate: Path
    key: Path
    root: Path


def certificate_expiry(name: str, files: IdentityFiles, *, now: datetime) -> Finding:
    """Until when chain and root are good, all of them."""
    renew = "Have the federation's authority issue a new certificate and put it in its place"
    try:
        chain = _certificates(files.certificate.read_bytes())
        root = _certificates(files.root.read_bytes())
        ends = min(expires_at(pem) for pem in (*chain, *root))
    except OSError as error:
        return fail(name, f"{error.filename}: {error.strerror}", "Correct the path, or enrol again")
    except ConfigError as error:
        return fail(name, f"{files.certificate}, {files.root}: {error}", renew)
    day = f"{ends:%Y-%m-%d %H:%M} UTC"
    if ends <= now:
        return fail(name, f"{files.certificate}: ended {day}", f"{renew}; check the clock, too")
    if ends - now < EXPIRY_MARGIN:
        return warn(name, f"{files.certificate}: ends {day}", renew)
    return ok(name, f"good until {day}")


def certificate_chain(
    name: str, files: IdentityFiles, *, role: Literal["site", "server"], expired: bool = False
) -> Finding:
    """Whether a peer that trusts the pinned root alone accepts this identity in its role.

    Proven by a TLS 1.3 handshake in memory. `expired`: do not say again that it is too late.
    """
    client, server = tls13_client(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    holder, judge = (client, server) if role == "site" else (server, client)
    try:
        holder.load_cert_chain(files.certificate, files.key, password=no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError included
        return fail(
            name,
            f"{files.certificate} with {files.key}: {ssl_reason(error)}",
            "Put the certificate and the key it was made for together, both unencrypted PEM",
        )
    try:
        judge.load_verify_locations(files.root)
    except (OSError, ValueError) as error:
        return fail(name, f"{files.root}: {ssl_reason(error)}", "Put the federation's root there")
    judge.verify_mode = ssl.CERT_REQUIRED
    if expired:
        judge.verify_flags = ssl.VerifyFlags(int(judge.verify_flags) | NO_CHECK_TIME)
    with tempfile.TemporaryDirectory() as scratch:
        if role == "site":
            other = make_loopback_identity(Path(scratch))
            server.load_cert_chain(other.certificate, other.key)
            client.verify_mode = ssl.CERT_NONE
        try:
            _handshake(client, server)
        except ssl.SSLError as error:
            return fail(
                name,
                f"{files.certificate}: no way to the root in {files.root}: {ssl_reason(error)}",
                "Put in the chain (own certificate first) and the root that the federation's "
                "operator gave you, from the same federation and for this role",
            )
    return ok(name, "leads to the pinned root, key fits")


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


def shows_certificate_of(port: int, root: Path) -> bool:
    """Whether the program on the loopback port holds a certificate that `root` signed."""
    context = tls13_client()
    context.check_hostname, context.verify_mode = True, ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(root)
        with (
            socket.create_connection(("127.0.0.1", port), timeout=PROBE_SECONDS) as raw,
            context.wrap_socket(raw, server_hostname="localhost"),
        ):
            return True
    except (OSError, ValueError):
        return False


def private_folder(name: str, folder: Path, *, group: bool = False) -> Finding:
    """Whether only Fedward's user (with `group`, its group too) gets into the folder."""
    if not folder.exists():
        above = _existing(folder)
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            return fail(name, f"{folder}: cannot be made", f"Make it, mode 0700, in {above}")
        return ok(name, f"{folder}: made at the first start")
    found = folder.stat()
    mode = stat.S_IMODE(found.st_mode)
    if not folder.is_dir() or found.st_uid != os.geteuid():
        return fail(
            name,
            f"{folder}: no folder of this user",
            f"Run: chown {os.geteuid()} {folder} - or run doctor as the user that runs Fedward",
        )
    if mode & (0o007 if group else 0o077):
        allowed = "750" if group else "700"
        return fail(
            name, f"{folder}: mode {mode:04o}, others get in", f"Run: chmod {allowed} {folder}"
        )
    return ok(name, f"{folder}: mode {mode:04o}")


def socket_paths(name: str, paths: Sequence[Path]) -> Finding:
    """Whether the kernel takes every one of these Unix socket paths."""
    longest = max(paths, key=lambda path: len(os.fsencode(path)))
    length = len(os.fsencode(longest))
    if length > MAX_SOCKET_PATH:
        return fail(
            name,
            f"{longest}: {length} bytes, a Unix socket's path has at most {MAX_SOCKET_PATH}",
            "Set a shorter run folder, such as /run/fedward",
        )
    return ok(name, f"{length} of {MAX_SOCKET_PATH} bytes")


def disk(name: str, folder: Path, *, fails_below: int, warns_below: int) -> Finding:
    """Whether there is room on the disk of `folder`."""
    free = shutil.disk_usage(_existing(folder)).free
    return _amount(name, free, fails_below=fails_below, warns_below=warns_below, of="disk space")


def memory(name: str, meminfo: str, *, fails_below: int, warns_below: int) -> Finding:
    """Whether there is memory left, from the text of /proc/meminfo."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    if match is None:
        return warn(name, "the kernel does not say", "Check by hand that 4 GiB are free")
    free = int(match[1]) * 1024
    return _amount(name, free, fails_below=fails_below, warns_below=warns_below, of="memory")


def read_meminfo() -> str:
    """The text of /proc/meminfo; empty where there is none."""
    try:
        return Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return ""


def event_log(name: str, path: Path) -> Finding:
    """Whether the chain of a log is unbroken; one that is not there yet is in order."""
    try:
        summary = verify(path)
    except LedgerError as error:
        return fail(name, str(error), "Keep the file as it is and find out who changed it")
    except OSError as error:
        return fail(name, f"{path}: {error.strerror}", "Run doctor as the user that runs Fedward")
    if summary.entries == 0 and not path.exists():
        return ok(name, "none yet")
    return ok(name, f"{summary.entries} entries, chain unbroken")


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


def tls13_client() -> ssl.SSLContext:
    """A client's context that speaks TLS 1.3 only and trusts nothing yet, no system store either.

    The caller loads what it trusts and sets `verify_mode` and `check_hostname`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    return context


def ssl_reason(error: Exception) -> str:
    """The library's own word for an error: never what a file holds."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return str(error.verify_message)
    if isinstance(error, ssl.SSLError):
        return (error.reason or "no PEM").replace("_", " ").lower()
    return str(error.strerror) if isinstance(error, OSError) else "not readable"


def no_password() -> str:
    """Answers OpenSSL for an encrypted key: a program must not stop and ask at a terminal."""
    return ""


def _handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    """A handshake in memory. Raises ssl.SSLError when one side refuses."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)]
    for _ in range(10):
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                continue
    if ends:
        raise ssl.SSLError("expected the handshake to end, found it open")


def _certificates(pem: bytes) -> list[bytes]:
    """The certificates in `pem`, or `pem` itself when there is none (whose reader then says so)."""
    found = re.findall(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", pem, re.DOTALL)
    return found or [pem]


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    return next((one for one in (path, *path.parents) if one.exists()), Path("/"))


def _amount(name: str, free: int, *, fails_below: int, warns_below: int, of: str) -> Finding:
    found = f"{free / 2**30:.1f} GiB of {of} free"
    fix = f"Free {of}: at least {warns_below / 2**30:.1f} GiB are wanted"
    if free < fails_below:
        return fail(name, found, fix)
    return warn(name, found, fix) if free < warns_below else ok(name, found)


def _listed(owners: Collection[int]) -> str:
    return " or ".join(str(owner) for owner in sorted(owners))
