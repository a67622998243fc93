"""A made-up cohort without its processes: DICOM, FHIR R4 and VCF, one hospital without images.

The sites read what hospitals have, the parent its own tables: both have the same patients.
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from sklearn.metrics import roc_auc_score

from fedward_client.data.site import SiteSource
from fedward_client.data_check import check_data, check_form, data_report
from fedward_client.data_check_page import report_page
from fedward_client.data_entries import FhirFolder, ImageFiles
from fedward_client.settings import SiteSettings, load_site_settings
from fedward_client.studies import _fields
from fedward_common.errors import ConfigError, DataError
from fedward_common.ids import SiteId
from fedward_common.study.multimodal import MultimodalData
from fedward_server.cohort.make import make_cohort
from fedward_server.cohort.people import draw_patients
from fedward_server.sandbox.run import Inputs, Prepared, prepare
from fedward_server.study_summary import reads

FIRST, LAST = SiteId("made-up-01"), SiteId("made-up-03")
PATIENTS = 24


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "made-up"
    make_cohort(folder, sites=3, patients=PATIENTS, seed=5)
    return folder


@pytest.fixture(scope="module")
def prepared(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    inputs = Inputs.parse(study=None, sites=[], data=cohort)
    return prepare(inputs, out=tmp_path_factory.mktemp("out") / "out")


def settings(prepared: Prepared, site: SiteId) -> SiteSettings:
    return load_site_settings(prepared.layout.sites[site].settings_file)


def test_equal_arguments_give_equal_bytes_and_another_seed_others(
    cohort: Path, tmp_path: Path
) -> None:
    make_cohort(tmp_path / "again", sites=3, patients=PATIENTS, seed=5)
    make_cohort(tmp_path / "other", sites=3, patients=PATIENTS, seed=6)

    assert digests(tmp_path / "again") == digests(cohort)
    same = digests(cohort).items() & digests(tmp_path / "other").items()
    assert {Path(name).name for name, _ in same} == {"README", "settings.toml", "study.toml"}


def test_everything_says_that_nobody_in_it_is_real(cohort: Path) -> None:
    site = cohort / "sites" / FIRST
    image = dcmread(next((site / "image" / "dicom").glob("*.dcm")))
    patient = json.loads((site / "records" / "fhir" / "Patient.ndjson").read_text().split("\n")[0])

    assert "Nobody in here is or was a person" in (cohort / "README").read_text()
    assert (image.PatientName, image.StudyDescription) == ("MADE^UP", "MADE UP, NO REAL PERSON")
    assert patient["meta"]["tag"][0]["code"] == "HTEST"
    assert "nobody in here is or was a person" in (cohort / "study.toml").read_text().replace(
        "\n# ", " "
    )


def test_each_modality_says_a_part_of_the_outcome_and_together_they_say_more() -> None:
    drawn = draw_patients(1, site=0, name="made-up-01", count=3000, images=True)
    whole = [one for one in drawn if one.image is not None and one.copies is not None]
    ill = [one.ill for one in whole]
    scores = {
        "image": [float(np.sort(one.image, axis=None)[-20:].mean()) for one in whole],
        "records": [np.log(one.crp) for one in whole],
        "variants": [float(sum(one.copies)) for one in whole],
    }

    alone = {name: roc_auc_score(ill, found) for name, found in scores.items()}
    together = sum((np.array(found) - np.mean(found)) / np.std(found) for found in scores.values())

    assert all(0.6 < auc < 0.8 for auc in alone.values())
    assert roc_auc_score(ill, together) > max(alone.values()) + 0.08


@pytest.mark.parametrize(("sites", "patients", "seed"), [(2, 9, 1), (3, 0, 1), (3, 9, -1)])
def test_a_cohort_that_no_study_could_use_is_refused(
    sites: int, patients: int, seed: int, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="make-cohort: expected"):
        make_cohort(tmp_path / "out", sites=sites, patients=patients, seed=seed)

    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(cohort: Path) -> None:
    before = digests(cohort)

    with pytest.raises(ConfigError, match="expected a new or empty folder"):
        make_cohort(cohort, sites=3, patients=PATIENTS, seed=5)

    assert digests(cohort) == before


def test_sites_and_parent_learn_from_the_same_numbers(prepared: Prepared) -> None:
    for site in prepared.layout.sites:
        source = SiteSource(settings(prepared, site))
        for part, copy in (("train", prepared.copy.training), ("test", prepared.copy.held_out)):
            found = source.records(prepared.study, part=part)  # type: ignore[arg-type]
            assert found.features.tobytes() == copy[site].features.tobytes()
            assert found.labels.tobytes() == copy[site].labels.tobytes()
            assert found.patient.tolist() == copy[site].patient.tolist()
            assert found.ids == copy[site].ids
    whole = [copy[FIRST].patients for copy in (prepared.copy.training, prepared.copy.held_out)]
    assert sum(whole) == PATIENTS
    assert prepared.copy.training[FIRST].features[:, 0].any()


def test_a_hospital_without_images_says_so_and_takes_part_without(prepared: Prepared) -> None:
    own = settings(prepared, LAST)
    records = SiteSource(own).records(prepared.study, part="train")

    assert own.absent_modalities == ("image",)
    assert {one.modality for one in own.data} == {"records", "variants"}
    assert records.patients > 0
    assert not records.features[:, 0].any()  # nobody has an image
    assert not records.features[:, 3 : 3 + 16 * 16].any()
    assert records.features[:, 1].all()


def test_a_modality_that_is_neither_here_nor_declared_absent_is_refused_by_name(
    prepared: Prepared,
) -> None:
    own = settings(prepared, LAST).model_copy(update={"absent_modalities": ()})
    without_label = own.model_copy(update={"absent_modalities": ("image", "records")})

    with pytest.raises(
        DataError, match=r"modality 'image': images: expected one .* found 0.*absent"
    ):
        SiteSource(own).records(prepared.study, part="train")
    with pytest.raises(DataError, match="expected modality 'records', which has the label"):
        SiteSource(without_label).records(prepared.study, part="train")


def test_a_patient_who_objects_is_in_no_modality(prepared: Prepared) -> None:
    own = settings(prepared, FIRST)
    everybody = SiteSource(own).records(prepared.study, part="train")
    gone = everybody.ids[0]

    left = SiteSource(own, excluded=lambda: frozenset({gone})).records(prepared.study, part="train")

    assert left.ids == everybody.ids[1:]
    assert left.features.tobytes() == everybody.features[everybody.patient > 0].tobytes()


def test_an_image_that_cannot_be_read_is_missing_and_its_patient_is_not(
    prepared: Prepared, tmp_path: Path
) -> None:
    own = settings(prepared, FIRST)
    images = next(one for one in own.data if isinstance(one, ImageFiles))
    shutil.copytree(images.path, tmp_path / "dicom")
    broken = images.model_copy(update={"path": tmp_path / "dicom"})
    data = tuple(broken if one is images else one for one in own.data)
    before = SiteSource(own).records(prepared.study, part="train")
    victim = next(
        name for n, name in enumerate(before.ids) if before.features[before.patient == n, 0].any()
    )
    (tmp_path / "dicom" / f"{victim}.dcm").write_bytes(b"no image")

    after = SiteSource(own.model_copy(update={"data": data})).records(prepared.study, part="train")

    place = before.ids.index(victim)
    assert after.ids == before.ids
    assert not after.features[place, 0]
    others = np.arange(len(before.features)) != place
    assert after.features[others].tobytes() == before.features[others].tobytes()


def test_a_tag_names_the_data_of_a_modality_where_there_are_several(prepared: Prepared) -> None:
    own = settings(prepared, FIRST)
    other = FhirFolder(path=Path("nowhere"), modality="another")
    untagged = other.model_copy(update={"modality": None})

    both = SiteSource(own.model_copy(update={"data": (*own.data, other, untagged)}))

    found = both.records(prepared.study, part="train")
    assert found.ids == SiteSource(own).records(prepared.study, part="train").ids


def test_the_site_s_report_counts_whole_patients_by_modality(prepared: Prepared) -> None:
    own = settings(prepared, LAST)

    found = check_data(prepared.study, SiteSource(own))
    report = data_report(prepared.study, LAST, found, min_cell_size=5)
    form = check_form(prepared.study, own, whole=True, min_cell_size=1)

    assert found.cohort == PATIENTS
    image, records, variants = found.features
    assert (image.patients, records.patients) == (0, PATIENTS)
    assert 0 < variants.patients <= PATIENTS
    assert "absent here" in report_page(report)
    assert f"{LAST}-0001" not in json.dumps(report)
    assert form["fhir_schema"]["unfit"] == 0


def test_what_is_read_is_shown_by_modality_to_who_approves_and_who_signs(
    prepared: Prepared,
) -> None:
    shown = {field["name"] for field in _fields(prepared.study)}

    assert {"image: images", "variants: genotypes"} <= shown
    assert any(name.startswith("records: ") for name in shown)
    assert reads(prepared.study)[2].startswith("variants: genotypes at 16 loci")


def test_without_a_settings_file_the_folders_say_what_a_site_has(
    cohort: Path, tmp_path: Path
) -> None:
    shutil.copytree(cohort, tmp_path / "plain")
    for path in (tmp_path / "plain").rglob("settings.toml"):
        path.unlink()

    made = prepare(Inputs.parse(study=None, sites=[], data=tmp_path / "plain"), out=tmp_path / "o")

    own = settings(made, LAST)
    assert own.absent_modalities == ("image",)
    assert [one.kind for one in settings(made, FIRST).data] == ["images", "events", "genotypes"]
    assert isinstance(made.study.data, MultimodalData)
    found = SiteSource(own).records(made.study, part="train")
    assert found.features.tobytes() == made.copy.training[LAST].features.tobytes()


def test_a_cohort_that_cannot_be_written_leaves_nothing_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(ConfigError, match="expected a folder that can be made and written"):
        make_cohort(tmp_path / "file" / "cohort", sites=3, patients=10, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
