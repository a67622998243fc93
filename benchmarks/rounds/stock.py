"""Flower 1.41 as it ships, for comparison: SuperLink, SuperNodes, FedAvg; TLS, node authentication.

None of our code runs in it but this driver. Clients give back what they get.
"""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.rounds.watch import MemoryWatch, cpu_seconds, per_round
from fedward_common.processes import offline_environment
from fedward_common.trust.certificates import make_loopback_identity
from fedward_server.sandbox.layout import free_ports

WARM_ROUNDS = 1
BIN = Path(sys.executable).parent
PROJECT = """\
[project]
name = "stock"
version = "1.0.0"
dependencies = ["flwr>=1.41.0,<1.42"]
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "stock.app:server"
clientapp = "stock.app:client"
[tool.flwr.app.config]
rounds = {rounds}
sites = {sites}
numbers = {numbers}
out = "{out}"
"""
APP = """\
import json, time
import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()

@client.train()
def train(message: Message, context: Context) -> Message:
    content = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 10})}
    return Message(RecordDict(content), reply_to=message)

server = ServerApp()

class Timed(FedAvg):
    times = []
    def aggregate_train(self, server_round, replies):
        result = super().aggregate_train(server_round, replies)
        Timed.times.append(time.time())
        with open(self.out, "w") as file:
            json.dump(Timed.times, file)
        return result

@server.main()
def main(grid: Grid, context: Context) -> None:
    asked = context.run_config
    strategy = Timed(fraction_evaluate=0.0, min_train_nodes=asked["sites"],
                     min_available_nodes=asked["sites"])
    strategy.out = asked["out"]
    weights = Array(np.zeros(asked["numbers"], dtype=np.float32))
    strategy.start(grid, ArrayRecord({"w": weights}), num_rounds=asked["rounds"], timeout=900)
"""


def measure_stock(*, megabytes: float, sites: int, rounds: int) -> dict[str, Any]:
    """The figures of one run; every process has ended when this returns."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        numbers = round(megabytes * 1e6 / 4)
        times = folder / "times.json"
        facts = {"rounds": rounds + WARM_ROUNDS, "sites": sites, "numbers": numbers}
        app = folder / "app"
        (app / "stock").mkdir(parents=True)
        (app / "pyproject.toml").write_text(PROJECT.format(**facts, out=times))
        (app / "stock" / "__init__.py").write_text("")
        (app / "stock" / "app.py").write_text(APP)
        tls = make_loopback_identity(folder / "tls")
        port, *ports = free_ports(1 + sites)
        address = f"127.0.0.1:{port}"
        home = folder / "home"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "hub"\n[superlink.hub]\naddress = "{address}"\n'
            f'root-certificates = "{tls.ca}"\n'
        )
        environment = offline_environment() | {
            "FLWR_HOME": str(home),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }
        started: list[subprocess.Popen[bytes]] = []

        def start(name: str, *words: object) -> None:
            with (folder / f"{name}.log").open("wb") as log:
                command = [str(BIN / str(words[0])), *map(str, words[1:])]
                started.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        env=environment,
                        start_new_session=True,
                    )
                )

        def flwr(*words: object) -> str:
            done = subprocess.run(
                [str(BIN / "flwr"), *map(str, words)],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            if done.returncode:
                raise RuntimeError(done.stdout + done.stderr)
            return done.stdout

        try:
            start(
                *("superlink", "flower-superlink", "--host", "127.0.0.1", "--port", port),
                *("--ssl-ca-certfile", tls.ca, "--ssl-certfile", tls.certificate),
                *("--ssl-keyfile", tls.key, "--database", folder / "state.db"),
                *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
            )
            _retry(lambda: flwr("supernode", "list", "hub"))
            for number, own in enumerate(ports):
                key = folder / f"node{number}"
                subprocess.run(
                    ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(key)],
                    check=True,
                )
                flwr("supernode", "register", f"{key}.pub", "hub")
                start(
                    *(f"node{number}", "flower-supernode", "--superlink", address),
                    *("--root-certificates", tls.ca, "--auth-supernode-private-key", key),
                    *("--host", "127.0.0.1", "--port", own),
                )
            time.sleep(5)
            watch = MemoryWatch()
            time.sleep(1)
            idle = time.time()
            flwr("run", app, "hub")
            marks: dict[int, dict[str, float]] = {}
            limit = time.monotonic() + 60 + 60 * (rounds + WARM_ROUNDS)
            while len(marks) < rounds + WARM_ROUNDS:
                found = json.loads(times.read_text() or "[]") if times.exists() else []
                for done in range(len(marks), len(found)):
                    marks[done] = cpu_seconds()
                if time.monotonic() > limit:
                    logs = "\n".join(p.read_text()[-800:] for p in folder.glob("*.log"))
                    raise RuntimeError(re.sub(r"\x1b\[\d+m", "", logs))
                time.sleep(0.05)
            watch.stop()
            ends = json.loads(times.read_text())
        finally:
            for process in reversed(started):
                os.killpg(process.pid, signal.SIGTERM)
            for process in started:
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        seconds = [b - a for a, b in zip(ends[WARM_ROUNDS - 1 :], ends[WARM_ROUNDS:], strict=False)]
        cpu_first, cpu_last = marks[0], marks[max(marks)]
        memory = watch.figures(idle, idle)
        payload = 4 * numbers
        return {
            "way": "Flower 1.41 as it ships",
            "payload_bytes": payload,
            "sites": sites,
            "seconds": seconds,
            "median_seconds": statistics.median(seconds),
            "cpu_seconds_per_round": per_round(cpu_first, cpu_last, rounds),
            "memory": memory,
            "load": os.getloadavg()[0],
        }


def _retry(work: Any) -> None:
    for attempt in range(60):
        try:
            work()
        except RuntimeError:
            if attempt == 59:
                raise
            time.sleep(0.5)
        else:
            return
