"""Made-up records as FHIR R4 ndjson, and the same events as the two tables of a sandbox."""

import csv
import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from fedward_common.study.event_rows import EVENTS, PATIENTS
from fedward_server.cohort.people import Patient
from fedward_server.sandbox.clinical import EVENTS_TABLE, PATIENTS_TABLE

ADMISSION: Final = "SNOMED:32485007"
SEPSIS: Final = "SNOMED:91302008"
CRP: Final = "LOINC:1988-5"
CREATININE: Final = "LOINC:2160-0"
FHIR: Final = "fhir"
_SYSTEMS: Final = {"SNOMED": "http://snomed.info/sct", "LOINC": "http://loinc.org"}
_TEST: Final = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ActReason",
    "code": "HTEST",
    "display": "test health data",
}
Row = tuple[str, datetime, float | None, str]
"""(concept, time, value, unit)"""


def write_records(folder: Path, patients: Sequence[Patient]) -> None:
    """Writes `fhir/*.ndjson`, every resource tagged as test data, and both tables into `folder`."""
    (folder / FHIR).mkdir(parents=True)
    kinds: dict[str, list[dict[str, Any]]] = {}
    for patient in patients:
        for resource in _resources(patient):
            kinds.setdefault(resource["resourceType"], []).append(resource)
    for kind, resources in kinds.items():
        lines = "".join(f"{json.dumps(one, separators=(',', ':'))}\n" for one in resources)
        (folder / FHIR / f"{kind}.ndjson").write_text(lines, encoding="utf-8")
    _write(
        folder / PATIENTS_TABLE,
        PATIENTS,
        [[one.id, one.birth.isoformat(), _sex(one), ""] for one in patients],
    )
    _write(
        folder / EVENTS_TABLE,
        EVENTS,
        [
            [one.id, concept, time.isoformat(), "" if value is None else str(value), unit]
            for one in patients
            for concept, time, value, unit in _events(one)
        ],
    )


def _events(patient: Patient) -> Iterator[Row]:
    before = patient.admitted - timedelta(hours=3)
    yield ADMISSION, patient.admitted, None, ""
    yield CRP, before, patient.crp, "mg/L"
    yield CREATININE, before, patient.creatinine, "mg/dL"
    if patient.ill:
        yield SEPSIS, patient.admitted + timedelta(days=4), None, ""


def _resources(patient: Patient) -> Iterator[dict[str, Any]]:
    yield {
        "resourceType": "Patient",
        "id": patient.id,
        "meta": {"tag": [_TEST]},
        "birthDate": patient.birth.isoformat(),
        "gender": _sex(patient),
    }
    for number, (concept, time, value, unit) in enumerate(_events(patient)):
        system, _, code = concept.partition(":")
        concept_of = {"coding": [{"system": _SYSTEMS[system], "code": code}]}
        moment = time.isoformat()
        one: dict[str, Any] = {
            "id": f"{patient.id}-{number}",
            "meta": {"tag": [_TEST]},
            "subject": {"reference": f"Patient/{patient.id}"},
        }
        if concept == ADMISSION:
            yield {
                "resourceType": "Encounter",
                **one,
                "status": "finished",
                "class": {"code": "IMP"},
                "type": [concept_of],
                "period": {"start": moment},
            }
        elif concept == SEPSIS:
            yield {"resourceType": "Condition", **one, "code": concept_of, "onsetDateTime": moment}
        else:
            yield {
                "resourceType": "Observation",
                **one,
                "status": "final",
                "code": concept_of,
                "effectiveDateTime": moment,
                "valueQuantity": {
                    "value": value,
                    "unit": unit,
                    "system": "http://unitsofmeasure.org",
                    "code": unit,
                },
            }


def _sex(patient: Patient) -> str:
    return "female" if patient.female else "male"


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
