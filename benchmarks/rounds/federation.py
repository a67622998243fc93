"""A federation of real processes on this machine, for rounds without training."""

import csv
import math
import subprocess
import sys
from pathlib import Path
from typing import Final

from fedward_common.ids import SiteId
from fedward_common.processes import offline_environment
from fedward_server.sandbox.federation import Federation

PATIENTS: Final = 20
FEATURES: Final = 4
ROOT: Final = Path(__file__).resolve().parents[2]

STUDY: Final = """\
id = "rounds"
title = "Rounds without training"
rounds = {rounds}
local_steps = 1
quorum = {sites}
deadline_seconds = 600
stream = "{stream}"

[task]
kind = "tabular-classification"

[model]
name = "mlp"
hidden = [{width}, {width}]

[dp]
kind = "dp-sgd"
epsilon = 8.0
epsilon_is = "admission"
delta = 2e-4
clip_norm = 0.5
sampling_probability = 0.5
max_records_per_patient = 1

[training]
learning_rate = 1.0

[aggregation]
name = "fedavg"

{entries}
[data]
kind = "tabular"
patient_key = "patient_id"
missing = "drop"

[data.label]
column = "label"
low = 0
high = 1
positive_from = 1

[data.split]
kind = "hash"
salt = "rounds"
held_out = 0.3

{features}
"""
FEATURE: Final = """\
[[data.columns]]
name = "f{number}"
type = "number"
unit = "parts of one"
low = 0.0
high = 1.0
"""


class BenchFederation(Federation):
    """The sandbox's federation with workers that do not train."""

    def start_site(self, name: SiteId) -> None:
        """Starts one site of the benchmark."""
        config = self.layout.sites[name].settings_file
        with (config.parent / "run.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.rounds.sites", "site", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=offline_environment() | {"PYTHONPATH": str(ROOT)},
            )


def width_for(megabytes: float) -> int:
    """The width of two equal hidden layers that make a model of about so many megabytes."""
    numbers = megabytes * 1e6 / 4
    # w^2 + (FEATURES + 7) w numbers: two linear layers, their norms, the output.
    half = (FEATURES + 7) / 2
    return int(math.sqrt(numbers + half * half) - half)


def write_inputs(
    folder: Path, *, sites: int, rounds: int, megabytes: float, stream: str = "never"
) -> tuple[Path, dict[SiteId, Path]]:
    """A study file and a small table of made-up patients per site, under `folder`."""
    names = [SiteId(f"site-{number + 1}") for number in range(sites)]
    folder.mkdir(parents=True, exist_ok=True)
    study = folder / "study.toml"
    study.write_text(
        STUDY.format(
            rounds=rounds,
            sites=sites,
            stream=stream,
            width=width_for(megabytes),
            entries="\n".join(
                f'[[sites]]\nid = "{name}"\npatients = {PATIENTS}\n' for name in names
            ),
            features="\n".join(FEATURE.format(number=number) for number in range(FEATURES)),
        )
    )
    tables = {}
    for name in names:
        tables[name] = folder / name
        tables[name].mkdir(exist_ok=True)
        with (tables[name] / "patients.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["patient_id", "label", *(f"f{n}" for n in range(FEATURES))])
            for row in range(PATIENTS):
                values = [((row * 7 + n * 3) % 11) / 11 for n in range(FEATURES)]
                table.writerow([f"{name}-{row}", row % 2, *values])
    return study, tables
