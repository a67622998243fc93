"""The audit passes a healthy study and fails a broken one, with the finding that names the bug.

Bugs are planted by ports, by a broken engine or by a broken trainer. False alarms: the healthy
tests on real randomness fail by chance with probability below 1e-4 each (`AuditReport.false_alarm`,
8.4e-5). All other tests use repeatable sources, so that they pass always or never.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedward_client.audit import AuditPorts, AuditReport, audit_study
from fedward_client.audit.made_up_rows import load_rows
from fedward_client.audit.sensitivity import Loader
from fedward_client.training import trainer as trainer_module
from fedward_client.training.patient_dp.back_end import Chunk
from fedward_client.training.patient_dp.engine import PatientDpEngine
from fedward_client.training.patient_dp.plan import PatientTensors
from fedward_client.training.patient_dp.sampling import Draw, chunks
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.ids import SiteId
from fedward_common.privacy.randomness import Float64Array
from fedward_common.study.encoding import PatientRecords, Row
from fedward_common.study.spec import StudySpec
from tests.support.naive_dp import Repeatable
from tests.support.studies import SITES, load_example, make_dp, make_spec

SITE = SiteId(SITES[0])
STEPS = 32
both_back_ends = pytest.mark.parametrize("backend", ["opacus", "loop"])


def make_study(**changes: Any) -> StudySpec:
    """An MLP of 57 parameters on patients of up to four records."""
    values = {"model": {"name": "mlp", "hidden": [8]}, "dp": make_dp(max_records_per_patient=4)}
    return make_spec(**(values | changes))


def make_ports(seed: int = 0, **changes: Any) -> AuditPorts:
    return AuditPorts(
        **({"sampling": Repeatable(2 * seed), "noise": Repeatable(2 * seed + 1)} | changes)
    )


def audit(ports: AuditPorts, *, backend: str = "loop", **changes: Any) -> AuditReport:
    flags = PerformanceFlags(backend=backend)
    return audit_study(make_study(**changes), SITE, flags=flags, noise_steps=STEPS, ports=ports)


def failed(report: AuditReport) -> set[str]:
    return {finding.name for finding in report.findings if not finding.passed}


def measured(report: AuditReport, name: str) -> float:
    return next(finding.measured for finding in report.findings if finding.name == name)


def plant(monkeypatch: pytest.MonkeyPatch, engine: type[PatientDpEngine]) -> AuditPorts:
    """Ports with the broken engine, which the trainer takes as well."""
    monkeypatch.setattr(trainer_module, "PatientDpEngine", engine)
    return make_ports(engine=engine)


@both_back_ends
def test_a_healthy_study_passes_on_the_randomness_that_ships(backend: str) -> None:
    """False alarm: below 1e-4."""
    study = load_example("breast-cancer", noise_multiplier=4.0)
    flags = PerformanceFlags(backend=backend)

    report = audit_study(study, SiteId(study.sites[0].id), flags=flags)

    assert failed(report) == set()
    assert 0 < report.false_alarm < 1e-4


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))]
)
def test_a_healthy_study_passes_again_and_again(seed: int) -> None:
    """And its probes reach the bounds that they check: the measurements are not empty."""
    report = audit(make_ports(seed), backend=("opacus", "loop")[seed % 2])

    assert failed(report) == set()
    assert measured(report, "add-or-remove-one") == pytest.approx(1.0, abs=1e-4)
    assert measured(report, "replace-one") == pytest.approx(2.0, abs=1e-4)
    assert measured(report, "block-clip") == pytest.approx(1.0, abs=1e-9)
    assert measured(report, "block-records") == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "logistic-regression"}, "dp": make_dp()},
        {"dp": make_dp(sampling_probability=1.0, clip_norm=20.0, noise_multiplier=0.3)},
        {
            "aggregation": {"name": "fedprox", "mu": 0.1},
            "training": {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.1},
        },
    ],
)
def test_what_is_post_processing_or_a_plan_of_another_size_raises_no_alarm(
    changes: dict[str, Any],
) -> None:
    report = audit(make_ports(), **changes)

    assert failed(report) == set()


class HalfNoise(Repeatable):
    """A source whose normals have half the standard deviation."""

    def normal(self, count: int) -> Float64Array:
        return 0.5 * super().normal(count)


class HalfNoiseEngine(PatientDpEngine):
    """Adds half the noise that its plan says."""

    def _draw_noise(self, device: torch.device) -> torch.Tensor:
        return 0.5 * super()._draw_noise(device)


@both_back_ends
def test_noise_halved_in_the_source_is_found(backend: str) -> None:
    report = audit(make_ports(noise=HalfNoise(1)), backend=backend)

    assert failed(report) == {"noise-scale", "noise-everywhere", "block-noise"}


def test_noise_halved_in_the_engine_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    report = audit(plant(monkeypatch, HalfNoiseEngine))

    assert failed(report) == {"noise-scale", "noise-everywhere", "block-noise"}
    assert not report.passed


class TripleClipEngine(PatientDpEngine):
    """Clips at three times the clip norm that its noise is made for."""

    def _clipped_sum(
        self, patients: PatientTensors, draw: Draw, into: torch.Tensor | None = None
    ) -> torch.Tensor:
        declared = self.plan
        self.plan = replace(declared, clip_norm=3.0 * declared.clip_norm)
        total = super()._clipped_sum(patients, draw, into)
        self.plan = declared
        return total


@both_back_ends
def test_a_clip_of_three_times_c_is_found(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    report = audit(plant(monkeypatch, TripleClipEngine), backend=backend)

    assert {"add-or-remove-one", "replace-one", "block-clip"} <= failed(report)
    assert measured(report, "add-or-remove-one") == pytest.approx(3.0, abs=1e-3)
    assert measured(report, "block-clip") == pytest.approx(3.0)
    assert not failed(report) & {"noise-scale", "noise-everywhere", "noise-shape"}


class ColumnLossTask:
    """The study's task with a loss of shape [records, 1]."""

    def __init__(self, task: Any) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def losses(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self._task.losses(outputs, labels).unsqueeze(1)


class ColumnLossTrainer(LocalTrainer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._task = ColumnLossTask(self._task)


class ColumnLossEngine(PatientDpEngine):
    """What a loss of shape [B, 1] does to ghost clipping.

    The factors [B] times the losses [B, 1] make [B, B], so that every patient's gradient is
    multiplied by the sum of all factors.
    """

    def _clipped_sum(
        self, patients: PatientTensors, draw: Draw, into: torch.Tensor | None = None
    ) -> torch.Tensor:
        blocks = [torch.zeros((0, self._parameters))]
        for piece in chunks(draw, max_records=1000):
            rows = torch.from_numpy(piece.rows)
            chunk = Chunk(
                features=patients.features[rows],
                labels=patients.labels[rows],
                sizes=torch.from_numpy(piece.sizes),
            )
            blocks += self._back_end.patient_gradients(chunk)
        gradients = torch.nan_to_num(torch.cat(blocks).double(), 0.0, 0.0, 0.0)
        factors = torch.clamp(self.plan.clip_norm / gradients.norm(dim=1), max=1.0)
        return gradients.sum(dim=0) * factors.sum()


@both_back_ends
def test_a_loss_of_shape_b_1_is_refused_with_the_reason(backend: str) -> None:
    report = audit(make_ports(trainer=ColumnLossTrainer), backend=backend)

    assert failed(report) == {"model-and-loss"}
    assert "expected one number for each record" in report.findings[-1].unit


def test_a_loss_of_shape_b_1_that_no_check_stops_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = audit(plant(monkeypatch, ColumnLossEngine))

    assert "add-or-remove-one" in failed(report)
    assert measured(report, "add-or-remove-one") > 3.0


class DrawnNumberEngine(PatientDpEngine):
    """Divides by how many were drawn instead of by the public constant."""

    def _clipped_sum(
        self, patients: PatientTensors, draw: Draw, into: torch.Tensor | None = None
    ) -> torch.Tensor:
        total = super()._clipped_sum(patients, draw, into)
        return total * (self.plan.denominator / max(1, len(draw.sizes)))


class NanEngine(PatientDpEngine):
    """Lets a patient's NaN into the sum."""

    def _clipped_sum(
        self, patients: PatientTensors, draw: Draw, into: torch.Tensor | None = None
    ) -> torch.Tensor:
        total = super()._clipped_sum(patients, draw, into)
        rows = torch.from_numpy(draw.rows)
        return total + 0.0 * patients.labels[rows].sum() + 0.0 * patients.features[rows].sum()


def test_a_mean_over_those_drawn_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    report = audit(plant(monkeypatch, DrawnNumberEngine))

    assert "add-or-remove-one" in failed(report)


def test_a_nan_that_reaches_the_sum_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    report = audit(plant(monkeypatch, NanEngine))

    assert "faulty-patients" in failed(report)
    assert measured(report, "faulty-patients") == np.inf


class OtherPlanTrainer(LocalTrainer):
    """Runs four fifths of the study's noise, and says so."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._plan = replace(self._plan, noise_multiplier=0.8 * self._plan.noise_multiplier)


def test_a_plan_that_is_not_the_studys_is_found() -> None:
    report = audit(make_ports(trainer=OtherPlanTrainer))

    assert {"declared-plan", "noise-scale"} <= failed(report)


class RepeatedNoise(Repeatable):
    """Gives every step the same noise."""

    def normal(self, count: int) -> Float64Array:
        return np.random.default_rng(7).standard_normal(count)


class GapNoise(Repeatable):
    """Leaves one parameter without noise."""

    def normal(self, count: int) -> Float64Array:
        numbers = super().normal(count)
        numbers[count // 2] = 0.0
        return numbers


class CoinNoise(Repeatable):
    """Noise of the right scale and only two values."""

    def normal(self, count: int) -> Float64Array:
        return np.sign(super().normal(count))


class EagerSampling(Repeatable):
    """Draws every patient twice as often as it should."""

    def uniform(self, count: int) -> Float64Array:
        return 0.5 * super().uniform(count)


@pytest.mark.parametrize(
    ("planted", "finding"),
    [
        ({"noise": RepeatedNoise(1)}, "noise-fresh"),
        ({"noise": GapNoise(1)}, "noise-everywhere"),
        ({"noise": CoinNoise(1)}, "noise-shape"),
        ({"sampling": EagerSampling(1)}, "block-sampling"),
    ],
)
def test_a_broken_source_is_found(planted: dict[str, Any], finding: str) -> None:
    report = audit(make_ports(**planted))

    assert finding in failed(report)


def standardising(study: StudySpec, rows: Sequence[Row]) -> PatientRecords:
    """Centres on the mean of the site's own patients, which rules 6 forbids."""
    records = load_rows(study, rows)
    centre = records.features.mean(axis=0) if records.patients else 0.0
    return replace(records, features=(records.features - centre) / 2)


def unclipped(study: StudySpec, rows: Sequence[Row]) -> PatientRecords:
    """Lets numbers outside the study's range through."""
    records = load_rows(study, rows)
    return replace(records, features=3 * records.features)


@pytest.mark.parametrize(
    ("loader", "finding"), [(standardising, "loader-neighbours"), (unclipped, "loader-range")]
)
def test_a_broken_loader_is_found(loader: Loader, finding: str) -> None:
    report = audit(make_ports(loader=loader))

    assert failed(report) == {finding}
