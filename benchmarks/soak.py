"""Many rounds of a real federation with faults at random: does anything grow, is anything lost?

Starts the sandbox's own processes, kills or stops one of them every few rounds, lets the study end
and compares ledgers, logs and outcome. Figures per round: seconds, memory, handles, disk; their
slopes by least squares over the rounds without a fault in them.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedward_server.adapters.run_files import LOG, run_path
from fedward_server.runs import follow, require_finished, start_run
from fedward_server.sandbox.federation import Federation
from fedward_server.sandbox.run import Inputs, Prepared, prepare
from fedward_server.sandbox.victims import COORDINATOR, SITE, below, strike
from tests.support.agreement import agreement
from tests.support.left_behind import left_behind, litter
from tests.support.studies import STUDY_FILES

EVERY: Final = 10
DEADLINE_SECONDS: Final = 60


@dataclass(kw_only=True)
class Sample:
    """What a round cost and what the federation held after it."""

    round: int
    seconds: float
    memory_mib: float
    handles: int
    processes: int
    disk_kib: float
    fault: str = ""


@dataclass(kw_only=True)
class Soak:
    """One soak."""

    rounds: int
    seed: int
    samples: list[Sample] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def held(federation: Federation, folder: Path) -> tuple[float, int, int, float]:
    """Memory in MiB (proportional share), handles, processes and disk in KiB of a federation."""
    pids = {pid for root in federation.processes.values() for pid, _, _ in below(root)}
    pids |= set(federation.processes.values())
    memory, handles = 0.0, 0
    for pid in pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            handles += len(list(Path(f"/proc/{pid}/fd").iterdir()))
        except OSError:
            continue
        match = re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)
        memory += 0.0 if match is None else int(match[1]) / 1024
    disk = sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if path.exists())
    return memory, handles, len(pids), disk / 1024


def study_of(rounds: int, folder: Path) -> Prepared:
    """The breast-cancer study with so many rounds of one step each."""
    text = (STUDY_FILES / "breast-cancer.toml").read_text()
    for old, new in (
        ("rounds = 8", f"rounds = {rounds}"),
        ("local_steps = 5", "local_steps = 1"),
        ("average_last = 2", "average_last = 1"),
        ("deadline_seconds = 60", f"deadline_seconds = {DEADLINE_SECONDS}"),
    ):
        text = text.replace(old, new)
    study = folder / "study.toml"
    study.write_text(text)
    return prepare(Inputs.parse(study=study, sites=[], data=None), out=folder / "out")


def soak(prepared: Prepared, one: Soak, folder: Path) -> dict[str, Any]:
    """Runs the study to its end with faults, and says what became of it."""
    draws = random.Random(one.seed)
    sites = list(prepared.layout.sites)
    with Federation(prepared.layout) as federation:
        federation.start()
        name, _ = start_run(federation.settings, prepared.signed.canonical)
        since, fault = time.monotonic(), ""
        for event in follow(federation.settings, name, alive=federation.keep_up):
            action, fields = event["action"], event["fields"]
            if action == "round.opened" and len(one.samples) % EVERY == EVERY - 1 and not fault:
                owner = draws.choice(["coordinator", *sites])
                victim = draws.choice(COORDINATOR if owner == "coordinator" else SITE)
                number = draws.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP])
                if victim in ("serve", "run"):
                    number = signal.SIGKILL  # a stopped one is systemd's watchdog to find
                if strike(federation, owner, victim, number):
                    fault = f"{number.name} {owner}/{victim}"
                    one.faults.append(fault)
            elif action in ("round.committed", "round.abandoned"):
                memory, handles, processes, disk = held(federation, folder)
                now = time.monotonic()
                one.samples.append(
                    Sample(
                        round=fields["round"],
                        seconds=now - since,
                        memory_mib=memory,
                        handles=handles,
                        processes=processes,
                        disk_kib=disk,
                        fault=fault,
                    )
                )
                since, fault = now, ""
                sys.stderr.write(f"{action} {fields['round']} {one.samples[-1]}\n")
        outcome = require_finished(federation.settings, name)
        federation.keep_up()
        charged = {
            site: federation.ask_site(site, "budget", "show")["studies"][0]["rounds_charged"]
            for site in sites
        }
        places = {site: place.folder for site, place in prepared.layout.sites.items()}
        log = run_path(federation.settings.state, name) / LOG
        facts = agreement(places, log, charged, edge_log=federation.settings.edge_log)
    return {
        "outcome": {k: outcome[k] for k in ("status", "committed_rounds", "abandoned_rounds")},
        **facts,
        "left_processes": len(left_behind(folder)),
        "left_temporary_files": len(litter(folder)),
    }


def slopes(samples: list[Sample]) -> dict[str, dict[str, float]]:
    """Median, slope per 1,000 rounds and its standard error, of rounds without a fault."""
    calm = [s for s in samples if not s.fault]
    found = {}
    for name in ("seconds", "memory_mib", "handles", "processes", "disk_kib"):
        y = np.array([getattr(s, name) for s in calm], dtype=float)
        x = np.arange(len(y), dtype=float) / 1000
        if len(y) < 4:
            continue
        (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
        found[name] = {
            "median": float(np.median(y)),
            "slope_per_1000": float(slope),
            "slope_error": float(np.sqrt(covariance[0, 0])),
        }
    return found


def main() -> None:
    """Prints and writes the figures; exits with 1 when something was lost or left behind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fedward-soak-"))
    one = Soak(rounds=asked.rounds, seed=asked.seed)
    try:
        facts = soak(study_of(asked.rounds, folder), one, folder)
    finally:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.with_suffix(".rounds.json").write_text(
            json.dumps({"samples": [asdict(s) for s in one.samples], "faults": one.faults})
        )
    report = {
        "rounds": asked.rounds,
        "faults": len(one.faults),
        "load": os.getloadavg()[1],
        **facts,
        "per_round": slopes(one.samples),
    }
    asked.out.write_text(json.dumps(report, indent=1) + "\n")
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    kept = ("committed_once", "ledger_equals_journal", "no_charge_unasked")
    good = all(facts[name] for name in kept)
    raise SystemExit(not good or facts["left_processes"] > 0 or facts["left_temporary_files"] > 0)


if __name__ == "__main__":
    main()
