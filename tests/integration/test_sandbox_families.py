"""Families across DICOM, FHIR R4 and VCF without the processes: each one unit of all modalities.

The sites read what hospitals have, the parent its own tables; both have the same families.
"""

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedward_client.data.site import SiteSource
from fedward_client.data_check import check_data, data_report
from fedward_client.data_entries import GenotypeFiles
from fedward_client.policy import SitePolicy
from fedward_client.settings import SiteSettings, load_site_settings
from fedward_client.studies import _fields
from fedward_common.errors import DataError
from fedward_common.ids import SiteId
from fedward_common.models.registry import build_model
from fedward_common.study.encoding import PatientRecords, hash_part
from fedward_common.study.kin import Kin
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.spec import StudySpec
from fedward_server.cohort.make import make_cohort
from fedward_server.sandbox.run import Inputs, Prepared, prepare
from tests.support.patient_sums import CLIP, Patient, clipped_sum, naive_sum

FIRST, LAST = SiteId("made-up-01"), SiteId("made-up-03")
PATIENTS = 40
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


def prepared_in(folder: Path, *, families: bool) -> Prepared:
    make_cohort(folder / "made-up", sites=3, patients=PATIENTS, seed=5, families=families)
    inputs = Inputs.parse(study=None, sites=[], data=folder / "made-up")
    return prepare(inputs, out=folder / "out")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_in(tmp_path_factory.mktemp("families"), families=True)


@pytest.fixture(scope="module")
def per_patient(tmp_path_factory: pytest.TempPathFactory) -> StudySpec:
    return prepared_in(tmp_path_factory.mktemp("patients"), families=False).study


def settings(prepared: Prepared, site: SiteId = FIRST) -> SiteSettings:
    return load_site_settings(prepared.layout.sites[site].settings_file)


def genotypes(own: SiteSettings) -> GenotypeFiles:
    return next(one for one in own.data if isinstance(one, GenotypeFiles))


def families(own: SiteSettings) -> dict[str, list[str]]:
    """Who is in each family by the site's table, read by nothing of ours."""
    found: dict[str, list[str]] = {}
    with genotypes(own).people.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["family"]:
                found.setdefault(row["family"], []).append(row["patient_id"])
    return found


def with_people(own: SiteSettings, path: Path, rows: list[Mapping[str, str]]) -> SiteSettings:
    """The site with another table of people."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    data = [
        one.model_copy(update={"people": path}) if isinstance(one, GenotypeFiles) else one
        for one in own.data
    ]
    return own.model_copy(update={"data": tuple(data)})


def rows_of(own: SiteSettings) -> list[Mapping[str, str]]:
    with genotypes(own).people.open(newline="") as file:
        return list(csv.DictReader(file))


def sides(study: StudySpec, source: SiteSource) -> dict[str, PatientRecords]:
    return {part: source.records(study, part=part) for part in ("train", "test")}  # type: ignore[arg-type]


def unit(found: PatientRecords, name: str) -> Patient:
    own = found.patient == found.ids.index(name)
    return torch.tensor(found.features[own]), torch.tensor(found.labels[own])


def moved(study: StudySpec) -> nn.Module:
    """The study's model some way into its training."""
    assert isinstance(study.data, MultimodalData)
    model = build_model(study.model, study.data.input_size).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def test_sites_and_parent_have_the_same_families(prepared: Prepared) -> None:
    for site in prepared.layout.sites:
        source = SiteSource(settings(prepared, site))
        for part, copy in (("train", prepared.copy.training), ("test", prepared.copy.held_out)):
            found = source.records(prepared.study, part=part)  # type: ignore[arg-type]
            strict = source.checked_records(prepared.study, part=part)  # type: ignore[arg-type]
            for other in (copy[site], strict):
                assert found.features.tobytes() == other.features.tobytes()
                assert found.labels.tobytes() == other.labels.tobytes()
                assert found.patient.tolist() == other.patient.tolist()
                assert found.ids == other.ids


def test_a_family_is_one_unit_of_all_its_patients_and_modalities(
    prepared: Prepared, per_patient: StudySpec
) -> None:
    """Each member's inputs are those of a study per patient; held out goes by the family's name."""
    own = settings(prepared)
    kin = families(own)
    found = sides(prepared.study, SiteSource(own))
    entries = [
        one.model_copy(update={"family_key": None}) if isinstance(one, GenotypeFiles) else one
        for one in own.data
    ]
    alone = sides(per_patient, SiteSource(own.model_copy(update={"data": tuple(entries)})))
    each = {
        name: part.features[part.patient == number]
        for part in alone.values()
        for number, name in enumerate(part.ids)
    }

    # One record a patient: the twelve who may be kin, and of each family only who has genotypes.
    assert sum(len(part.labels) for part in found.values()) == PATIENTS == len(each)
    of_family = {name for members in kin.values() for name in members}
    names = [name for part in found.values() for name in part.ids]
    assert sorted(names) == sorted([*kin, *(set(each) - of_family)])
    assert max(len(members) for members in kin.values()) == 3
    for part, records in found.items():
        for name in records.ids:
            assert hash_part(prepared.study.data.split, name) == part  # type: ignore[attr-defined]
            members = sorted(kin.get(name, [name]))
            expected = np.concatenate([each[one] for one in members])
            np.testing.assert_array_equal(unit(records, name)[0].numpy(), expected)
    modalities = np.concatenate([each[one] for members in kin.values() for one in members])[:, :3]
    assert modalities.all(axis=1).any()  # an image, records and variants of the same patient


def test_one_clipped_gradient_for_a_family_and_without_it_the_sum_moves_by_at_most_c(
    prepared: Prepared,
) -> None:
    own, study = settings(prepared), prepared.study
    found = sides(study, SiteSource(own))["train"]
    kin = {name: members for name, members in families(own).items() if name in found.ids}
    three = next(name for name, members in kin.items() if len(members) == 3)
    model = moved(study)
    units = [unit(found, name) for name in found.ids]

    everybody = clipped_sum(model, "loop", units)

    assert float((everybody - naive_sum(model, units)).norm()) <= 5e-6 * float(everybody.norm())
    inputs, labels = unit(found, three)
    assert float(clipped_sum(model, "loop", [(inputs, labels)]).norm()) <= 1.0005 * CLIP
    # Where all three say the same they would add up to more than C as three units.
    same = torch.ones_like(labels)
    alone = [(inputs[n : n + 1], same[n : n + 1]) for n in range(3)]
    assert float(clipped_sum(model, "loop", alone).norm()) > 1.2 * CLIP
    assert float(clipped_sum(model, "loop", [(inputs, same)]).norm()) <= 1.0005 * CLIP
    gone = frozenset(kin[three])
    left = sides(study, SiteSource(own, excluded=lambda: gone))["train"]
    assert left.ids == tuple(name for name in found.ids if name != three)
    kept = found.patient != found.ids.index(three)
    assert left.features.tobytes() == found.features[kept].tobytes()
    without = clipped_sum(model, "loop", [unit(left, name) for name in left.ids])
    assert 0.1 * CLIP < float((everybody - without).norm()) <= 1.0005 * CLIP


def test_the_policy_takes_the_study_whose_unit_covers_the_kin_it_declares_and_no_other(
    prepared: Prepared, per_patient: StudySpec
) -> None:
    policy = SitePolicy.of(settings(prepared))

    assert policy.family_keys == {"family"}
    said = {one.code for one in policy.objections(prepared.study, now=NOW)}
    assert said == {"not-approved"}
    refusals = [str(one) for one in policy.objections(per_patient, now=NOW)]
    assert any("its families are by column (none)" in one for one in refusals)
    # Nor does the reader give it out, should it ever be asked.
    with pytest.raises(DataError, match="takes patient_key and family_key of"):
        SiteSource(settings(prepared)).records(per_patient, part="train")


def test_a_site_that_reads_families_by_another_column_or_by_none_is_refused(
    prepared: Prepared,
) -> None:
    own = settings(prepared)
    for key in ("another", None):
        data = [
            one.model_copy(update={"family_key": key}) if isinstance(one, GenotypeFiles) else one
            for one in own.data
        ]
        with pytest.raises(DataError, match="takes patient_key and family_key of"):
            SiteSource(own.model_copy(update={"data": tuple(data)})).records(
                prepared.study, part="train"
            )


def test_kin_that_a_site_knows_cannot_be_declared_away(prepared: Prepared) -> None:
    own = settings(prepared).model_copy(update={"absent_modalities": ("variants",)})

    refusals = [str(one) for one in SitePolicy.of(own).objections(prepared.study, now=NOW)]
    assert any("families are those of modality variants, which absent_mod" in r for r in refusals)
    with pytest.raises(DataError, match="whose table says who is kin, here; absent_modalities"):
        SiteSource(own).records(prepared.study, part="train")

    data = tuple(one for one in own.data if not isinstance(one, GenotypeFiles))
    knows_none = own.model_copy(update={"data": data})
    said = {one.code for one in SitePolicy.of(knows_none).objections(prepared.study, now=NOW)}
    assert said == {"not-approved"}
    found = sides(prepared.study, SiteSource(knows_none))
    assert sum(part.patients for part in found.values()) == PATIENTS  # who knows none has none


def test_a_row_without_genotypes_is_kin_and_a_patient_without_a_row_is_not(
    prepared: Prepared, tmp_path: Path
) -> None:
    own = settings(prepared)
    name, members = next((n, m) for n, m in families(own).items() if len(m) == 3)
    rows = rows_of(own)
    no_sample = [{**row, "sample": ""} if row["patient_id"] == members[0] else row for row in rows]
    no_row = [row for row in rows if row["patient_id"] != members[0]]

    def units(changed: list[Mapping[str, str]], to: str) -> dict[str, int]:
        source = SiteSource(with_people(own, tmp_path / to, changed))
        return {
            one: len(unit(part, one)[1])
            for part in sides(prepared.study, source).values()
            for one in part.ids
        }

    assert units(no_sample, "a.csv")[name] == 3
    left = units(no_row, "b.csv")
    assert (left[name], left[members[0]]) == (2, 1)


def test_a_patient_of_several_families_is_in_none_and_the_report_counts_it(
    prepared: Prepared, tmp_path: Path
) -> None:
    own = settings(prepared)
    name, members = next((n, m) for n, m in families(own).items() if len(m) == 3)
    rows = rows_of(own)
    torn = with_people(
        own,
        tmp_path / "torn.csv",
        [*rows, {"sample": "none", "patient_id": members[0], "family": "another"}],
    )
    source = SiteSource(torn)

    found = sides(prepared.study, source)

    everybody = [one for part in found.values() for one in part.ids]
    assert not {members[0], "another"} & set(everybody)
    part = next(one for one in found.values() if name in one.ids)
    assert len(unit(part, name)[1]) == 2
    for strict in ("train", "test"):
        with pytest.raises(DataError, match="expected every") as error:
            source.checked_records(prepared.study, part=strict)  # type: ignore[arg-type]
        assert members[0] not in str(error.value)
    report = check_data(prepared.study, source)
    assert report.absent["in several families of the table"] == 1
    assert report.people == report.cohort + 1 == PATIENTS
    shown = json.dumps(data_report(prepared.study, FIRST, report, min_cell_size=5))
    assert members[0] not in shown


def test_the_report_counts_people_on_the_side_of_their_family(prepared: Prepared) -> None:
    own = settings(prepared)
    found = sides(prepared.study, SiteSource(own))

    report = check_data(prepared.study, SiteSource(own))

    assert report.training == len(found["train"].labels)
    assert report.held_out == len(found["test"].labels)
    assert report.absent == {"in no modality with a label": 0}


def test_the_site_without_images_has_its_families_too(prepared: Prepared) -> None:
    own = settings(prepared, LAST)
    found = sides(prepared.study, SiteSource(own))

    assert own.absent_modalities == ("image",)
    assert set(families(own)) <= {name for part in found.values() for name in part.ids}
    assert not any(part.features[:, 0].any() for part in found.values())


def test_without_a_settings_file_the_study_says_which_column_it_is(tmp_path: Path) -> None:
    make_cohort(tmp_path / "plain", sites=3, patients=PATIENTS, seed=5, families=True)
    for path in (tmp_path / "plain").rglob("settings.toml"):
        path.unlink()

    made = prepare(Inputs.parse(study=None, sites=[], data=tmp_path / "plain"), out=tmp_path / "o")

    own = settings(made)
    assert genotypes(own).family_key == "family"
    found = SiteSource(own).records(made.study, part="train")
    assert found.features.tobytes() == made.copy.training[FIRST].features.tobytes()
    assert found.ids == made.copy.training[FIRST].ids


def test_the_label_may_be_in_the_table_that_says_who_is_kin(
    prepared: Prepared, tmp_path: Path
) -> None:
    """Whoever has no label there is in no unit, whatever the family."""
    own = settings(prepared)
    rows = [
        {**row, "ill": "" if number == 0 else str(number % 2)}
        for number, row in enumerate(rows_of(own))
    ]
    document = prepared.study.model_dump(mode="json")
    document["data"]["label_from"] = "variants"
    label = {"column": "ill", "low": 0, "high": 1, "positive_from": 1}
    document["data"]["modalities"][2]["data"]["label"] = label
    document["data"]["modalities"][1]["data"]["outcome"] = {"kind": "none"}
    study = StudySpec.model_validate(document)

    found = sides(study, SiteSource(with_people(own, tmp_path / "ill.csv", rows)))

    labels = {row["patient_id"]: row["ill"] for row in rows[1:]}
    kin = families(own)
    for part in found.values():
        for name in part.ids:
            members = [one for one in kin.get(name, [name]) if one in labels]
            assert unit(part, name)[1].tolist() == [float(labels[one]) for one in members]
    assert sum(len(part.labels) for part in found.values()) == len(rows) - 1


def test_who_approves_reads_which_column_says_who_is_kin(prepared: Prepared) -> None:
    uses = {field["name"]: field["use"] for field in _fields(prepared.study)}

    assert "one privacy unit, in every modality" in uses["variants: family"]


def test_who_is_kin_is_in_no_text_of_the_map() -> None:
    kin = replace(Kin(), families={"p1": "f1"}, torn=frozenset({"p2"}))

    assert not {"p1", "f1", "p2"} & set(repr(kin).replace("'", " ").split())
