"""`make bench-rounds`: seconds and CPU seconds of a round by Flower messages, without training.

    python -m benchmarks.rounds --megabytes 1 --sites 3 --rounds 12 --out runs/bench-rounds.json

Real processes of a whole federation over mutual TLS. A round is timed from its opening to the next
one's, by the coordinator's own log; the first ones, which fetch the bundle, are left out.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.rounds.federation import BenchFederation, write_inputs
from fedward_server.adapters.run_files import LOG
from fedward_server.runs import follow, run_folder, start_run
from fedward_server.sandbox.run import Inputs, prepare

WARM_ROUNDS = 2
PROGRAMS = (
    "flower_supernode",
    "flower-superlink",
    "flower-superexec",
    "flwr-serverapp",
    "fedward_server edge",
    "fedward_common.bridge",
    "fedward_client guard",
    "fedward_client gateway",
    "benchmarks.rounds.sites worker",
)


def cpu_seconds() -> dict[str, float]:
    """CPU seconds so far of each program of the federation, all its processes together.

    A worker's tasks are reaped by the kernel, so theirs are not in it.
    """
    found: dict[str, float] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            words, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.Error:
            continue
        name = next((program for program in PROGRAMS if program in words), "supervisors")
        found[name] = found.get(name, 0.0) + times.user + times.system
    return found


def measure(*, megabytes: float, sites: int, rounds: int) -> dict[str, Any]:
    """The figures of one federation; every process has ended when this returns."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)  # each site is a user of its own
        study, tables = write_inputs(
            folder / "in", sites=sites, rounds=rounds + WARM_ROUNDS, megabytes=megabytes
        )
        prepared = prepare(Inputs(study=study, sites=tables), out=folder / "out")
        marks: dict[int, dict[str, float]] = {}
        with BenchFederation(prepared.layout) as federation:
            federation.start()
            name, _ = start_run(federation.settings, prepared.signed.canonical)
            for event in follow(federation.settings, name, alive=federation.check_alive):
                if event["action"] == "round.committed":
                    marks[event["fields"]["round"]] = cpu_seconds()
            log = (run_folder(federation.settings, name) / LOG).read_text().splitlines()
    opened = {
        event["fields"]["round"]: datetime.fromisoformat(event["time"]).timestamp()
        for event in map(json.loads, log)
        if event["action"] == "round.opened"
    }
    seconds = [opened[n + 1] - opened[n] for n in opened if n > WARM_ROUNDS and n + 1 in opened]
    first, last = marks[WARM_ROUNDS], marks[max(marks)]
    counted = max(marks) - WARM_ROUNDS
    return {
        "way": "messages",
        "megabytes": megabytes,
        "sites": sites,
        "seconds": seconds,
        "median_seconds": statistics.median(seconds),
        "cpu_seconds_per_round": {
            name: round((last[name] - first.get(name, 0.0)) / counted, 3) for name in last
        },
    }


def main() -> None:
    """Measures and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=1.0)
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-rounds.json"))
    asked = parser.parse_args()
    before = os.getloadavg()[0]
    figures = measure(megabytes=asked.megabytes, sites=asked.sites, rounds=asked.rounds)
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_before": before,
        "load_after": os.getloadavg()[0],
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({**facts, "runs": [figures]}, indent=1) + "\n")
    print(f"{figures['median_seconds']:.2f} s a round; {asked.out}")


if __name__ == "__main__":
    main()
