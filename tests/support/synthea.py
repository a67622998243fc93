"""The Synthea patients of `synthea_fhir_r4` as FHIR, as tables and as an OMOP database.

The converters below are written apart from the product's readers: they know FHIR from its
specification and share no code with `fedward_client.data`.
"""

import csv
import json
import lzma
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

DATA = Path(__file__).parents[3] / "shared" / "data" / "synthea_fhir_r4" / "sites"
SYSTEM_NAMES = {"http://loinc.org": "LOINC", "http://snomed.info/sct": "SNOMED"}
CODED = {"Observation": "code", "Condition": "code", "Procedure": "code"}
OMOP_DOMAIN = {
    "Observation": ("measurement", "measurement", "measurement_date", "measurement_datetime"),
    "Condition": (
        "condition_occurrence",
        "condition",
        "condition_start_date",
        "condition_start_datetime",
    ),
    "Procedure": ("procedure_occurrence", "procedure", "procedure_date", "procedure_datetime"),
}


def bundles(site: str) -> list[dict[str, Any]]:
    """The bundles of one hospital, one per patient."""
    with lzma.open(DATA / f"{site}.ndjson.xz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def rows(found: Sequence[dict[str, Any]]) -> tuple[list[list[str]], list[list[Any]]]:
    """Patients [id, birth, sex, death], events [id, type, system, code, time, value, unit]."""
    patients, events = [], []
    for bundle in found:
        for entry in bundle["entry"]:
            resource = entry["resource"]
            if resource["resourceType"] == "Patient":
                patients.append(
                    [
                        resource["id"],
                        resource["birthDate"],
                        resource["gender"],
                        resource.get("deceasedDateTime", ""),
                    ]
                )
            elif resource["resourceType"] in CODED:
                events += _events(resource)
    return patients, events


def _events(resource: dict[str, Any]) -> Iterator[list[Any]]:
    patient = resource["subject"]["reference"].removeprefix("urn:uuid:")
    time = (
        resource.get("effectiveDateTime")
        or resource.get("onsetDateTime")
        or resource.get("performedDateTime")
        or resource["performedPeriod"]["start"]
    )
    for part in (resource, *resource.get("component", [])):
        quantity = part.get("valueQuantity", {})
        for coding in part["code"]["coding"]:
            system = SYSTEM_NAMES.get(coding["system"])
            if system is not None:
                yield [
                    patient,
                    resource["resourceType"],
                    system,
                    coding["code"],
                    time,
                    quantity.get("value"),
                    quantity.get("code"),
                ]


def write_bulk(found: Sequence[dict[str, Any]], folder: Path) -> Path:
    """A bulk export: one ndjson file per resource type, references as `Patient/id`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {}
    for bundle in found:
        for entry in bundle["entry"]:
            kind = entry["resource"]["resourceType"]
            text = json.dumps(entry["resource"]).replace("urn:uuid:", "Patient/")
            lines.setdefault(kind, []).append(text)
    for kind, texts in lines.items():
        (folder / f"{kind}.ndjson").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return folder


def write_bundles(found: Sequence[dict[str, Any]], folder: Path) -> Path:
    """One bundle per file."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, bundle in enumerate(found):
        (folder / f"{number:04d}.json").write_text(json.dumps(bundle), encoding="utf-8")
    return folder


def write_tables(found: Sequence[dict[str, Any]], folder: Path) -> tuple[Path, Path]:
    """The two CSV tables of events."""
    folder.mkdir(parents=True, exist_ok=True)
    patients, events = rows(found)
    people, coded = folder / "patients.csv", folder / "events.csv"
    with people.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["patient_id", "birth_date", "sex", "death_date"], *patients])
    with coded.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["patient_id", "concept", "time", "value", "unit"])
        for patient, _, system, code, time, value, unit in events:
            shown = "" if value is None else repr(float(value))
            writer.writerow([patient, f"{system}:{code}", time, shown, unit or ""])
    return people, coded


def write_omop(found: Sequence[dict[str, Any]], url: str) -> str:
    """An OMOP CDM database with its own concept ids; the wall clock of UTC as its times."""
    patients, events = rows(found)
    codes = sorted({(e[2], e[3]) for e in events} | {("UCUM", e[6]) for e in events if e[6]})
    concept = {pair: 2_000_000_000 + number for number, pair in enumerate(codes)}
    numbers = {patient[0]: number for number, patient in enumerate(patients, start=1)}
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        _create(connection)
        _insert(
            connection,
            "concept",
            [
                {"concept_id": number, "vocabulary_id": system, "concept_code": code}
                for (system, code), number in concept.items()
            ],
        )
        _insert(connection, "person", [_person(p, numbers[p[0]]) for p in patients])
        deaths = [
            {"person_id": numbers[p[0]], "death_date": p[3][:10], "death_datetime": _local(p[3])}
            for p in patients
            if p[3]
        ]
        _insert(connection, "death", deaths)
        for kind, domain in OMOP_DOMAIN.items():
            chosen = [e for e in events if e[1] == kind]
            _insert(connection, domain[0], [_row(e, domain, numbers, concept) for e in chosen])
    engine.dispose()
    return url


def _person(patient: list[str], number: int) -> dict[str, Any]:
    year, month, day = (int(part) for part in patient[1].split("-"))
    return {
        "person_id": number,
        "gender_concept_id": {"female": 8532, "male": 8507}[patient[2]],
        "year_of_birth": year,
        "month_of_birth": month,
        "day_of_birth": day,
        "person_source_value": patient[0],
    }


def _row(
    event: list[Any],
    domain: tuple[str, str, str, str],
    numbers: dict[str, int],
    concept: dict[tuple[str, str], int],
) -> dict[str, Any]:
    patient, kind, system, code, time, value, unit = event
    row = {
        "person_id": numbers[patient],
        f"{domain[1]}_concept_id": concept[system, code],
        f"{domain[1]}_source_concept_id": concept[system, code],
        domain[2]: time[:10],
        domain[3]: _local(time),
    }
    if kind == "Observation":
        row |= {
            "value_as_number": value,
            "unit_concept_id": concept["UCUM", unit] if unit else None,
            "unit_source_value": unit,
        }
    return row


def _local(time: str) -> str:
    assert time.endswith("+00:00"), time
    return time.removesuffix("+00:00").replace("T", " ")


def _create(connection: sa.Connection) -> None:
    tables = {
        "concept": "concept_id integer, vocabulary_id text, concept_code text",
        "person": "person_id integer, gender_concept_id integer, year_of_birth integer, "
        "month_of_birth integer, day_of_birth integer, person_source_value text",
        "death": "person_id integer, death_date date, death_datetime timestamp",
        "measurement": "person_id integer, measurement_concept_id integer, "
        "measurement_source_concept_id integer, measurement_date date, "
        "measurement_datetime timestamp, value_as_number double precision, "
        "unit_concept_id integer, unit_source_value text",
    }
    for _, (table, prefix, day, moment) in OMOP_DOMAIN.items():
        tables.setdefault(
            table,
            f"person_id integer, {prefix}_concept_id integer, "
            f"{prefix}_source_concept_id integer, {day} date, {moment} timestamp",
        )
    for name, columns in tables.items():
        connection.execute(sa.text(f"create table {name} ({columns})"))


def _insert(connection: sa.Connection, table: str, values: list[dict[str, Any]]) -> None:
    if values:
        names = ", ".join(values[0])
        places = ", ".join(f":{name}" for name in values[0])
        connection.execute(sa.text(f"insert into {table} ({names}) values ({places})"), values)
