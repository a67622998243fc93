"""`make bench-rounds`: what a round costs without training: seconds, CPU, memory, bytes.

    python -m benchmarks.rounds --megabytes 1 --sites 3 --rounds 12 --out runs/bench-rounds.json

Real processes of a whole federation over mutual TLS. A round is timed from its opening to the next
one's, by the coordinator's own log; the first ones, which fetch the bundle, are left out. What is
over 4 MiB goes by blobs. `--stock` measures Flower as it ships in the same run, `--nvflare` NVFlare
where the caller has installed it, `--together N` the edge with N sites simulated in one process.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.rounds.federation import BenchFederation, write_inputs
from benchmarks.rounds.watch import MemoryWatch, cpu_seconds, per_round, wire_bytes
from fedward_common.channel.blobs import INLINE_BYTES
from fedward_server.adapters.run_files import LOG
from fedward_server.runs import follow, run_folder, start_run
from fedward_server.sandbox.run import Inputs, prepare

WARM_ROUNDS = 2


def measure(*, megabytes: float, sites: int, rounds: int, stream: str) -> dict[str, Any]:
    """The figures of one federation; every process has ended when this returns."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)  # each site is a user of its own
        study, tables = write_inputs(
            folder / "in",
            sites=sites,
            rounds=rounds + WARM_ROUNDS,
            megabytes=megabytes,
            stream=stream,
        )
        prepared = prepare(Inputs(study=study, sites=tables), out=folder / "out")
        marks: dict[int, dict[str, float]] = {}
        wire: dict[int, int] = {}
        with BenchFederation(prepared.layout) as federation:
            federation.start()
            port = federation.settings.listen_port
            watch = MemoryWatch()
            name, _ = start_run(federation.settings, prepared.signed.canonical)
            for event in follow(federation.settings, name, alive=federation.check_alive):
                if event["action"] == "round.committed":
                    marks[event["fields"]["round"]] = cpu_seconds()
                    wire[event["fields"]["round"]] = wire_bytes(port)
            watch.stop()
            log = (run_folder(federation.settings, name) / LOG).read_text().splitlines()
    events = [json.loads(line) for line in log]
    at = {e["action"]: _seconds(e) for e in reversed(events)}
    opened = {e["fields"]["round"]: _seconds(e) for e in events if e["action"] == "round.opened"}
    payload = next(e["fields"]["bytes"] for e in events if e["action"] == "model.checkpoint")
    seconds = [opened[n + 1] - opened[n] for n in opened if n > WARM_ROUNDS and n + 1 in opened]
    last = max(marks)
    counted = last - WARM_ROUNDS
    sent = (wire[last] - wire[WARM_ROUNDS]) / counted
    memory = watch.figures(at["run.started"], opened[WARM_ROUNDS])
    ways = {"never": "messages", "always": "steps of a phase"}
    return {
        "way": ways[stream] + (" and blobs" if payload > INLINE_BYTES else ""),
        "payload_bytes": payload,
        "sites": sites,
        "seconds": seconds,
        "median_seconds": statistics.median(seconds),
        "cpu_seconds_per_round": per_round(marks[WARM_ROUNDS], marks[last], counted),
        "memory": memory,
        "models_above_idle": {
            kind: round(one["above_idle_mb"] / (payload / 1e6), 2) for kind, one in memory.items()
        },
        "wire_bytes_per_round": round(sent),
        "wire_over_payload": round(sent / (2 * sites * payload) - 1, 4),
        "load": os.getloadavg()[0],
    }


def _seconds(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def main() -> None:
    """Measures and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, nargs="*", default=[1.0])
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--stream", choices=("never", "always"), default="never")
    parser.add_argument("--stock", type=float, nargs="*", default=[], help="megabytes")
    parser.add_argument("--nvflare", type=float, nargs="*", default=[], help="megabytes")
    parser.add_argument("--nvflare-bin", type=Path, help="bin folder of its own environment")
    parser.add_argument("--together", type=int, nargs="*", default=[], help="numbers of sites")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-rounds.json"))
    asked = parser.parse_args()
    if asked.nvflare and asked.nvflare_bin is None:
        parser.error("--nvflare: expected --nvflare-bin, the environment that NVFlare is in")
    runs: list[dict[str, Any]] = []
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "runs": runs,
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    for made in _asked(asked):
        runs.append(made())
        asked.out.write_text(json.dumps(facts, indent=1) + "\n")
        shown = {k: v for k, v in runs[-1].items() if k not in {"seconds", "memory"}}
        print(time.strftime("%X"), json.dumps(shown), flush=True)


def _asked(asked: argparse.Namespace) -> list[Any]:
    def ours(megabytes: float) -> Any:
        return lambda: measure(
            megabytes=megabytes, sites=asked.sites, rounds=asked.rounds, stream=asked.stream
        )

    def stock(megabytes: float) -> Any:
        from benchmarks.rounds.stock import measure_stock  # noqa: PLC0415

        return lambda: measure_stock(megabytes=megabytes, sites=asked.sites, rounds=asked.rounds)

    def nvflare(megabytes: float) -> Any:
        from benchmarks.rounds.peer_nvflare import measure_nvflare  # noqa: PLC0415

        return lambda: measure_nvflare(
            megabytes=megabytes,
            sites=asked.sites,
            rounds=asked.rounds,
            programs=asked.nvflare_bin.resolve(),
        )

    def together(sites: int) -> Any:
        from benchmarks.rounds.together import measure_together  # noqa: PLC0415

        return lambda: measure_together(sites=sites, rounds=asked.rounds)

    return [
        *(ours(one) for one in asked.megabytes),
        *(stock(one) for one in asked.stock),
        *(nvflare(one) for one in asked.nvflare),
        *(together(one) for one in asked.together),
    ]


if __name__ == "__main__":
    main()
