"""NVFlare as it ships, for comparison: its POC (provisioned, mutual TLS), FedAvg of one array.

    python -m benchmarks.rounds --megabytes 1 --nvflare 1 100 --nvflare-bin /some/venv/bin

NVFlare lives in an environment of its own, which the caller names (`pip install nvflare` there);
none of our code runs in it but the two short scripts below. Clients give back what they get.
"""

import os
import re
import statistics
import subprocess
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.rounds.watch import memory

WARM_ROUNDS: Final = 1
TASK: Final = re.compile(r"^(\S+ \S+) - ClientRunner - .* got task assignment: name=train", re.M)
JOB: Final = """\
import sys
import numpy as np
from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe

folder, numbers, sites, rounds = sys.argv[1], *map(int, sys.argv[2:5])
np.save(f"{folder}/model.npy", np.random.default_rng(0).normal(size=numbers).astype(np.float32))
NumpyFedAvgRecipe(
    name="echo", initial_ckpt=f"{folder}/model.npy", min_clients=sites, num_rounds=rounds,
    train_script=f"{folder}/echo_client.py",
).export(f"{folder}/jobs")
"""
CLIENT: Final = """\
import nvflare.client as flare

flare.init()
while flare.is_running():
    model = flare.receive()
    flare.send(flare.FLModel(params=model.params, metrics={"accuracy": 0.0},
                             meta={"NUM_STEPS_CURRENT_ROUND": 1}))
"""


def measure_nvflare(*, megabytes: float, sites: int, rounds: int, programs: Path) -> dict[str, Any]:
    """Seconds of a round, CPU seconds of all processes and the server's peak memory above idle.

    Raises:
        RuntimeError: the job did not end well within ten minutes.
    """
    with tempfile.TemporaryDirectory(dir="/tmp") as scratch:
        poc = _Poc(Path(scratch), programs)
        try:
            return poc.measure(numbers=round(megabytes * 250_000), sites=sites, rounds=rounds)
        finally:
            poc.stop()


class _Poc:
    """One POC federation in a folder of its own."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self._folder, self._programs = folder, programs
        self._environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(folder),
            "NVFLARE_POC_WORKSPACE": str(folder / "poc"),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }

    def measure(self, *, numbers: int, sites: int, rounds: int) -> dict[str, Any]:
        """Starts everything, runs one job of `rounds` and reads the first site's log."""
        (self._folder / "job.py").write_text(JOB)
        (self._folder / "echo_client.py").write_text(CLIENT)
        total = rounds + WARM_ROUNDS + 1
        python = str(self._programs / "python")
        self._call(python, "job.py", str(self._folder), str(numbers), str(sites), str(total))
        self._call("nvflare", "poc", "prepare", "-n", str(sites))
        self._call("nvflare", "poc", "start")
        server = self._server()
        idle = sum(memory(process.pid)[0] for process in server)
        self._call("nvflare", "job", "submit", "-j", str(next((self._folder / "jobs").iterdir())))
        at, peak, cpu = self._followed(total, idle)
        seconds = [at[n + 1] - at[n] for n in range(WARM_ROUNDS, total - 1)]
        return {
            "way": "NVFlare POC, mutual TLS, FedAvg recipe (numpy)",
            "version": self._call(
                python, "-c", "import nvflare; print(nvflare.__version__)"
            ).strip(),
            "payload_bytes": 4 * numbers,
            "sites": sites,
            "seconds": seconds,
            "median_seconds": statistics.median(seconds),
            "cpu_seconds_per_round": round(cpu, 3),
            "server_above_idle_mb": round(peak - idle, 1),
            "models_above_idle": round((peak - idle) / (4e-6 * numbers), 2),
            "load": os.getloadavg()[0],
        }

    def stop(self) -> None:
        """Ends every process of this federation."""
        for process in self._processes():
            process.kill()

    def _followed(self, total: int, idle: float) -> tuple[list[float], float, float]:
        peak, deadline = idle, time.monotonic() + 600
        marks: dict[int, float] = {}
        while time.monotonic() < deadline:
            at = self._rounds_started()
            marks.setdefault(len(at) - 1, self._cpu())
            peak = max(peak, sum(memory(process.pid)[0] for process in self._server()))
            if len(at) == total:
                first, last = marks.get(WARM_ROUNDS), marks.get(total - 1)
                counted = total - 1 - WARM_ROUNDS
                spent = (last - first) / counted if first and last else float("nan")
                return at, peak, spent
            time.sleep(0.1)
        raise RuntimeError(f"NVFlare: expected {total} rounds in 600 s, found {len(at)}")

    def _rounds_started(self) -> list[float]:
        """When the first site got the task of each round: the server writes no such line."""
        logs = list(self._folder.glob("poc/example_project/prod_00/site-1/*/log.txt"))
        texts = [log.read_text() for log in logs]
        return [
            datetime.fromisoformat(found.replace(",", ".")).timestamp()
            for text in texts
            for found in TASK.findall(text)
        ]

    def _processes(self) -> list[psutil.Process]:
        mark = str(self._folder)
        found = []
        for process in psutil.process_iter(["cmdline"]):
            if any(mark in word for word in process.info["cmdline"] or ()):
                found.append(process)
        return found

    def _server(self) -> list[psutil.Process]:
        return [one for one in self._processes() if "/server" in " ".join(one.info["cmdline"])]

    def _cpu(self) -> float:
        total = 0.0
        for process in self._processes():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def _call(self, *command: str) -> str:
        return subprocess.run(
            command,
            cwd=self._folder,
            env=self._environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=300,
        ).stdout
