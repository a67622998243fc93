"""Resources held against the R4 4.0.1 JSON schema, with `jsonschema` as the oracle."""

import copy
import gzip
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft6Validator
from typer.testing import CliRunner

from fedward_client.cli import app
from fedward_client.data.fhir_schema import SchemaFindings, problems
from fedward_client.data_check import check_form
from fedward_client.settings import load_site_settings
from tests.support.clinical import clinical
from tests.support.ehr_cohorts import bundles
from tests.support.guard_site import make_site
from tests.support.studies import make_spec
from tests.support.synthea import write_bulk

SCHEMA = json.loads(
    gzip.decompress(
        files("fedward_client.data").joinpath("schemas/fhir-r4.schema.json.gz").read_bytes()
    )
)


def oracle(resource: dict[str, Any]) -> bool:
    kind = resource["resourceType"]
    part = {"$ref": f"#/definitions/{kind}", "definitions": SCHEMA["definitions"]}
    return Draft6Validator(part).is_valid(resource)


OBSERVATION = {
    "resourceType": "Observation",
    "id": "o-1",
    "status": "final",
    "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
    "subject": {"reference": "Patient/a"},
    "effectiveDateTime": "2024-01-10T08:30:00+00:00",
    "valueQuantity": {"value": 80.5, "code": "/min"},
    "component": [{"code": {"text": "x"}, "valueInteger": 3}],
}
PATIENT = {
    "resourceType": "Patient",
    "id": "a",
    "gender": "female",
    "birthDate": "1960-05",
    "contained": [{"resourceType": "Organization", "name": "Ward"}],
    "extension": [{"url": "http://e.example/x", "valueBoolean": True}],
}


def set_to(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(resource: Any) -> None:
        for part in path[:-1]:
            resource = resource[part]
        resource[path[-1]] = value

    return change


CHANGES = {
    "as it is": lambda _: None,
    "unknown code": set_to("gender", value="f"),
    "date of another form": set_to("birthDate", value="5/1960"),
    "number as text": set_to("multipleBirthInteger", value="2"),
    "truth as number": set_to("active", value=1),
    "unknown element": set_to("weight", value=3),
    "inner unknown element": set_to("extension", 0, "colour", value="x"),
    "list for one": set_to("maritalStatus", value=[]),
    "one for a list": set_to("name", value={}),
    "contained of another form": set_to("contained", 0, "name", value=7),
    "contained unknown": set_to("contained", 0, value={"resourceType": "Ward"}),
    "id too long": set_to("id", value="x" * 65),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_patient_fits_exactly_where_jsonschema_says_so(change: Callable[[Any], None]) -> None:
    resource = copy.deepcopy(PATIENT)
    change(resource)

    assert (not list(problems(resource))) == oracle(resource)


@pytest.mark.parametrize("name", sorted(OBSERVATION))
@pytest.mark.parametrize("value", [None, "x y", 7, True, [], {}, {"code": 3}, [{"url": 1}]])
def test_an_observation_fits_exactly_where_jsonschema_says_so(name: str, value: Any) -> None:
    resource = copy.deepcopy(OBSERVATION) | {name: value}
    if name == "resourceType":
        assert list(problems(resource)) == [("resourceType", "a resource type of FHIR R4")]
        return

    assert (not list(problems(resource))) == oracle(resource)


def test_what_is_said_names_elements_of_the_standard_and_no_value() -> None:
    bad = OBSERVATION | {"status": "p17-secret", "valueQuantity": {"value": "p17", "p17": 1}}
    del bad["code"]

    found = sorted(problems(bad))

    assert ("valueQuantity", "only elements of the standard") in found
    assert ("valueQuantity.value", "a JSON number") in found
    assert not any("p17" in word for pair in found for word in pair)


def test_every_resource_of_a_bundle_is_counted_once() -> None:
    findings = SchemaFindings()
    for bundle in bundles(seed=1, patients=12):
        findings.look_at(bundle)

    # The made-up observations have no status, which the schema does not demand as FHIR does.
    assert findings.resources > 12
    assert findings.unfit == sum(
        not oracle(entry["resource"])
        for bundle in bundles(seed=1, patients=12)
        for entry in bundle["entry"]
    )


def test_data_check_validates_a_sample_and_with_the_word_everything(tmp_path: Path) -> None:
    entry = {"kind": "fhir", "path": "export"}
    site = make_site(tmp_path / "site", top={"data": [entry]})
    write_bulk(bundles(seed=2, patients=20), site.folder / "export")
    settings, study = load_site_settings(site.folder / "site.toml"), make_spec(data=clinical())

    sample = check_form(study, settings, whole=False, min_cell_size=1)["fhir_schema"]
    whole = check_form(study, settings, whole=True, min_cell_size=1)["fhir_schema"]

    assert (sample["every"], whole["every"]) == (50, 1)
    assert whole["resources"] > 10 * sample["resources"] > 0
    arguments = ["data", "check", "--help"]
    assert "--validate" in CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}).stdout
