"""Child processes that live and die with their parent: what `serve` and `run` supervise.

A child may be another user and in a private network (rules 14, 15): it becomes both between fork
and exec, so that no process stands between supervisor and child. A child that ends is started again
after a pause that grows; so is one whose heartbeat stands still. A child that cannot stay up within
its first seconds, again and again, ends the parent with an error that names it.
"""

import asyncio
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from fedward_common.errors import StartError
from fedward_common.namespace import PrivateNetwork, port_listening
from fedward_common.users import Account, acting_as, become, no_new_privileges

PR_SET_PDEATHSIG: Final = 1
STOP_SECONDS: Final = 10.0
EARLY_SECONDS: Final = 5.0
EARLY_DEATHS: Final = 5
MAX_PAUSE_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 1.0
SILENT_SECONDS: Final = 25.0
AWAKE_SECONDS: Final = 5.0
FIRST_BEAT_SECONDS: Final = 120.0
MAX_LOG_BYTES: Final = 16 << 20
KEPT_MEMORY: Final[Mapping[str, str]] = {
    "MALLOC_TRIM_THRESHOLD_": str(16 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(4 << 20),
}
"""What glibc does with freed memory. By itself it hands the room of a message of 1 MiB back and
asks for it again with the next one: two thirds of what grpc costs are page faults then. Set, it
keeps up to 16 MiB; what is larger than 4 MiB still goes back at once."""
KEPT_LOGS: Final = 3

_log = structlog.get_logger(__name__)


def die_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Asks the kernel to end this process when its parent ends, however that happens (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(number))


@dataclass(frozen=True, kw_only=True, slots=True)
class ChildSpec:
    """One child: its command, what to add to the environment, when it counts as ready.

    `user` and `home` are whose process it is and where that user may write; without, it is the
    supervisor's own. `network` is the private network it lives in; without, it is the host's.

    `beats` are its heartbeats by name: numbers, asked for with its process id, that change at least
    every SILENT_SECONDS while it works. One that stands still has the child killed and started
    again. Whether a child that cannot stay up ends the supervisor says `gives_up`.
    """

    name: str
    command: tuple[str, ...]
    log_file: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    ready: Callable[[], bool] = lambda: True
    ready_seconds: float = 180.0
    user: Account | None = None
    home: Path | None = None
    network: PrivateNetwork | None = None
    beats: Mapping[str, Callable[[int], int | None]] = field(default_factory=dict)
    gives_up: bool = True


def port_open(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections on the loopback port."""
    try:
        with socket.create_connection((host, port), timeout=0.5):
            return True
    except OSError:
        return False


def socket_open(path: Path) -> bool:
    """Whether something accepts connections on the Unix socket; a socket left behind does not."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(0.5)
            connection.connect(str(path))
            return True
    except OSError:
        return False


def require_free_port(port: int, *, name: str, key: str, host: str = "127.0.0.1") -> None:
    """Returns when nothing listens on the port.

    Raises:
        StartError: the port is in use; names the program and the configuration key.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartError(
                f"{name}: expected port {port} ({key}) of {host} to be free, found it in use. "
                f"Stop what listens there or set another {key}"
            ) from error


def offline_environment() -> dict[str, str]:
    """What every child gets: no telemetry, update check or installs; loopback never by proxy; no
    Python code from the folder that it was started in; freed memory is kept for the next message.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "FEDWARD_"))}
    known = [kept.get("NO_PROXY", ""), kept.get("no_proxy", "")]
    bypass = ",".join(dict.fromkeys(filter(None, ["127.0.0.1,localhost,::1", *known])))
    return kept | {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        # httpx reads either spelling, grpc the lower-case one only.
        "NO_PROXY": bypass,
        "no_proxy": bypass,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")]),
        # `python -m` would look for modules in the working folder first: whoever may write there
        # would be guard and gateway.
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        **KEPT_MEMORY,
    }


def _whose(spec: ChildSpec) -> dict[str, str]:
    """Names and home of the child's user, which need no account to exist."""
    named = {} if spec.user is None else {"USER": spec.user.name, "LOGNAME": spec.user.name}
    return named if spec.home is None else named | {"HOME": str(spec.home)}


def _settle(spec: ChildSpec, supervisor: int) -> None:
    """Between fork and exec, in this order: network, user, no way back, a life bound to ours.

    The child leads a process group, by which what it started itself is found when it has ended.
    """
    os.setpgid(0, 0)
    if spec.network is not None:
        spec.network.enter()
    if spec.user is not None:
        become(spec.user)
    if spec.user is not None or spec.network is not None:
        no_new_privileges()
    die_with_parent()  # after the change of user, which undoes it
    if os.getppid() != supervisor:
        os._exit(1)  # it ended before the kernel was asked


def wakes(pid: int) -> int | None:
    """A number that changes whenever the main thread of a process ran; None when it has ended.

    A process that works or looks for work raises it; one that is stopped or stuck in a call does
    not. None also where Linux is not.
    """
    thread = Path(f"/proc/{pid}/task/{pid}")
    try:
        status = (thread / "status").read_text()
        spent = (thread / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    facts = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    if facts.get("State", "").strip().startswith(("Z", "X")):
        return None
    switches = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")
    return sum(int(facts.get(name, "0")) for name in switches) + int(spent[11]) + int(spent[12])


AWAKE: Final[Mapping[str, Callable[[int], int | None]]] = {"wakes": wakes}
"""The heartbeat of a program whose main thread looks for work, or at a clock, every few seconds."""


async def until_set(event: asyncio.Event) -> None:
    """Returns when the event is set, and wakes every few seconds until then (AWAKE)."""
    while not event.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), timeout=AWAKE_SECONDS)


def changed(path: Path) -> Callable[[int], int | None]:
    """A heartbeat by file: the time of its last change; None while it is not there."""

    def beat(_pid: int) -> int | None:
        try:
            return path.stat().st_mtime_ns
        except OSError:
            return None

    return beat


@dataclass(kw_only=True, slots=True)
class _Pulse:
    """How long one heartbeat of one child stood still. A child gets time until its first.

    Only time in which we ourselves were looking counts: where the whole machine stood still, no
    child is to blame.
    """

    value: int | None
    looked_at: float
    still: float = 0.0
    patience: float = field(default_factory=lambda: FIRST_BEAT_SECONDS)

    def silent(self, value: int | None, now: float) -> bool:
        """Whether the beat has stood still for too long; one that cannot be told never has."""
        self.still += min(now - self.looked_at, 2 * LOOK_SECONDS)
        self.looked_at = now
        if value is None or value != self.value:
            if value is not None and self.value is not None:
                self.patience = SILENT_SECONDS
            self.value, self.still = value, 0.0
        return self.still > self.patience


@dataclass(kw_only=True, slots=True)
class _Child:
    """A child as its supervisor knows it; `again_at` is when one that ended is started again."""

    spec: ChildSpec
    process: subprocess.Popen[bytes]
    started: float
    deaths: int = 0
    again_at: float | None = None
    pulses: dict[str, _Pulse] = field(default_factory=dict)
    looked_at: float = 0.0

    def silent(self, now: float) -> str | None:
        """The heartbeat that stands still, or None; looks once a second."""
        if now - self.looked_at < LOOK_SECONDS:
            return None
        self.looked_at = now
        for name, beat in self.spec.beats.items():
            value = beat(self.process.pid)
            pulse = self.pulses.setdefault(name, _Pulse(value=value, looked_at=now))
            if pulse.silent(value, now):
                return name
        return None


class Supervisor:
    """Starts children in order, keeps them up, stops them in reverse order."""

    def __init__(self, *, poll_seconds: float = 0.2, log_owner: Account | None = None) -> None:
        """`log_owner` is whose the log files are; without, they are the supervisor's own."""
        self._poll_seconds = poll_seconds
        self._log_owner = log_owner
        self._running: dict[str, _Child] = {}
        self._stop = threading.Event()

    def start(self, spec: ChildSpec) -> None:
        """Starts a child and returns when it is ready.

        Raises:
            StartError: the program is missing, ends, or is not ready in time.
        """
        self._spawn(spec)
        limit = time.monotonic() + spec.ready_seconds
        while not spec.ready():
            process = self._running[spec.name].process
            if self._stop.is_set():
                raise StartError(f"{spec.name}: asked to stop while starting")
            if process.poll() is not None:
                raise StartError(
                    f"{spec.name}: expected it to start, found it ended with code "
                    f"{process.returncode}. Its log: {spec.log_file}"
                )
            if time.monotonic() > limit:
                raise StartError(
                    f"{spec.name}: expected it ready within {spec.ready_seconds:.0f} s, found it "
                    f"silent. Its log: {spec.log_file}"
                )
            time.sleep(0.05)

    def listens(self, name: str, port: int) -> bool:
        """Whether the port of loopback is open in the network that the child `name` lives in."""
        return port_listening(self._running[name].process.pid, port)

    def _spawn(self, spec: ChildSpec) -> None:
        with acting_as(self._log_owner):
            spec.log_file.parent.mkdir(parents=True, exist_ok=True)
            log_file = spec.log_file.open("ab")
        try:
            with log_file:
                process = subprocess.Popen(
                    spec.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log_file,
                    stderr=subprocess.STDOUT,
                    env=offline_environment() | _whose(spec) | dict(spec.environment),
                    # A folder that every user may be in.
                    cwd="/" if spec.user else None,
                    # Set between fork and exec in a single-threaded supervisor: safe, and the only
                    # way that a SIGKILL of the supervisor leaves no orphan.
                    preexec_fn=partial(_settle, spec, os.getpid()),  # noqa: PLW1509
                )
        except subprocess.SubprocessError as error:
            raise StartError(
                f"{spec.name}: expected to become {spec.user.name if spec.user else 'itself'} in "
                "its own network, found that the kernel refuses. Check [guard] and [isolation]"
            ) from error
        except OSError as error:
            raise StartError(
                f"{spec.name}: expected to find the program {spec.command[0]}, found "
                f"{error.strerror}. Install Fedward's dependencies again, where every user of the "
                "site may read them"
            ) from error
        before = self._running.get(spec.name)
        self._running[spec.name] = _Child(
            spec=spec,
            process=process,
            started=time.monotonic(),
            deaths=0 if before is None else before.deaths,
        )

    def watch(self) -> None:
        """Keeps the children up and at work until `stop` is asked for; their logs stay bounded.

        Raises:
            StartError: a child ended within seconds of its start too many times in a row.
        """
        while not self._stop.wait(self._poll_seconds):
            for child in list(self._running.values()):
                now = time.monotonic()
                if child.again_at is not None:
                    if now >= child.again_at:
                        self._spawn_again(child, now)
                    continue
                self._look_at(child, now)
            self._rotate_logs()

    def _spawn_again(self, child: _Child, now: float) -> None:
        """Starts a child that ended; a little later where its log has no room on the disk.

        Raises:
            StartError: its program is missing.
        """
        try:
            self._spawn(child.spec)
        except OSError as error:
            child.again_at = now + MAX_PAUSE_SECONDS
            _log.warning("child.waiting", process=child.spec.name, error=type(error).__name__)

    def _look_at(self, child: _Child, now: float) -> None:
        """Notes that a child ended, or ends one that does nothing; when it is to start again.

        Raises:
            StartError: it ended too early too many times in a row.
        """
        code, why = child.process.poll(), "ended"
        if code is None:
            silent = child.silent(now)
            if silent is None:
                return
            why = f"silent:{silent}"
            child.process.kill()
            code = child.process.wait()
        name, spec = child.spec.name, child.spec
        early = now - child.started < EARLY_SECONDS
        child.deaths = child.deaths + 1 if early else 0
        _end_group(child.process)
        if child.deaths >= EARLY_DEATHS and spec.gives_up:
            raise StartError(
                f"{name}: expected it to stay up, found it ended {EARLY_DEATHS} times in a "
                f"row (code {code}). Its log: {spec.log_file}"
            )
        pause = min(MAX_PAUSE_SECONDS, 0.5 * 2**child.deaths)
        child.again_at = now + pause
        _log.warning("child.restarted", process=name, exit_code=code, kind=why, seconds=pause)

    def _rotate_logs(self) -> None:
        """Keeps each child's log under MAX_LOG_BYTES and the last few of them.

        The child goes on writing to the file that it has open, so its bytes are copied away.
        """
        for child in self._running.values():
            path = child.spec.log_file
            with suppress(OSError), acting_as(self._log_owner):
                if path.stat().st_size <= MAX_LOG_BYTES:
                    continue
                for number in range(KEPT_LOGS - 1, 0, -1):
                    older = path.with_name(f"{path.name}.{number}")
                    if older.exists():
                        older.replace(path.with_name(f"{path.name}.{number + 1}"))
                newest = path.with_name(f"{path.name}.1")
                try:
                    shutil.copyfile(path, newest, follow_symlinks=False)
                except OSError:  # a full disk gets room again, at the price of this log
                    newest.unlink(missing_ok=True)
                os.truncate(path, 0)

    def ask_to_stop(self, *_: object) -> None:
        """Makes `watch` return; usable as a signal handler."""
        self._stop.set()

    def stop(self) -> None:
        """Ends every child, the last started first: SIGTERM, and SIGKILL after ten seconds.

        What a child started and left behind is ended with it.
        """
        self._stop.set()
        order: Sequence[str] = list(reversed(self._running))
        for name in order:
            process = self._running[name].process
            if process.poll() is None:
                process.terminate()
        limit = time.monotonic() + STOP_SECONDS
        for name in order:
            process = self._running[name].process
            try:
                process.wait(timeout=max(0.1, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _end_group(process)
        self._running.clear()


def _end_group(leader: subprocess.Popen[bytes]) -> None:
    """Ends what a child that is gone had started: Flower's executor leaves its ServerApp behind."""
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
