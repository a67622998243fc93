"""A model above 4 MiB from study.toml through real processes: its bytes go beside the messages."""

import csv
import json
from pathlib import Path

import pytest

from fedward_common.channel.blobs import INLINE_BYTES
from fedward_common.log.events import Event, read_events
from tests.support.live import program
from tests.support.reachable import let_everybody_read_python, passable_folder

pytestmark = [pytest.mark.federation, pytest.mark.slow]
SITES = ("north", "south")
STUDY = """
id = "large"
title = "A large model, two hospitals"
rounds = 2
local_steps = 1
stream = "{stream}"
quorum = 2
deadline_seconds = 300

[task]
kind = "tabular-classification"

[model]
name = "mlp"
hidden = [1050, 1050]

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
salt = "large"
held_out = 0.3

[[data.columns]]
name = "age"
type = "number"
unit = "years"
low = 0.0
high = 100.0
"""


@pytest.mark.parametrize("stream", ["never", "always"])
def test_model_and_updates_go_as_blobs_and_stand_in_both_journals(stream: str) -> None:
    let_everybody_read_python()
    with passable_folder() as folder:
        text = STUDY.format(stream=stream)
        for site in SITES:
            (folder / site).mkdir()
            with (folder / site / "patients.csv").open("w", newline="") as file:
                table = csv.writer(file)
                table.writerow(["patient_id", "label", "age"])
                table.writerows([f"{site}-{n}", n % 2, 20 + n * 3 % 70] for n in range(24))
            text += f'\n[[sites]]\nid = "{site}"\npatients = 24\n'
        (folder / "study.toml").write_text(text)
        options = [f"--site={site}={folder / site}" for site in SITES]

        out = folder / "out"
        done = program(
            *("fedward-server", "sandbox", folder / "study.toml", *options),
            *("--out", out, "--json"),
            timeout=900,
        )

        assert done.returncode == 0, done.stderr
        assert json.loads((out / "result.json").read_text())["rounds"]["committed"] == 2
        edge = _blobs(out / "coordinator" / "state" / "audit" / "edge.jsonl")
        for site in SITES:
            noted = _blobs(out / "sites" / site / "state" / "audit" / "site.jsonl")
            for ours, theirs in (("in", "out"), ("out", "in")):
                own = [_facts(e) for e in noted if e.fields["direction"] == ours]
                assert len(own) == 2
                assert all(size > INLINE_BYTES for _, size in own)
                assert own == [
                    _facts(e)
                    for e in edge
                    if (e.fields["site"], e.fields["direction"]) == (site, theirs)
                ]
        assert list((out / "coordinator" / "state" / "blobs").iterdir()) == []


def _blobs(log: Path) -> list[Event]:
    return [e for e in read_events(log) if e.fields.get("route") == "blob"]


def _facts(event: Event) -> tuple[str, int]:
    return event.fields["sha256"], event.fields["bytes"]
