"""The audit of clinical studies: made-up patients of events, and bugs that it names."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedward_client.audit import AuditPorts, audit_study
from fedward_client.audit.clinical_rows import KINDS, clinical_rows, load_clinical
from fedward_client.audit.sensitivity import load_rows, probe_loader
from fedward_client.training.trainer import PerformanceFlags
from fedward_common.ids import SiteId
from fedward_common.study.clinical import ClinicalData
from fedward_common.study.encoding import PatientRecords, Row
from fedward_common.study.spec import StudySpec
from tests.support.clinical import clinical, measured
from tests.support.naive_dp import Repeatable
from tests.support.studies import make_spec

OUTCOMES: dict[str, dict[str, Any]] = {
    "event": clinical()["outcome"],
    "death": {"kind": "event", "death": True, "window": {"to_days": 30.0}},
    "value": {
        "kind": "value", "concepts": ["LOINC:2339-0"], "unit": "mg/dL",
        "window": {"to_days": 30.0}, "aggregation": "last", "low": 50.0, "high": 300.0,
    },
    "time": {
        "kind": "time-to-event", "concepts": ["SNOMED:44054006"],
        "follow_up": ["LOINC:8302-2"], "window": {"to_days": 3650.0},
    },
}  # fmt: skip


def sequence_study() -> StudySpec:
    weight = measured(
        "weight", "LOINC:29463-7", unit="kg", aggregation="sequence", window=None, missing="fill"
    )
    return make_spec(
        task={"kind": "timeseries-classification"},
        model={"name": "gru", "hidden": [4], "steps": 3},
        data=clinical(features=[weight, {"type": "sex"}], grid={"step_hours": 24.0, "steps": 3}),
    )


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES)
def test_made_up_patients_are_in_the_cohort_with_both_outcomes(outcome: dict[str, Any]) -> None:
    schema = ClinicalData.model_validate(clinical(outcome=outcome))
    groups = clinical_rows(schema)

    records = load_clinical(schema, [row for group in groups for row in group])

    # Words for a number are a broken row; a value that is no number is one, too.
    assert len(groups) == len(KINDS)
    assert records.patients >= 8
    assert len(set(np.sign(records.labels - records.labels.mean()).tolist())) == 2
    assert np.abs(records.features).max() <= 1.0


@pytest.mark.parametrize("kind", ["numbers", pytest.param("sequences", marks=pytest.mark.slow)])
def test_a_healthy_clinical_study_passes(kind: str) -> None:
    study = make_spec(data=clinical()) if kind == "numbers" else sequence_study()
    ports = AuditPorts(sampling=Repeatable(2), noise=Repeatable(3))

    report = audit_study(
        study, SiteId("north"), flags=PerformanceFlags(backend="loop"), noise_steps=32, ports=ports
    )

    assert {finding.name for finding in report.findings if not finding.passed} == set()


def centred(study: StudySpec, rows: Sequence[Row]) -> PatientRecords:
    """A loader that subtracts the table's own mean, which rule 6 forbids."""
    records = load_rows(study, rows)
    if not records.patients:
        return records
    return replace(records, features=records.features - records.features.mean(axis=0))


def unclipped(study: StudySpec, rows: Sequence[Row]) -> PatientRecords:
    """A loader that lets values beyond the study's range through."""
    records = load_rows(study, rows)
    return replace(records, features=records.features * np.float32(3.0))


@pytest.mark.parametrize(
    ("loader", "finding"), [(centred, "loader-neighbours"), (unclipped, "loader-range")]
)
def test_a_broken_clinical_loader_is_named(loader: Any, finding: str) -> None:
    findings, _ = probe_loader(make_spec(data=clinical()), loader)

    assert finding in {one.name for one in findings if not one.passed}
