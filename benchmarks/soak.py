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
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedward_server.adapters.run_files import LOG, read_outcome, run_path
from fedward_server.runs import cancel_run, follow, start_run
from fedward_server.sandbox.federation import Federation
from fedward_server.sandbox.run import Inputs, Prepared, prepare
from fedward_server.sandbox.victims import COORDINATOR, SITE, below, strike
from tests.support.agreement import agreement
from tests.support.left_behind import left_behind, litter
from tests.support.studies import STUDY_FILES

EVERY: Final = 10
DEADLINE_SECONDS: Final = 60
RECORD: Final = re.compile(r"\.jsonl$|/ledger|/replies/")


@dataclass(kw_only=True)
class Sample:
    """What a round cost and what the federation held after it."""

    round: int
    seconds: float
    memory_mib: float
    handles: int
    processes: int
    record_kib: float
    disk_kib: float
    committed: bool
    fault: str = ""


@dataclass(kw_only=True)
class Soak:
    """One soak."""

    rounds: int
    seed: int
    samples: list[Sample] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def held(federation: Federation, folder: Path) -> dict[str, Any]:
    """What a federation holds: memory (proportional share), handles, processes, disk.

    `record_kib` is what must be kept and so grows: journals, logs of runs and edge, ledgers, the
    records of answered rounds. `disk_kib` is everything else, memory file systems included.
    """
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
    record = disk = 0
    for path in (*folder.rglob("*"), *federation.layout.run.rglob("*"), *_in_memory(federation)):
        with suppress(FileNotFoundError):
            size = path.lstat().st_blocks * 512
            if RECORD.search(str(path)):
                record += size
            else:
                disk += size
    return {
        "memory_mib": memory,
        "handles": handles,
        "processes": len(pids),
        "record_kib": record / 1024,
        "disk_kib": disk / 1024,
    }


def _in_memory(federation: Federation) -> list[Path]:
    """The files of SuperLink's state, which may lie in a memory file system."""
    root = federation.pid("coordinator")
    for _, _, command in below(root):
        found = re.search(r"--database (\S+)", command)
        if found is not None and federation.layout.root not in Path(found[1]).parents:
            return list(Path(found[1]).parent.iterdir())
    return []


def study_of(rounds: int, folder: Path, *, steps: int) -> Prepared:
    """The breast-cancer study with so many rounds of so many steps each."""
    text = (STUDY_FILES / "breast-cancer.toml").read_text()
    for old, new in (
        ("rounds = 8", f"rounds = {rounds}"),
        ("local_steps = 5", f"local_steps = {steps}"),
        ("average_last = 2", "average_last = 1"),
        ("deadline_seconds = 60", f"deadline_seconds = {DEADLINE_SECONDS}"),
    ):
        text = text.replace(old, new)
    study = folder / "study.toml"
    study.write_text(text)
    return prepare(Inputs.parse(study=study, sites=[], data=None), out=folder / "out")


def soak(prepared: Prepared, one: Soak, folder: Path, *, minutes: float) -> dict[str, Any]:
    """Runs the study with faults to its end, or for so long, and says what became of it."""
    draws = random.Random(one.seed)
    sites = list(prepared.layout.sites)
    with Federation(prepared.layout) as federation:
        federation.start()
        name, _ = start_run(federation.settings, prepared.signed.canonical)
        since, fault = time.monotonic(), ""
        until = since + 60 * minutes

        def alive() -> None:
            federation.keep_up()
            if time.monotonic() > until and read_outcome(run_folder) is None:
                cancel_run(federation.settings, name)

        run_folder = run_path(federation.settings.state, name)
        for event in follow(federation.settings, name, alive=alive):
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
                now = time.monotonic()
                one.samples.append(
                    Sample(
                        round=fields["round"],
                        seconds=now - since,
                        fault=fault,
                        committed=action == "round.committed",
                        **held(federation, folder),
                    )
                )
                now = time.monotonic()
                since, fault = now, ""
                sys.stderr.write(f"{action} {fields['round']} {one.samples[-1]}\n")
        outcome = read_outcome(run_folder) or {}
        charged = {
            site: federation.ask_site(site, "budget", "show")["studies"][0]["rounds_charged"]
            for site in sites
        }
        places = {site: place.folder for site, place in prepared.layout.sites.items()}
        facts = agreement(places, run_folder / LOG, charged, edge_log=federation.settings.edge_log)
    return {
        "outcome": outcome.get("status", "none"),
        "committed": len([s for s in one.samples if s.committed]),
        **facts,
        "left_processes": len(left_behind(folder)),
        "left_temporary_files": len(litter(folder)),
    }


def slopes(samples: list[Sample]) -> dict[str, dict[str, float]]:
    """Median, slope per 1,000 rounds and its standard error, of rounds without a fault."""
    calm = [s for s in samples if not s.fault]
    found = {}
    for name in ("seconds", "memory_mib", "handles", "processes", "record_kib", "disk_kib"):
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
    parser.add_argument("--minutes", type=float, default=600, help="the run is cancelled then")
    parser.add_argument("--steps", type=int, default=2, help="of a round; 1: phases, no messages")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fedward-soak-"))
    one = Soak(rounds=asked.rounds, seed=asked.seed)
    try:
        prepared = study_of(asked.rounds, folder, steps=asked.steps)
        facts = soak(prepared, one, folder, minutes=asked.minutes)
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
    kept = ("committed_once", "ledger_equals_journal", "no_charge_unasked", "charged_once")
    good = all(facts[name] for name in kept)
    raise SystemExit(not good or facts["left_processes"] > 0 or facts["left_temporary_files"] > 0)


if __name__ == "__main__":
    main()
