"""The edge with many sites whose side is simulated in one process: guards, gateways, ledgers, no
Flower and no training. The parent is the ServerApp and all sites; the edge is a process of its own.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.rounds.watch import memory
from fedward_common.channel.tls import require_tls13
from fedward_common.trust.signing import SigningKey

WARM_ROUNDS = 1


def measure_together(*, sites: int, rounds: int) -> dict[str, Any]:
    """Seconds of a round, CPU seconds and peak memory of the edge with so many sites.

    In a process of its own: grpc reads its ciphers when it is imported, and whoever sets them for
    that process's children would keep their edges from starting.
    """
    command = [sys.executable, "-m", __spec__.name, str(sites), str(rounds)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _measure(*, sites: int, rounds: int) -> dict[str, Any]:
    require_tls13()
    from tests.support.blob_sites import MODEL, BlobSites, big  # noqa: PLC0415
    from tests.support.edge_process import running_edge  # noqa: PLC0415
    from tests.support.guard_site import KEYS  # noqa: PLC0415

    names = [f"site-{number}" for number in range(1, sites + 1)]
    KEYS.update({name: SigningKey.generate() for name in names})
    update = big(0.5)
    seconds: list[float] = []
    with tempfile.TemporaryDirectory(dir="/tmp") as root, running_edge(Path(root), *names) as edge:
        process = psutil.Process(edge.process.pid)
        made = BlobSites(
            edge, Path(root) / "sites", "many", keys={name: KEYS[name] for name in names}
        )
        for site in made.sites.values():
            site.payload = lambda: update
        idle = memory(process.pid)
        peak, before = idle, 0.0
        for number in range(1, rounds + WARM_ROUNDS + 1):
            if number == WARM_ROUNDS + 1:
                before = _cpu(process)
            began = time.perf_counter()
            state = made.ask(number, deadline_seconds=300)
            seconds.append(time.perf_counter() - began)
            if len(state.accepted) != sites:
                raise RuntimeError(f"round {number}: expected every site, found {state.lost}")
            now = memory(process.pid)
            peak = (max(peak[0], now[0]), max(peak[1], now[1]))
        spent = (_cpu(process) - before) / rounds
        made.close()
    measured = seconds[WARM_ROUNDS:]
    return {
        "way": "blobs, sites simulated in one process",
        "payload_bytes": len(MODEL),
        "sites": sites,
        "seconds": measured,
        "median_seconds": statistics.median(measured),
        "edge_cpu_seconds_per_round": round(spent, 3),
        "edge_above_idle_mb": {
            "anonymous": round(peak[0] - idle[0], 1),
            "resident": round(peak[1] - idle[1], 1),
        },
        "load": os.getloadavg()[0],
    }


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    print(json.dumps(_measure(sites=int(sys.argv[1]), rounds=int(sys.argv[2]))))
