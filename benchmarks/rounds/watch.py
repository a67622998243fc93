"""What a round costs besides time: CPU seconds, memory above idle, bytes on the wire."""

import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

PROGRAMS = (
    "flower_supernode",
    "flower-superlink",
    "flower-supernode",
    "flower-superexec",
    "flwr-serverapp",
    "flwr-clientapp",
    "fedward_server edge",
    "fedward_common.bridge",
    "fedward_client guard",
    "fedward_client gateway",
    "benchmarks.rounds.sites worker",
)
COORDINATOR = ("flower-superlink", "fedward_server edge", "flwr-serverapp")
"""The three whose memory together is bounded."""


def program_of(process: psutil.Process) -> str:
    """Which program a process runs; every other one is a supervisor."""
    words = " ".join(process.cmdline())
    return next((program for program in PROGRAMS if program in words), "supervisors")


def cpu_seconds() -> dict[str, float]:
    """CPU seconds so far of each program under this process, all its processes together.

    A worker's tasks are reaped by the kernel, so theirs are not in it.
    """
    found: dict[str, float] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            name, times = program_of(process), process.cpu_times()
        except psutil.Error:
            continue
        found[name] = found.get(name, 0.0) + times.user + times.system
    return found


def per_round(
    first: Mapping[str, float], last: Mapping[str, float], rounds: int
) -> dict[str, float]:
    """CPU seconds a round between two readings."""
    return {name: round((last[name] - first.get(name, 0.0)) / rounds, 3) for name in last}


def memory(pid: int) -> tuple[float, float]:
    """Anonymous and whole resident memory of a process in MB; (0, 0) when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    kib = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("Rss", "VmR"))}
    return int(kib.get("RssAnon", 0)) / 976.6, int(kib.get("VmRSS", 0)) / 976.6


class MemoryWatch:
    """Samples the coordinator's three processes until it is stopped."""

    def __init__(self, *, every_seconds: float = 0.05) -> None:
        self._every = every_seconds
        self._samples: list[tuple[float, dict[str, tuple[float, float]]]] = []
        self._stop = threading.Event()
        self._pids: dict[int, str] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends sampling."""
        self._stop.set()
        self._thread.join()

    def figures(self, idle_until: float, since: float) -> dict[str, Any]:
        """MB: the peak of the sum, of each process, and the sum at idle (before `idle_until`)."""
        names = [name for name in COORDINATOR if any(name in one for _, one in self._samples)]
        before = [one for at, one in self._samples if at <= idle_until and one]
        during = [one for at, one in self._samples if at >= since]
        if not before or not during:
            return {}
        idle = before[-1]
        figures: dict[str, Any] = {}
        for place, kind in enumerate(("anonymous", "resident")):
            resting = sum(idle.get(name, (0.0, 0.0))[place] for name in names)
            peak = max(sum(one.get(n, (0.0, 0.0))[place] for n in names) for one in during)
            figures[kind] = {
                "idle_mb": round(resting, 1),
                "peak_mb": round(peak, 1),
                "above_idle_mb": round(peak - resting, 1),
                "peak_of": {
                    n: round(max(one.get(n, (0.0, 0.0))[place] for one in during), 1) for n in names
                },
            }
        return figures

    def _run(self) -> None:
        looked = 0.0
        while not self._stop.wait(self._every):
            if time.monotonic() - looked > 0.5:
                looked = time.monotonic()
                self._look()
            found: dict[str, tuple[float, float]] = {}
            for pid, name in list(self._pids.items()):
                anonymous, whole = memory(pid)
                sofar = found.get(name, (0.0, 0.0))
                found[name] = (sofar[0] + anonymous, sofar[1] + whole)
            self._samples.append((time.time(), {n: v for n, v in found.items() if v[1]}))

    def _look(self) -> None:
        for process in psutil.Process().children(recursive=True):
            try:
                name = program_of(process)
            except psutil.Error:
                continue
            if name in COORDINATOR:
                self._pids[process.pid] = name


def wire_bytes(port: int) -> int:
    """Bytes sent and received so far by the listener's side of the connections to a port."""
    command = ("ss", "-tinHO", "state", "established", "sport", "=", f":{port}")
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(
        int(word.partition(":")[2])
        for word in told.split()
        if word.startswith(("bytes_acked:", "bytes_received:"))
    )
