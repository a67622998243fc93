"""FHIR, OMOP and tables of the same Synthea patients give identical tensors."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward_client.data.clinical import PeopleSource
from fedward_client.data.event_tables import EventTables
from fedward_client.data.fhir import FhirFiles, interesting
from fedward_client.data.omop import OmopDatabase
from fedward_client.data.site import SiteSource
from fedward_client.exclusions import excluded_patients
from fedward_client.settings import load_site_settings
from fedward_common.errors import DataError
from fedward_common.study.clinical_encoding import Encoder, Tally
from tests.support import synthea
from tests.support.clinical import measured, schema
from tests.support.guard_site import make_site
from tests.support.studies import make_spec

SCHEMA = schema()
SEQUENCES = schema(
    features=[
        measured("weight", "LOINC:29463-7", unit="[lb_av]", low=0.0, high=500.0, fill=150.0,
                 aggregation="sequence", window=None, missing="fill"),
        {"type": "sex"},
    ],
    grid={"step_hours": 24.0 * 90, "steps": 8},
)  # fmt: skip
needs_data = pytest.mark.skipif(not synthea.DATA.is_dir(), reason="needs shared/data")


@pytest.fixture(scope="module")
def patients() -> list[dict[str, Any]]:
    return synthea.bundles("norwood_hospital") + synthea.bundles("holyoke_medical_center")[:8]


def bulk(found: Any, folder: Path) -> PeopleSource:
    return FhirFiles(synthea.write_bulk(found, folder / "bulk"))


def files(found: Any, folder: Path) -> PeopleSource:
    return FhirFiles(synthea.write_bundles(found, folder / "bundles"))


def tables(found: Any, folder: Path) -> PeopleSource:
    people, events = synthea.write_tables(found, folder / "tables")
    return EventTables(patients=people, events=events)


def parquet(found: Any, folder: Path) -> PeopleSource:
    import duckdb

    people, events = synthea.write_tables(found, folder / "parquet")
    for path in (people, events):
        duckdb.sql(f"copy (from read_csv('{path}')) to '{path.with_suffix('.parquet')}'")
    return EventTables(
        patients=people.with_suffix(".parquet"), events=events.with_suffix(".parquet")
    )


def sqlite(found: Any, folder: Path) -> PeopleSource:
    url = synthea.write_omop(found, f"sqlite:///{folder}/omop.sqlite")
    return OmopDatabase(url, patient_id="person_source_value")


def duck(found: Any, folder: Path) -> PeopleSource:
    url = synthea.write_omop(found, f"duckdb:///{folder}/omop.duckdb")
    return OmopDatabase(url, patient_id="person_source_value")


@needs_data
@pytest.mark.parametrize("studied", [SCHEMA, SEQUENCES], ids=["numbers", "sequences"])
@pytest.mark.parametrize("make", [files, tables, parquet, sqlite, duck])
def test_the_same_patients_give_bit_identical_tensors_from_every_source(
    make: Callable[[Any, Path], PeopleSource], studied: Any, patients: Any, tmp_path: Path
) -> None:
    tally, other = Tally(), Tally()
    expected = Encoder(studied).encode(
        bulk(patients, tmp_path).people(studied.concepts), part=None, tally=tally
    )
    found = Encoder(studied).encode(
        make(patients, tmp_path).people(studied.concepts), part=None, tally=other
    )

    assert expected.patients >= 10
    assert np.unique(expected.features, axis=0).shape[0] == expected.patients
    assert 0 < expected.labels.sum() < expected.patients
    assert found.features.tobytes() == expected.features.tobytes()
    assert found.labels.tobytes() == expected.labels.tobytes()
    assert (other.why_absent, other.used) == (tally.why_absent, tally.used)


@needs_data
def test_a_value_is_converted_by_ucum_and_molar_mass(patients: Any, tmp_path: Path) -> None:
    tally = Tally()
    Encoder(SCHEMA).encode(bulk(patients, tmp_path).people(SCHEMA.concepts), part=None, tally=tally)

    assert not tally.unconverted.total()
    assert 3.0 < np.mean(tally.values["glucose"]) < 8.0
    assert 12.0 < np.mean(tally.values["systolic"]) < 20.0


def test_a_line_that_could_hold_a_code_is_always_parsed() -> None:
    test = interesting(["LOINC:4548-4"])

    assert test(b'{"code":"4548-4"}')
    assert test(b'{"code":"4548\\u002d4"}')
    assert test(b'{"resourceType": "Patient"}')
    assert not test(b'{"code":"14548-4"}')


FHIR_PATIENT = '{"resourceType":"Patient","id":"a","birthDate":"1960-05-01","gender":"male"}\n'
FHIR_VALUE = (
    '{"resourceType":"Observation","status":"STATUS","subject":{"reference":"Patient/a"},'
    '"code":{"coding":[{"system":"http://loinc.org","code":"2339-0"}]},'
    '"effectiveDateTime":"TIME","valueQuantity":{"value":VALUE,"code":"mg/dL"}}\n'
)


def observation(
    *, status: str = "final", time: str = "2020-01-02T10:00:00Z", value: str = "90"
) -> str:
    return FHIR_VALUE.replace("STATUS", status).replace("TIME", time).replace("VALUE", value)


def people_of(folder: Path, text: str) -> Any:
    (folder / "export.ndjson").write_text(text)
    return FhirFiles(folder).people(["LOINC:2339-0"])


def test_what_was_entered_in_error_or_has_no_time_is_not_there(tmp_path: Path) -> None:
    lines = observation(status="entered-in-error") + observation().replace(
        '"effectiveDateTime":"2020-01-02T10:00:00Z",', ""
    )
    person = people_of(tmp_path, lines + FHIR_PATIENT)["a"]

    assert person.events == []
    assert not person.broken


@pytest.mark.parametrize(
    "line",
    [
        observation(time="yesterday"),
        observation(value='"high"'),
        observation(value="[]"),
        observation().replace('"mg/dL"', "7"),
    ],
)
def test_a_resource_that_is_not_as_fhir_says_marks_its_patient_and_nobody_else(
    line: str, tmp_path: Path
) -> None:
    other = (FHIR_PATIENT + observation()).replace('"a"', '"b"').replace("Patient/a", "Patient/b")
    people = people_of(tmp_path, FHIR_PATIENT + line + other)

    assert people["a"].broken
    assert not people["b"].broken
    assert people["b"].events[0].value == 90.0


def test_lines_that_are_no_json_belong_to_nobody(tmp_path: Path) -> None:
    people = people_of(tmp_path, '{"2339-0" \n[1]\n"Patient"\n' + FHIR_PATIENT + observation())

    assert len(people["a"].events) == 1


def test_a_broken_row_of_a_table_marks_its_patient_and_nobody_else(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(
        "patient_id,birth_date,sex,death_date\na,1960-01-01,F,\nb,,,\nc,1950,M,never\n"
    )
    (tmp_path / "e.csv").write_text(
        "patient_id,concept,time,value,unit\na,LOINC:2339-0,2020-01-01,90,mg/dL\n"
        'b,LOINC:2339-0,soon,90,mg/dL\na,LOINC:9-9,soon,,\nz,LOINC:2339-0,2020-01-01,1,"'
        "\n"
    )
    source = EventTables(patients=tmp_path / "p.csv", events=tmp_path / "e.csv")
    people = source.people(["LOINC:2339-0"])

    assert {name: person.broken for name, person in people.items()} == {
        "a": False,
        "b": True,
        "c": True,
    }
    assert len(people["a"].events) == 1


@pytest.mark.parametrize(
    "source",
    [
        FhirFiles(Path("/nowhere")),
        OmopDatabase("sqlite://"),
        OmopDatabase("postgresql+nothing://user:secret@db/x"),
        EventTables(patients=Path("/nowhere.csv"), events=Path("/nowhere.csv")),
        EventTables(patients=Path("/nowhere.parquet"), events=Path("/nowhere.parquet")),
    ],
)
def test_a_source_that_is_not_there_is_said_without_anything_out_of_it(
    source: PeopleSource,
) -> None:
    with pytest.raises(DataError, match="expected") as refused:
        source.people(["LOINC:2339-0"])

    assert "secret" not in str(refused.value)


def test_a_patient_who_objects_is_left_out_of_a_clinical_study(tmp_path: Path) -> None:
    """From site.toml to the records, by the source that the worker has."""
    site = make_site(
        tmp_path / "site",
        top={"data": [{"kind": "fhir", "path": "export"}], "exclusions": "exclusions.csv"},
    )
    other = (FHIR_PATIENT + observation()).replace('"a"', '"b"').replace("Patient/a", "Patient/b")
    (site.folder / "export").mkdir()
    (site.folder / "export" / "x.ndjson").write_text(FHIR_PATIENT + observation() + other)
    (site.folder / "exclusions.csv").write_text("patient_id\na\n")
    settings = load_site_settings(site.folder / "site.toml")
    source = SiteSource(settings, excluded=partial(excluded_patients, settings))

    people = source.clinical.people(
        schema(cohort={"index": {"concepts": ["LOINC:2339-0"]}}),
    )

    assert list(people) == ["b"]
    with pytest.raises(DataError, match="kind csv"):
        source.tables.rows(make_spec())
