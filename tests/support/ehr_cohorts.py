"""Made-up patients for end-to-end EHR studies: tables, and FHIR bundles of vital signs."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.studies import write_table

START = datetime(2024, 1, 10, 8, 30, tzinfo=UTC)
INDEX, PULSE, SYSTOLIC, SEPSIS = "11450-4", "8867-4", "8480-6", "91302008"


def table(path: Path, *, seed: int, patients: int = 60) -> Path:
    """patients.csv with age, marker, sex, a value and a time that both depend on the marker."""
    draws = np.random.default_rng(seed)
    rows = []
    for number in range(patients):
        marker, age = draws.uniform(-1, 1), draws.uniform(30, 90)
        days = float(np.clip(draws.exponential(900 * np.exp(-1.5 * marker)), 1, 3000))
        followed = float(draws.uniform(200, 3000))
        rows.append(
            {
                "patient_id": f"p{number}",
                "age": f"{age:.1f}",
                "marker": f"{marker:.3f}",
                "sex": "f" if number % 2 else "m",
                "score": f"{50 + 30 * marker + draws.normal(0, 5):.2f}",
                "days": f"{min(days, followed):.1f}",
                "dead": str(int(days <= followed)),
                "split": "test" if number % 2 else "train",
            }
        )
    return write_table(path, rows)


def bundles(*, seed: int, patients: int = 60) -> list[dict[str, Any]]:
    """One FHIR bundle per patient: hours of pulse and pressure, and sepsis where both run away."""
    draws = np.random.default_rng(seed)
    return [_bundle(f"s{seed}-{number}", number % 2 == 0, draws) for number in range(patients)]


def _bundle(patient: str, ill: bool, draws: np.random.Generator) -> dict[str, Any]:
    resources: list[dict[str, Any]] = [
        {
            "resourceType": "Patient",
            "id": patient,
            "birthDate": f"{int(draws.integers(1940, 1990))}-03-04",
            "gender": "female" if draws.random() < 0.5 else "male",
        },
        _coded(patient, "Observation", "http://loinc.org", INDEX, START),
    ]
    for hour in range(8):
        time = START - timedelta(hours=7.5 - hour)
        drift = hour * 4.0 if ill else 0.0
        for code, level, unit in (
            (PULSE, 80 + drift, "/min"),
            (SYSTOLIC, 120 - drift, "mm[Hg]"),
        ):
            if draws.random() < 0.8:
                one = _coded(patient, "Observation", "http://loinc.org", code, time)
                value = round(float(level + draws.normal(0, 4)), 1)
                resources.append(one | {"valueQuantity": {"value": value, "code": unit}})
    if ill:
        after = START + timedelta(days=2)
        resources.append(_coded(patient, "Condition", "http://snomed.info/sct", SEPSIS, after))
    return {"resourceType": "Bundle", "entry": [{"resource": one} for one in resources]}


def _coded(patient: str, kind: str, system: str, code: str, time: datetime) -> dict[str, Any]:
    moment = "effectiveDateTime" if kind == "Observation" else "onsetDateTime"
    return {
        "resourceType": kind,
        "subject": {"reference": f"urn:uuid:{patient}"},
        "code": {"coding": [{"system": system, "code": code}]},
        moment: time.isoformat(),
    }
