"""A coordinator that dies at any moment: the study ends as if nothing had been, and pays once."""

import errno
import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from fedward_common.arrays import tensors_from_bytes, tensors_to_bytes
from fedward_common.errors import FedwardError, LedgerError, ProtocolError
from fedward_common.ids import SiteId
from fedward_common.log.events import read_events
from fedward_common.models.averages import ExponentialAverage, TailAverage
from fedward_common.study.spec import FedAdam
from fedward_common.wire import Envelope
from fedward_server.adapters.blob_link import BlobTray
from fedward_server.adapters.run_files import CHECKPOINT, LOG, RunFolder
from fedward_server.aggregation import AdamStep
from fedward_server.fleet import Answer
from fedward_server.progress import Progress
from fedward_server.study_run import StudyResult, StudyRun
from tests.support.federation import FakeFleet, FakeSite
from tests.unit.server.test_study_run import World

ROUNDS = 3
T = TypeVar("T")


class PowerCut(BaseException):
    """The process is gone: no handler of the product catches this."""


class Cuts:
    """Counts the moments at which the world could end, and ends it at one of them."""

    def __init__(self, at: int = -1, *, after: str = "") -> None:
        self.at, self.after, self.seen = at, after, 0

    def moment(self) -> None:
        self.seen += 1
        if self.seen == self.at:
            raise PowerCut

    def around(self, call: Callable[[], T]) -> T:
        self.moment()
        result = call()
        self.moment()
        return result


class CutFolder(RunFolder):
    """A real run folder whose process may end before and after every write."""

    cuts: Cuts

    def emit(self, action: str, **fields: Any) -> None:
        self.cuts.around(lambda: super(CutFolder, self).emit(action, **fields))
        if action == self.cuts.after:
            raise PowerCut

    def checkpoint(self, progress: Progress) -> None:
        self.cuts.around(lambda: super(CutFolder, self).checkpoint(progress))


class CutFleet(FakeFleet):
    """A fleet whose coordinator may end before and after sending and receiving."""

    cuts: Cuts

    def send(self, envelopes: Mapping[SiteId, Envelope]) -> None:
        self.cuts.around(lambda: super(CutFleet, self).send(envelopes))

    def receive(self, *, timeout_seconds: float) -> list[Answer]:
        return self.cuts.around(
            lambda: super(CutFleet, self).receive(timeout_seconds=timeout_seconds)
        )


def drawn(site: FakeSite) -> Callable[[bytes], bytes]:
    """Training with draws of its own for each model; a second training would be the same."""

    def train(model: bytes) -> bytes:
        seed = hashlib.sha256(model + site.name.encode()).digest()
        draws = np.random.default_rng(list(seed))
        return tensors_to_bytes(
            {
                name: (tensor + draws.normal(size=tensor.shape)).astype(np.float32)
                for name, tensor in tensors_from_bytes(model).items()
            }
        )

    return train


class Hospital(World):
    """Four sites that answer once, as the guard makes them, and a run on a real folder."""

    def __init__(self, folder: Path, **changes: object) -> None:
        super().__init__(**{"rounds": ROUNDS, **changes})
        self.folder = folder
        self.offline: set[SiteId] = set()
        for site in self.sites.values():
            site.remembers, site.train = True, drawn(site)

    def attempt(self, cuts: Cuts) -> StudyResult:
        fleet = CutFleet(sites=self.sites, clock=self.clock, offline=self.offline)
        store = CutFolder(self.folder)
        fleet.cuts = store.cuts = cuts
        try:
            return StudyRun(
                study=self.study,
                signed_study=b"signed",
                fleet=fleet,
                clock=self.clock,
                store=store,
                events=store,
            ).run()
        finally:
            store._log.close()

    def actions(self) -> list[tuple[str, int]]:
        return [(e.action, e.fields.get("round", 0)) for e in read_events(self.folder / LOG)]


def slots(hospital: Hospital) -> list[str]:
    digest = hospital.study.digest
    rounds = [f"{digest}/train/{number}" for number in range(1, ROUNDS + 1)]
    return [*rounds, f"{digest}/evaluate/{ROUNDS}"]


def require_same(found: StudyResult, expected: StudyResult) -> None:
    assert found.model.keys() == expected.model.keys()
    for name, tensor in expected.model.items():
        np.testing.assert_array_equal(found.model[name], tensor)
    assert (found.committed_rounds, found.abandoned_rounds) == (ROUNDS, 0)


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_coordinator_killed_at_any_moment_ends_with_the_same_model_and_no_second_charge(
    tmp_path: Path, stride: int
) -> None:
    whole, counting = Hospital(tmp_path / "whole"), Cuts()
    expected = whole.attempt(counting)

    for at in range(1, counting.seen + 1, stride):
        hospital = Hospital(tmp_path / str(at))
        hospital.study, hospital.sites = whole.study, whole.sites
        for site in whole.sites.values():
            site.stored.clear()
            site.charged.clear()
        with pytest.raises(PowerCut):
            hospital.attempt(Cuts(at))
        found = hospital.attempt(Cuts())

        require_same(found, expected)
        assert all(site.charged == slots(hospital) for site in hospital.sites.values())
        committed = [n for action, n in hospital.actions() if action == "round.committed"]
        assert committed == list(range(1, ROUNDS + 1))
        kept = [n for action, n in hospital.actions() if action == "model.checkpoint"]
        assert kept == committed
        assert not list(hospital.folder.glob(".*"))


def test_a_coordinator_whose_disk_is_full_at_any_write_ends_with_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Hospital(tmp_path / "whole")
    expected = whole.attempt(Cuts())
    real, number, full = os.fsync, 0, True
    while full:
        number += 3  # every third write: two of them lie beside each other
        hospital = Hospital(tmp_path / str(number))
        hospital.study, hospital.sites = whole.study, whole.sites
        for site in whole.sites.values():
            site.stored.clear()
            site.charged.clear()
        left = number

        def synced(descriptor: int) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", synced)
        with suppress(FedwardError, OSError):
            hospital.attempt(Cuts())
        full = left <= 0
        monkeypatch.setattr(os, "fsync", real)
        if not full:
            break
        found = hospital.attempt(Cuts())

        require_same(found, expected)
        assert all(site.charged == slots(hospital) for site in hospital.sites.values())
        assert not list(hospital.folder.glob(".*"))

    assert number > 20


def test_a_coordinator_that_dies_again_and_again_still_ends_with_the_same_model(
    tmp_path: Path,
) -> None:
    hospital, other = Hospital(tmp_path / "a"), Hospital(tmp_path / "b")
    other.study, other.sites = hospital.study, hospital.sites
    expected = hospital.attempt(Cuts())
    for site in other.sites.values():
        site.stored.clear()
        site.charged.clear()
    found = None
    deaths = 0

    while found is None:
        try:
            found = other.attempt(Cuts(7 + deaths))
        except PowerCut:
            deaths += 1

    assert deaths > 3
    require_same(found, expected)
    assert all(site.charged == slots(other) for site in other.sites.values())


def test_the_cohort_of_a_round_that_was_under_way_stays_when_a_site_is_away(
    tmp_path: Path,
) -> None:
    """Another cohort would be another key: no site may answer twice (rules 5)."""
    hospital = Hospital(tmp_path)
    with pytest.raises(PowerCut):
        hospital.attempt(Cuts(9))
    first = next(iter(hospital.sites.values()))
    seen = {i.key for i in first.seen if i.round == 1}
    hospital.offline = {first.name}

    hospital.attempt(Cuts())

    again = {i.key for site in hospital.sites.values() for i in site.seen if i.round == 1}
    assert again == seen
    assert len(seen) == 1


def test_an_abandoned_round_stays_abandoned_and_its_number_burnt(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    for site in list(hospital.sites.values())[:2]:
        site.silent_rounds = {1}
    with pytest.raises(PowerCut):
        hospital.attempt(Cuts(after="round.abandoned"))
    for site in hospital.sites.values():
        site.silent_rounds = set()

    result = hospital.attempt(Cuts())

    assert (result.committed_rounds, result.abandoned_rounds) == (ROUNDS - 1, 1)
    assert [n for action, n in hospital.actions() if action == "round.abandoned"] == [1]


def test_a_refusal_for_good_is_remembered(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    refusing = next(iter(hospital.sites.values()))
    refusing.refusal = "budget"
    with pytest.raises(PowerCut):
        hospital.attempt(Cuts(after="round.committed"))

    result = hospital.attempt(Cuts())

    assert result.refusals == {refusing.name: "budget"}
    assert len(refusing.seen) == 1


def test_a_damaged_checkpoint_is_not_believed(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    hospital.attempt(Cuts())
    data = bytearray((tmp_path / CHECKPOINT).read_bytes())
    data[-1] ^= 1
    (tmp_path / CHECKPOINT).write_bytes(data)

    with pytest.raises(LedgerError, match="expected a whole one"):
        hospital.attempt(Cuts())


def test_a_large_model_stands_once_on_disk_and_is_believed_by_its_digest(tmp_path: Path) -> None:
    tray, folder = BlobTray(tmp_path / "blobs", inline=8), RunFolder(tmp_path / "run")
    model = tray.keep({"w": np.arange(64, dtype=np.float32)}).tensors
    folder.checkpoint(Progress(study="0" * 64, next_round=2, committed=1, model=model))
    named = tmp_path / "run" / "round-00001.safetensors"

    kept = folder.resume("0" * 64).progress

    np.testing.assert_array_equal(kept.model["w"], model["w"])
    assert (tmp_path / "run" / CHECKPOINT).stat().st_size < 64 * 4 + 400
    assert named.read_bytes() == tray.keep(model).octets
    for damaged in (named.read_bytes()[:-1] + b"x", None):
        named.unlink() if damaged is None else named.write_bytes(damaged)
        with pytest.raises(LedgerError, match="expected a whole one"):
            folder.resume("0" * 64)


def test_a_log_that_was_put_back_is_not_believed(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    hospital.attempt(Cuts())
    (tmp_path / LOG).unlink()

    with pytest.raises(LedgerError, match="expected the events that the checkpoint follows"):
        hospital.attempt(Cuts())


def test_a_checkpoint_of_another_study_is_not_believed(tmp_path: Path) -> None:
    Hospital(tmp_path).attempt(Cuts())

    with pytest.raises(ProtocolError, match="another's"):
        Hospital(tmp_path).attempt(Cuts())


@pytest.mark.parametrize("make", [lambda: TailAverage(3), lambda: ExponentialAverage(0.5)])
def test_an_average_goes_on_where_it_was(make: Callable[[], Any]) -> None:
    models = [{"w": np.full(2, n, dtype=np.float32)} for n in range(5)]
    whole, first, second = make(), make(), make()
    for model in models:
        whole.add(model)
    for model in models[:3]:
        first.add(model)
    progress = Progress(study="0" * 64, model=models[2], average=first.state())
    kept = Progress.from_bytes(progress.to_bytes())

    second.restore(kept.average, models[2])
    for model in models[3:]:
        second.add(model)

    np.testing.assert_array_equal(second.mean()["w"], whole.mean()["w"])


def test_fedadam_goes_on_with_its_moments() -> None:
    spec = FedAdam(learning_rate=0.5)
    current = {"w": np.zeros(3, dtype=np.float32)}
    mean = {"w": np.array([1, 2, 3], dtype=np.float32)}
    whole, first, second = AdamStep(spec), AdamStep(spec), AdamStep(spec)
    expected = whole.step(whole.step(current, mean), mean)
    half = first.step(current, mean)
    kept = Progress.from_bytes(Progress(study="0" * 64, optimiser=first.state()).to_bytes())

    second.restore(kept.optimiser)

    np.testing.assert_array_equal(second.step(half, mean)["w"], expected["w"])


STOPPING = {
    "kind": "binned-scores",
    "bins": 4,
    "noise_multiplier": 3.0,
    "early_stopping": {"every": 1, "validations": 5, "patience": 2},
}


def stopping(folder: Path) -> Hospital:
    """Six rounds and validations whose counts never get better: it stops after the third."""
    hospital = Hospital(folder, rounds=6, releases=[STOPPING])
    for site in hospital.sites.values():
        site.counts = [[400.0, 100.0, 50.0, 20.0], [20.0, 50.0, 100.0, 400.0]]
    return hospital


def test_training_ends_early_where_its_validations_gain_nothing(tmp_path: Path) -> None:
    hospital = stopping(tmp_path)

    result = hospital.attempt(Cuts())

    assert (result.committed_rounds, result.abandoned_rounds, result.stopped_after) == (3, 0, 3)
    assert [number for number, _ in result.validations] == [1, 2, 3]
    assert all(auc is not None and auc > 0.8 for _, auc in result.validations)
    assert ("run.stopped-early", 3) in hospital.actions()
    assert len(result.counts) == 4


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_study_that_stops_early_does_so_whenever_its_coordinator_was_killed(
    tmp_path: Path, stride: int
) -> None:
    whole, counting = stopping(tmp_path / "whole"), Cuts()
    expected = whole.attempt(counting)
    digest = whole.study.digest
    paid = [f"{digest}/{kind}/{n}" for n in (1, 2, 3) for kind in ("train", "evaluate")]

    for at in range(1, counting.seen + 1, stride):
        hospital = stopping(tmp_path / str(at))
        hospital.study, hospital.sites = whole.study, whole.sites
        for site in whole.sites.values():
            site.stored.clear()
            site.charged.clear()
        with pytest.raises(PowerCut):
            hospital.attempt(Cuts(at))
        found = hospital.attempt(Cuts())

        for name, tensor in expected.model.items():
            np.testing.assert_array_equal(found.model[name], tensor)
        assert (found.validations, found.stopped_after) == (expected.validations, 3)
        assert (found.committed_rounds, found.abandoned_rounds) == (3, 0)
        assert all(s.charged == [*paid, f"{digest}/evaluate/6"] for s in hospital.sites.values())
        kept = [n for action, n in hospital.actions() if action == "model.checkpoint"]
        assert kept == [1, 2, 3]


def test_a_validation_below_its_quorum_says_nothing_and_training_goes_on(tmp_path: Path) -> None:
    hospital = stopping(tmp_path)
    for site in list(hospital.sites.values())[:2]:
        site.silent_rounds = {2}

    result = hospital.attempt(Cuts())

    assert result.validations[1] == (2, None)
    assert (result.committed_rounds, result.abandoned_rounds, result.stopped_after) == (3, 1, 4)
