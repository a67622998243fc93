"""Clinical schemas for tests: small, made up, and the same in every test."""

from typing import Any

from fedward_common.study.clinical import ClinicalData
from tests.support.studies import make_spec

BEFORE = {"from_days": -365.0, "to_days": 0.0}
LONG_BEFORE = {"from_days": -3650.0, "to_days": 0.0}


def measured(name: str, *concepts: str, **changes: Any) -> dict[str, Any]:
    """A feature of one concept's last value, filled where it is missing."""
    feature = {
        "type": "measured",
        "name": name,
        "concepts": list(concepts),
        "unit": "mg/dL",
        "window": BEFORE,
        "aggregation": "last",
        "low": 0.0,
        "high": 400.0,
        "missing": "indicator",
        "fill": 100.0,
    }
    return feature | changes


def clinical(**changes: Any) -> dict[str, Any]:
    """Synthea: glucose, blood pressure, age and history at a patient's first lipid test."""
    data = {
        "kind": "clinical",
        "cohort": {
            "index": {"concepts": ["LOINC:2093-3"]},
            "include": [{"concepts": ["LOINC:8302-2"], "window": LONG_BEFORE}],
            "exclude": [{"concepts": ["SNOMED:22298006"], "window": LONG_BEFORE}],
            "min_age": 18.0,
        },
        "features": [
            {"type": "age", "name": "age", "low": 18.0, "high": 100.0},
            {"type": "sex"},
            # In mmol/L on purpose: every source has mg/dL.
            measured(
                "glucose",
                "LOINC:2339-0",
                unit="mmol/L",
                molar_mass=180.156,
                low=2.0,
                high=20.0,
                fill=5.0,
            ),
            measured("systolic", "LOINC:8480-6", unit="kPa", low=8.0, high=30.0, fill=16.0,
                     aggregation="mean"),
            measured("weight-slope", "LOINC:29463-7", unit="kg", low=-1.0, high=1.0, fill=0.0,
                     aggregation="slope", window=LONG_BEFORE),
            measured("visits", "LOINC:8302-2", unit="1", low=0.0, high=20.0, aggregation="count",
                     missing="fill", fill=0.0),
            {"type": "present", "name": "prediabetes", "concepts": ["SNOMED:15777000"],
             "window": LONG_BEFORE},
            {"type": "present", "name": "hypertension", "concepts": ["SNOMED:38341003"],
             "window": LONG_BEFORE},
        ],
        "outcome": {
            "kind": "event",
            "concepts": ["SNOMED:44054006", "SNOMED:15777000"],
            "death": True,
            "window": {"from_days": 0.0, "to_days": 3650.0},
            "excluded_before": False,
        },
        "split": {"kind": "hash", "salt": "synthea", "held_out": 0.3},
    }  # fmt: skip
    return data | changes


def schema(**changes: Any) -> ClinicalData:
    """`clinical` as a value."""
    return ClinicalData.model_validate(clinical(**changes))


def clinical_spec(**changes: Any) -> Any:
    """A study on `clinical` data; `changes` replace top-level keys of the study."""
    return make_spec(**({"data": clinical()} | changes))
