"""The same patients from a real PostgreSQL (OMOP) and a real FHIR server give the same tensors."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward_client.data.event_tables import EventTables
from fedward_client.data.fhir_server import FhirEndpoint, FhirServer, searches
from fedward_client.data.omop import OmopDatabase
from fedward_common.errors import DataError
from fedward_common.study.clinical import ClinicalData
from fedward_common.study.clinical_encoding import Encoder
from fedward_common.study.clinical_events import People
from tests.support import synthea
from tests.support.clinical import measured, schema
from tests.support.ehr_cohorts import bundles
from tests.support.fhir_server import RunningFhirServer, fhir_server  # noqa: F401
from tests.support.postgres import Postgres, postgres  # noqa: F401

Start = Callable[[Sequence[dict[str, Any]]], RunningFhirServer]

SCHEMA = schema(
    cohort={"index": {"concepts": ["LOINC:11450-4"]}},
    features=[
        measured("pulse", "LOINC:8867-4", unit="/min", aggregation="sequence", window=None,
                 low=30.0, high=200.0, fill=80.0, missing="fill"),
        measured("systolic", "LOINC:8480-6", unit="kPa", low=5.0, high=30.0, fill=16.0),
        {"type": "sex"},
        {"type": "age", "name": "age", "low": 18.0, "high": 100.0},
    ],
    grid={"step_hours": 2.0, "steps": 4},
    outcome={"kind": "event", "concepts": ["SNOMED:91302008"], "window": {"to_days": 30.0}},
)  # fmt: skip
COHORT = bundles(seed=3, patients=40)


def tensors(people: People) -> tuple[bytes, bytes]:
    found = Encoder(ClinicalData.model_validate(SCHEMA.model_dump())).encode(people, part=None)
    assert found.patients == 40
    assert np.unique(found.features, axis=0).shape[0] == 40
    return found.features.tobytes(), found.labels.tobytes()


@pytest.fixture
def expected(tmp_path: Path) -> tuple[bytes, bytes]:
    patients, events = synthea.write_tables(COHORT, tmp_path / "tables")
    return tensors(EventTables(patients=patients, events=events).people(SCHEMA.concepts))


def resources(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every resource with an id of its own and references as a server has them."""
    text = json.dumps([entry["resource"] for bundle in found for entry in bundle["entry"]])
    listed: list[dict[str, Any]] = json.loads(text.replace("urn:uuid:", "Patient/"))
    return [{"id": f"r{number}", "status": "final"} | one if one["resourceType"] == "Observation"
            else {"id": f"r{number}"} | one for number, one in enumerate(listed)]  # fmt: skip


def test_omop_in_postgresql_gives_the_tensors_of_the_tables(
    postgres: Postgres,  # noqa: F811
    expected: tuple[bytes, bytes],
) -> None:
    url = synthea.write_omop(COHORT, postgres.new_database())

    source = OmopDatabase(url, patient_id="person_source_value")

    assert tensors(source.people(SCHEMA.concepts)) == expected


def test_a_wrong_password_of_the_database_is_said_without_the_password(
    postgres: Postgres,  # noqa: F811
) -> None:
    with pytest.raises(DataError, match="expected a CDM") as refused:
        OmopDatabase(postgres.url("none", password="hidden-word")).people(SCHEMA.concepts)

    assert "hidden-word" not in str(refused.value)


def test_a_fhir_server_gives_the_tensors_of_the_tables_over_many_pages(
    fhir_server: Start,  # noqa: F811
    expected: tuple[bytes, bytes],
) -> None:
    server = fhir_server(resources(COHORT))
    endpoint = FhirEndpoint(url=server.url, token=server.token, page_size=25)

    assert tensors(FhirServer(endpoint).people(SCHEMA.concepts)) == expected

    with pytest.raises(DataError, match="HTTP status 401"):
        FhirServer(FhirEndpoint(url=server.url, token="other")).people(SCHEMA.concepts)


@contextmanager
def answering(pages: Sequence[tuple[int, bytes]]) -> Iterator[str]:
    """A server that gives these answers in turn, whatever it is asked."""
    left = list(pages)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, content = left.pop(0)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/fhir"
        server.shutdown()


def page(*, following: str) -> bytes:
    link = [{"relation": "next", "url": following}]
    return json.dumps({"resourceType": "Bundle", "entry": [], "link": link}).encode()


@pytest.mark.parametrize(
    "answer",
    [
        (200, page(following="http://127.0.0.2:1/fhir/Patient?page=2")),
        (200, page(following="https://elsewhere.example/fhir/Patient?page=2")),
        (200, page(following="Patient?_count=500")),
        (200, b'{"resourceType": "Patient", "id": "secret-1"}'),
        (200, b"<html>secret-1</html>"),
        (503, b"secret-1"),
    ],
    ids=["other port", "other host", "in a circle", "no bundle", "no JSON", "down"],
)
def test_a_server_that_sends_elsewhere_or_answers_otherwise_is_refused_in_words(
    answer: tuple[int, bytes],
) -> None:
    """The bearer token goes to the one server of site.toml only."""
    with answering([answer]) as url, pytest.raises(DataError, match="FHIR server") as refused:
        FhirServer(FhirEndpoint(url=url, token="t")).people(["LOINC:8867-4"])

    assert "secret" not in str(refused.value)


def test_only_what_a_study_names_is_asked_for() -> None:
    asked = list(searches(["LOINC:8867-4", "OMOP:3027018", "Local:x"], page_size=50))

    assert asked[0] == "Patient?_count=50"
    assert "Observation?combo-code=http%3A%2F%2Floinc.org%7C8867-4,x&_count=50" in asked
    assert not any("3027018" in one for one in asked)
