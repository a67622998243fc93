"""A hospital's processes are killed in every exchange of a secret sum, one exchange after another.

Each round completes or is abandoned by name, and every model that comes out is the one that plain
numpy computes from the patients of the sites in its round: nobody else's contribution is in it, and
none of theirs is missing. The noise is so small here that a site more or less cannot hide in it.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fedward_common.arrays import tensors_from_bytes
from fedward_common.ids import SiteId
from fedward_common.models.registry import initial_tensors, model_shapes
from fedward_common.study.encoding import PatientRecords
from fedward_server.adapters.run_files import LOG
from fedward_server.sandbox.federation import Federation
from fedward_server.sandbox.run import Prepared
from tests.support.secure_processes import Ran, changed, prepared_study, run_to_end

VICTIM = SiteId("university")
EXCHANGES = ("train", "advertise", "share", "sign", "unmask")
ROUNDS = 150
CHANGES = {
    "rounds = 20": f"rounds = {ROUNDS}",
    "deadline_seconds = 60": "deadline_seconds = 40",
    # No protection at all: what is tested is the sum.
    "epsilon = 1.5": "noise_multiplier = 0.1",
    "sampling_probability = 0.5": "sampling_probability = 1.0",
    "learning_rate = 2.0": "learning_rate = 0.5",
    "average_last = 4": "average_last = 1",
}
Vector = npt.NDArray[np.float64]


@dataclass(kw_only=True)
class Hunter:
    """Kills the victim's processes as soon as the run's log says that an exchange has begun."""

    log: Path
    federation: Federation
    over: threading.Event = field(default_factory=threading.Event)
    left: list[str] = field(default_factory=lambda: list(EXCHANGES))
    _killed: int = 0

    def hunt(self) -> None:
        for event in self._events():
            fields = event["fields"]
            opened = event["action"] in ("round.opened", "step.opened")
            if not self.left or not opened or fields["kind"] != self.left[0] or fields["round"] < 3:
                continue
            pid = self.federation.processes.get(VICTIM, self._killed)
            if VICTIM in fields["sites"] and pid != self._killed:
                os.kill(pid, signal.SIGKILL)
                self._killed = pid
                self.left.pop(0)

    def _events(self) -> Iterator[dict[str, Any]]:
        with self.log.open(encoding="utf-8") as file:
            line = ""
            while not self.over.is_set():
                line += file.readline()
                if not line.endswith("\n"):
                    time.sleep(0.001)
                    continue
                yield json.loads(line)
                line = ""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Ran]:
    folder = tmp_path_factory.mktemp("losses")
    prepared = prepared_study(folder, changed(CHANGES))
    hunters: list[Hunter] = []

    def watch(federation: Federation, _event: object) -> None:
        if not hunters:
            (log,) = federation.settings.state.glob(f"runs/*/{LOG}")
            hunters.append(Hunter(log=log, federation=federation))
            threading.Thread(target=hunters[0].hunt, daemon=True).start()

    try:
        return prepared, run_to_end(prepared, watch)
    finally:
        for one in hunters:
            one.over.set()


pytestmark = [pytest.mark.federation, pytest.mark.slow]


def lost_in(ran: Ran) -> list[str]:
    """The exchanges in which the victim did not answer, in their order."""
    found, kind = [], ""
    for event in ran.events:
        if event.action in ("round.opened", "step.opened"):
            kind = str(event.fields["kind"])
        elif event.action in ("site.lost", "site.refused") and event.fields["site"] == VICTIM:
            found.append(kind)
    return found


def test_it_is_lost_in_every_exchange_and_each_round_completes_or_is_abandoned_by_name(
    ran: tuple[Prepared, Ran],
) -> None:
    _, one = ran
    ended = [e.fields["round"] for e in one.events if e.action.endswith(("committed", "abandoned"))]

    assert set(lost_in(one)) == set(EXCHANGES)
    assert sorted(ended)[:ROUNDS] == list(range(1, ROUNDS + 1))
    assert one.outcome["status"] == "finished"
    assert one.outcome["committed_rounds"] > ROUNDS - len(EXCHANGES)
    assert all(fields["reason"] for fields in one.of("round.abandoned"))


def test_it_is_back_in_the_sum_after_every_loss(ran: tuple[Prepared, Ran]) -> None:
    _, one = ran
    sites = [len(fields["sites"]) for fields in one.of("round.committed")]
    changes = sum((before, after) == (3, 4) for before, after in pairwise(sites))

    assert changes >= 3  # lost in sign and unmask it is in the sum of that round, not of the next
    assert sites[-1] == 4


def test_every_model_is_that_of_the_patients_of_the_sites_in_its_round(
    ran: tuple[Prepared, Ran],
) -> None:
    prepared, one = ran
    study, training = prepared.study, prepared.copy.training
    shapes = model_shapes(study.model, inputs=30)
    before, without = vector(initial_tensors(study.model, inputs=30)), 0
    for fields in trained_rounds(one):
        path = one.folder / f"round-{fields['round']:05d}.safetensors"
        after = vector(tensors_from_bytes(path.read_bytes(), shapes=shapes))
        sites, noise = fields["sites"], step_noise(prepared, fields["sites"])
        gap = np.abs(after - step(prepared, before, sites)).max() / noise
        assert gap < 7, fields["round"]
        others = [site for site in training if site not in sites]
        if others:
            without += 1
            assert np.abs(after - step(prepared, before, list(training))).max() / noise > 14
        before = after
    assert without > 0


def trained_rounds(one: Ran) -> list[dict[str, Any]]:
    """The committed rounds of training: the evaluation bears the number of the last one."""
    rounds: dict[int, dict[str, Any]] = {}
    for fields in one.of("round.committed"):
        rounds.setdefault(fields["round"], fields)
    return list(rounds.values())


def vector(model: Any) -> Vector:
    return np.append(model["linear.weight"][0], model["linear.bias"]).astype(np.float64)


def step(prepared: Prepared, weights: Vector, sites: list[str]) -> Vector:
    """One plain step over the patients of these sites."""
    study, total, patients = prepared.study, np.zeros_like(weights), 0
    for site in sites:
        total += clipped_sum(prepared.copy.training[SiteId(site)], weights, study.dp.clip_norm)
        patients += study.site(SiteId(site)).patients
    return weights - study.training.learning_rate * total / patients


def clipped_sum(records: PatientRecords, weights: Vector, clip_norm: float) -> Vector:
    features = np.c_[records.features, np.ones(len(records.labels))].astype(np.float64)
    error = 1 / (1 + np.exp(-features @ weights)) - records.labels
    gradients = error[:, None] * features
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    return (gradients * np.minimum(1, clip_norm / norms)).sum(axis=0)


def step_noise(prepared: Prepared, sites: list[str]) -> float:
    """The standard deviation of one weight after a step over these sites."""
    study = prepared.study
    share = study.dp.noise_multiplier * study.dp.clip_norm * study.thresholds.site_noise_factor
    patients = sum(study.site(SiteId(site)).patients for site in sites)
    return study.training.learning_rate * share * np.sqrt(len(sites)) / patients
