"""The audit on networks other than the MLP: healthy studies pass, the three planted bugs are found.

Planted: half the noise, a clip of three times C, and a loss of shape [records, 1]. Sources are
repeatable, so that every test passes always or never.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from fedward_client.audit import AuditPorts, AuditReport, audit_study
from fedward_client.training import trainer as trainer_module
from fedward_client.training.patient_dp.engine import PatientDpEngine
from fedward_client.training.patient_dp.plan import PatientTensors
from fedward_client.training.patient_dp.sampling import Draw
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.ids import SiteId
from fedward_common.study.spec import StudySpec
from tests.support.clinical import clinical, measured
from tests.support.image_studies import SIDE, image_study
from tests.support.multimodal import multimodal_study, survival_study
from tests.support.naive_dp import Repeatable
from tests.support.studies import make_data, make_dp, make_spec

TIME = {"column": "days", "event_column": "dead", "longest_days": 4000.0}
NUMBER = {"column": "stage", "unit": "stages", "low": 0.0, "high": 4.0}
SHORT = {"rounds": 2, "local_steps": 2, "dp": make_dp(steps=4), "releases": []}


def series(cell: str) -> StudySpec:
    weight = measured(
        "weight",
        "LOINC:29463-7",
        unit="kg",
        aggregation="sequence",
        window=None,
        missing="fill",
    )
    data = clinical(features=[weight, {"type": "sex"}], grid={"step_hours": 24.0, "steps": 3})
    model = {"name": cell, "hidden": [4], "steps": 3}
    return make_spec(**SHORT, task={"kind": "timeseries-classification"}, model=model, data=data)


def survival(likelihood: str, name: str) -> StudySpec:
    cuts = [100.0, 200.0, 400.0]
    return make_spec(
        **SHORT,
        task={"kind": "survival", "likelihood": likelihood, "cuts": cuts, "horizon_days": 200.0},
        model={"name": name, "hidden": [4], "outputs": 3},
        data=make_data(label=TIME),
    )


def images(**model: Any) -> StudySpec:
    dp = make_dp(steps=4) | {"max_records_per_patient": 4}
    named = {"name": "cnn", "shape": [1, SIDE, SIDE], "hidden": [4, 8]} | model
    return image_study(**(SHORT | {"dp": dp}), model=named)


@cache
def study(name: str) -> StudySpec:
    match name:
        case "cnn":
            return images()
        case "cnn with levers":
            levers = {"training": {"learning_rate": 0.5, "frozen": ["blocks.1."]}}
            levers["training"]["jitter"] = {"copies": 2, "scale": 0.1, "shift": 1}
            adapters = {"rank": 1, "layers": ["blocks.4"]}
            plain = images(weight_standardisation=True, lora=adapters).model_dump()
            plain["training"] = levers["training"]
            plain["dp"]["clipping"] = "auto-s"
            return StudySpec.model_validate(plain)
        case "resnet18":
            return images(name="resnet18", hidden=[])
        case "lstm" | "gru":
            return series(name)
        case "whole patients":
            dp = make_dp(steps=4) | {"max_records_per_patient": 4}
            return multimodal_study(**(SHORT | {"dp": dp}), how="attention")
        case "whole patients' survival":
            dp = make_dp(steps=4) | {"max_records_per_patient": 4}
            return survival_study(**(SHORT | {"dp": dp}))
        case "variational":
            return make_spec(
                **SHORT,
                task={"kind": "autoencoder"},
                model={"name": "variational-autoencoder", "hidden": [4], "shape": [2]},
                data=make_data(label=None),
            )
        case "regression":
            data = make_data(label=NUMBER)
            model = {"name": "mlp", "hidden": [4]}
            return make_spec(**SHORT, task={"kind": "tabular-regression"}, model=model, data=data)
        case "hazard":
            return survival("discrete-hazard", "mlp")
        case _:
            return survival("proportional-hazards", "proportional-hazards")


def audit(name: str, **changes: Any) -> AuditReport:
    ports = AuditPorts(**({"sampling": Repeatable(4), "noise": Repeatable(5)} | changes))
    chosen = study(name)
    return audit_study(
        chosen,
        SiteId(chosen.sites[0].id),
        flags=PerformanceFlags(backend="loop"),
        noise_steps=16,
        canaries=not changes,
        ports=ports,
    )


def failed(report: AuditReport) -> set[str]:
    return {finding.name for finding in report.findings if not finding.passed}


def measured_of(report: AuditReport, name: str) -> float:
    return next(finding.measured for finding in report.findings if finding.name == name)


@pytest.mark.parametrize(
    "name",
    [
        *("cnn", "lstm", "cox", "whole patients", "whole patients' survival"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "cnn with levers",
                "gru",
                "regression",
                "hazard",
                "resnet18",
                "variational",
            )
        ),
    ],
)
def test_a_healthy_study_passes_all_three_layers(name: str) -> None:
    report = audit(name)

    assert failed(report) == set()
    assert {1, 2, 3} == {finding.layer for finding in report.findings}
    assert measured_of(report, "add-or-remove-one") == pytest.approx(1.0, abs=0.03)
    assert measured_of(report, "loader-range") == 1.0


class HalfNoiseEngine(PatientDpEngine):
    """Adds half the noise that its plan says."""

    def _draw_noise(self, device: torch.device) -> torch.Tensor:
        return 0.5 * super()._draw_noise(device)


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


class ColumnLossTask:
    """A task whose loss has the shape [records, 1]."""

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


planted_in = pytest.mark.parametrize("name", ["cnn", "lstm"])


def plant(monkeypatch: pytest.MonkeyPatch, engine: type[PatientDpEngine]) -> Any:
    monkeypatch.setattr(trainer_module, "PatientDpEngine", engine)
    return engine


@planted_in
def test_noise_halved_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    report = audit(name, engine=plant(monkeypatch, HalfNoiseEngine))

    assert {"noise-scale", "block-noise"} <= failed(report)


@planted_in
def test_a_clip_of_three_times_c_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    report = audit(name, engine=plant(monkeypatch, TripleClipEngine))

    assert {"add-or-remove-one", "replace-one", "block-clip"} <= failed(report)
    assert measured_of(report, "add-or-remove-one") > 2.0


@planted_in
def test_a_loss_of_shape_b_1_is_refused_with_the_reason(name: str) -> None:
    report = audit(name, trainer=ColumnLossTrainer)

    assert failed(report) == {"model-and-loss"}
    assert "expected one number for each record" in report.findings[-1].unit
