"""`fedward-client data check`: withheld where few, rounded where it may be sent."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedward_client.cli import app
from fedward_client.data_check import ROUND_TO
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import StudySpec
from fedward_common.trust.signing import SigningKey, key_sha256
from tests.support.clinical import measured
from tests.support.guard_site import make_site
from tests.support.studies import make_data, make_rows, make_spec, write_table

CLINICAL = {
    "kind": "clinical",
    "cohort": {"index": {"concepts": ["LOINC:0-0"]}},
    "features": [
        measured("glucose", "LOINC:1-1", allowed=[20.0, 900.0]),
        measured("rare", "LOINC:2-2"),
    ],
    "outcome": {"kind": "event", "death": True, "window": {"to_days": 30.0}},
    "split": {"kind": "hash", "salt": "s", "held_out": 0.5},
}


def signed(folder: Path, **changes: Any) -> Path:
    lead = SigningKey.generate()
    spec = make_spec(lead_key_sha256=key_sha256(lead.public_hex), **changes)
    path = folder / "study.json"
    path.write_bytes(SignedStudy.sign(StudySpec.model_validate(spec), lead).canonical)
    return path


def events(folder: Path, *, patients: int) -> None:
    """Patient n has glucose n + 30 mg/dL; the first has furlongs, the second is implausible."""
    people, coded = ["patient_id,birth_date,sex,death_date"], ["patient_id,concept,time,value,unit"]
    for number in range(patients):
        people.append(f"p{number},1950-01-01,F,")
        value, unit = (5000 if number == 1 else 30 + number), "furlong" if number == 0 else "mg/dL"
        coded.append(f"p{number},LOINC:1-1,2020-01-01,{value},{unit}")
        coded.append(f"p{number},LOINC:0-0,2020-02-01,,")
    coded += [f"p{number},LOINC:2-2,2020-01-01,90,mg/dL" for number in range(3)]
    people += ["z1,1950-01-01,F,", "z2,1950-01-01,F,broken"]
    (folder / "people.csv").write_text("\n".join(people) + "\n")
    (folder / "events.csv").write_text("\n".join(coded) + "\n")


def checked(site: Path, study: Path, *options: str) -> str:
    arguments = ["data", "check", str(study), "--config", str(site / "site.toml"), *options]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def clinical_site(tmp_path: Path) -> Path:
    entry = {"kind": "events", "patients": "people.csv", "events": "events.csv"}
    site = make_site(tmp_path / "site", top={"data": [entry]})
    events(site.folder, patients=43)
    return site.folder


def test_counts_per_feature_out_of_range_and_unmapped(clinical_site: Path, tmp_path: Path) -> None:
    study = signed(tmp_path, data=CLINICAL)

    report = json.loads(checked(clinical_site, study, "--json"))

    assert (report["patients"], report["cohort"]) == (45, 43)
    assert report["training"] + report["held_out"] == 43
    glucose = report["features"][0]
    assert glucose["patients"] == 41
    assert (glucose["values_out_of_range"], glucose["values_unmapped"]) == (1, 1)
    assert sum(n or 0 for n in glucose["histogram"]) >= 20


def test_numbers_below_the_minimum_cell_size_are_withheld_everywhere(
    clinical_site: Path, tmp_path: Path
) -> None:
    study, page, summary = signed(tmp_path, data=CLINICAL), tmp_path / "r.html", tmp_path / "s.json"

    report = json.loads(
        checked(clinical_site, study, "--json", "--html", str(page), "--summary", str(summary))
    )

    assert report["features"][1]["patients"] is None
    assert report["features"][0]["missing"] is None
    assert set(report["not_in_study"].values()) == {None}
    sent = json.loads(summary.read_text())
    assert sent["cohort"] == 40
    assert sent["patients_with"] == {"glucose": 40, "rare": None}
    assert all(n is None or n % ROUND_TO == 0 for n in sent["patients_with"].values())
    assert "below 10" in page.read_text()
    assert "below 10" in checked(clinical_site, study)
    assert page.stat().st_mode & 0o077 == 0


def test_the_page_fetches_nothing_and_names_no_patient(clinical_site: Path, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    checked(clinical_site, signed(tmp_path, data=CLINICAL), "--html", str(page))
    text = page.read_text()

    assert "<svg" in text
    assert not any(word in text for word in ("http", "<script", "src=", "p12", "z2"))


def test_a_table_is_checked_the_same_way(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    rows = [{"patient": row.pop("patient_id"), **row} for row in make_rows(30)]
    rows[0]["age"], rows[1]["age"], rows[2]["pain"] = "150", "old", ""
    write_table(site.folder / "patients.csv", rows)

    report = json.loads(
        checked(site.folder, signed(tmp_path, data=make_data(patient_key="patient")), "--json")
    )

    age, pain = report["features"]
    assert (age["patients"], age["values_out_of_range"], age["values_unmapped"]) == (29, 1, 1)
    assert pain["patients"] == 29
    assert report["patients"] == 30
    assert report["cohort"] == 28
