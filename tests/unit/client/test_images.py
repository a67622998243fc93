"""Images as study data: grouped by patient, read by themselves, refused where they do not fit."""

import csv
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedward_client.approvals import Standing
from fedward_client.data.image_files import fitted
from fedward_client.data.images import ImageSource
from fedward_client.data_entries import ImageFiles
from fedward_client.policy import SitePolicy
from fedward_client.settings import PolicyRules
from fedward_client.tasks.registry import task_of
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.errors import ConfigError, DataError, PolicyRefused
from fedward_common.ids import SiteId
from fedward_common.models.registry import build_model, initial_tensors
from fedward_common.privacy.randomness import Csprng
from fedward_common.study.spec import ModelSpec, StudySpec
from tests.support.dicom_objects import SHARED, ct_slice, write
from tests.support.guard_site import site_values
from tests.support.image_studies import SIDE, image_document, image_study, npz
from tests.support.studies import SITES

COVID = SHARED / "covid_cxr"
PEOPLE = ["a", "a", "b", "c", "d", "d", "e"]
LABELS = [1, 1, 0, 1, 0, 0, 1]
SPLITS = ["train"] * 5 + ["train", "test"]


def source(path: Path, *, key: str | None = "patient_id", **more: object) -> ImageSource:
    files = ImageFiles(path=path, patient_key=key, no_patient_key=key is None)
    return ImageSource([files], **more)  # type: ignore[arg-type]


def test_images_of_one_patient_are_one_patient(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", patients=PEOPLE, labels=LABELS, splits=SPLITS)

    train = source(path).records(image_study(), part="train")
    test = source(path).records(image_study(), part="test")

    assert (train.patients, len(train.labels)) == (4, 6)
    assert train.patient.tolist() == [0, 0, 1, 2, 3, 3]
    assert train.labels.tolist() == [1, 1, 0, 1, 0, 0]
    assert (test.patients, len(test.labels)) == (1, 1)
    assert train.features.shape == (6, SIDE * SIDE)
    assert -1.0 <= train.features.min() <= train.features.max() <= 1.0


def test_removing_one_patient_leaves_every_other_tensor_bit_identical(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", patients=PEOPLE, labels=LABELS, splits=SPLITS)
    whole = source(path).records(image_study(), part="train")

    less = source(path, excluded=lambda: frozenset({"a"})).records(image_study(), part="train")

    assert less.patients == whole.patients - 1
    np.testing.assert_array_equal(less.features, whole.features[2:])


@pytest.mark.parametrize(
    ("labels", "splits"),
    [
        ([1, 0, 0, 1, 0, 0, 1], SPLITS),  # a has both classes
        (LABELS, ["train", "test", *SPLITS[2:]]),  # a is on both sides
        ([1, 9, 0, 1, 0, 0, 1], SPLITS),  # a has a label that does not exist
    ],
)
def test_a_patient_whose_images_do_not_fit_counts_as_absent(
    labels: list[int], splits: list[str], tmp_path: Path
) -> None:
    path = npz(tmp_path / "a.npz", patients=PEOPLE, labels=labels, splits=splits)

    assert source(path).records(image_study(), part="train").patients == 3
    with pytest.raises(DataError):
        source(path).checked_records(image_study(), part="train")


def test_a_folder_of_dicom_files_with_a_table_is_a_set_and_a_broken_file_one_absence(
    tmp_path: Path,
) -> None:
    rows = []
    for number, patient in enumerate(["a", "a", "b", "c"]):
        write(ct_slice(patient=patient, value=100 * number), tmp_path / f"{number}.dcm")
        rows.append([f"{number}.dcm", patient, number % 2 if patient != "a" else 1, "train"])
    (tmp_path / "3.dcm").write_bytes(b"broken")
    rows.append(["../outside.dcm", "d", 1, "train"])
    with (tmp_path / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "patient_id", "label", "split"], *rows])

    records = source(tmp_path).records(image_study(), part="train")

    assert (records.patients, len(records.labels)) == (2, 3)


COLOURS = {"channels": 3}


def test_colour_images_are_channel_by_channel_and_the_patients_those_of_grey_ones(
    tmp_path: Path,
) -> None:
    path = npz(tmp_path / "a.npz", patients=PEOPLE, labels=LABELS, splits=SPLITS, colour=True)
    study = image_study(
        data=COLOURS, model={"name": "cnn", "shape": [3, SIDE, SIDE], "hidden": [4]}
    )

    train = source(path).records(study, part="train")

    green = np.load(path)["images"][0, :, :, 1] / 255.0 * 2.0 - 1.0
    assert train.features.shape == (6, 3 * SIDE * SIDE)
    assert train.patient.tolist() == [0, 0, 1, 2, 3, 3]
    assert build_model(study.model, study.data.input_size)(  # type: ignore[attr-defined]
        torch.from_numpy(train.features)
    ).shape == (6,)
    np.testing.assert_allclose(train.features[0].reshape(3, SIDE, SIDE)[1], green, atol=1e-6)
    with pytest.raises(DataError, match="arrays of another size"):
        source(path).records(image_study(), part="train")


def test_a_colour_dicom_object_is_red_green_and_blue_and_a_grey_one_no_colour_image(
    tmp_path: Path,
) -> None:
    dataset = ct_slice(size=SIDE)
    dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
    dataset.PhotometricInterpretation = "RGB"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    pixels[:, :, 0], pixels[:, :, 2] = 255, 51
    dataset.PixelData = pixels.tobytes()
    write(dataset, tmp_path / "0.dcm")
    write(ct_slice(size=SIDE), tmp_path / "1.dcm")
    with (tmp_path / "images.csv").open("w", newline="") as file:
        rows = [["0.dcm", "a", 1, "train"], ["1.dcm", "b", 0, "train"]]
        csv.writer(file).writerows([["image", "patient_id", "label", "split"], *rows])
    study = image_study(data=COLOURS)

    records = source(tmp_path).records(study, part="train")

    planes = records.features.reshape(-1, 3, SIDE * SIDE)
    assert records.patients == 1
    for plane, value in zip(planes[0], (1.0, -1.0, -0.6), strict=True):
        np.testing.assert_allclose(plane, value, atol=1e-6)
    with pytest.raises(DataError, match="expected colour images, found grey"):
        source(tmp_path).checked_records(study, part="train")
    with pytest.raises(ValidationError, match="without window in colour"):
        image_study(data={**COLOURS, "window": {"low": 0.0, "high": 1.0}})
    assert "channels" not in image_study().model_dump(mode="json")["data"]


@pytest.mark.skipif(not COVID.is_dir(), reason="the Hannover radiographs are not at ../shared/data")
def test_the_71_patients_of_hannover_stay_71_patients_with_243_images(tmp_path: Path) -> None:
    """Grouping on real images: whoever needed intensive care, several images a patient."""
    arrays = np.load(COVID / "hannover224.npz")
    with (COVID / "hannover_metadata.csv").open(encoding="utf-8") as file:
        table = {row["image_id"]: row for row in csv.DictReader(file)}
    rows = [table[str(image)] for image in arrays["image_id"]]
    np.savez(
        tmp_path / "a.npz",
        images=arrays["images"],
        patient_id=np.array([row["patient_id"] for row in rows]),
        label=np.array([int(bool(row["icu_admission_offset"].strip("NAn"))) for row in rows]),
        split=np.array(["train"] * len(rows)),
    )
    study = image_study(
        data={"height": 224, "width": 224},
        model={"name": "cnn", "shape": [1, 224, 224], "hidden": [4]},
    )

    records = source(tmp_path / "a.npz").checked_records(study, part="train")

    assert (records.patients, len(records.labels)) == (71, 243)
    expected = Counter(row["patient_id"] for row in rows)
    assert sorted(Counter(records.patient.tolist()).values()) == sorted(expected.values())
    assert max(expected.values()) > 1


def record_study() -> StudySpec:
    document = image_document(data={"no_patient_key": True})
    document["dp"] |= {"unit": "record", "max_records_per_patient": 1}
    return StudySpec.model_validate(document)


def test_without_a_patient_key_every_image_is_a_record_and_the_study_must_say_so(
    tmp_path: Path,
) -> None:
    path = npz(tmp_path / "a.npz", patients=[], labels=LABELS, splits=SPLITS)

    assert source(path, key=None).records(record_study(), part="train").patients == 6
    for unit, keyless in (("patient", True), ("record", False)):
        document = image_document(data={"no_patient_key": keyless})
        document["dp"] |= {"unit": unit, "max_records_per_patient": 1}
        with pytest.raises(ValidationError, match="record"):
            StudySpec.model_validate(document)


def test_a_set_with_a_patient_key_is_never_read_per_record(tmp_path: Path) -> None:
    keyed = npz(tmp_path / "a.npz", patients=PEOPLE, labels=LABELS, splits=SPLITS)

    with pytest.raises(DataError, match="no_patient_key"):
        source(keyed).records(record_study(), part="train")
    with pytest.raises(DataError, match="no array for the patient"):
        source(keyed, key=None).records(record_study(), part="train")
    with pytest.raises(ValidationError):
        ImageFiles(path=keyed)


def test_the_policy_refuses_a_unit_of_records_unless_the_site_has_only_such_images(
    policy: SitePolicy,
) -> None:
    study = record_study()

    def words(one: SitePolicy) -> str:
        return " ".join(str(o) for o in one.objections(study, now=datetime.now(UTC)))

    assert "NOT per patient" in words(policy)
    assert "NOT per patient" not in words(replace(policy, keyless_images=True))


@pytest.fixture
def policy() -> SitePolicy:
    rules = PolicyRules.model_validate(site_values()["policy"])
    return SitePolicy(
        rules=rules, source="site.toml", standing=Standing(site="north", approvers=())
    )


@pytest.mark.parametrize(
    ("name", "hidden"), [("cnn", (4, 8)), ("resnet18", ()), ("densenet121", ())]
)
def test_networks_are_the_same_on_every_machine_and_leave_torchs_generator_alone(
    name: str, hidden: tuple[int, ...]
) -> None:
    spec = ModelSpec(name=name, shape=(1, 32, 32), hidden=hidden, initial_seed=3)
    state = torch.random.get_rng_state()

    first, second = build_model(spec, 1024), build_model(spec, 1024)

    assert torch.equal(state, torch.random.get_rng_state())
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    records = torch.linspace(-1, 1, 3 * 1024).reshape(3, 1024)
    assert first(records).shape == (3,)
    assert not any(getattr(m, "inplace", False) for m in first.modules())
    assert not any("BatchNorm" in type(m).__name__ for m in first.modules())


@pytest.mark.parametrize(("name", "hidden"), [("cnn", (4,)), ("resnet18", ())])
def test_a_patients_images_train_with_the_patient_level_engine(
    name: str, hidden: tuple[int, ...], tmp_path: Path
) -> None:
    """The model check passes (no layer mixes patients, nothing in place), and a round runs."""
    path = npz(tmp_path / "a.npz", patients=PEOPLE, labels=LABELS, splits=SPLITS)
    study = image_study(
        model={"name": name, "shape": [1, SIDE, SIDE], "hidden": list(hidden)},
        rounds=1,
        local_steps=1,
    )
    records = source(path).records(study, part="train")
    trainer = LocalTrainer(
        study,
        SiteId(SITES[0]),
        sampling=Csprng(),
        noise=Csprng(),
        flags=PerformanceFlags(backend="loop"),
    )
    start = initial_tensors(study.model, task_of(study).inputs)

    update = trainer.train(start, records)

    assert set(update.tensors) == set(start)
    assert any(not np.array_equal(update.tensors[k], start[k]) for k in start)


@pytest.mark.slow
def test_densenet121_passes_the_model_check(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", patients=PEOPLE, labels=LABELS, splits=SPLITS, side=32)
    study = image_study(
        data={"height": 32, "width": 32},
        model={"name": "densenet121", "shape": [1, 32, 32]},
        rounds=1,
        local_steps=1,
    )
    trainer = LocalTrainer(
        study,
        SiteId(SITES[0]),
        sampling=Csprng(),
        noise=Csprng(),
        flags=PerformanceFlags(backend="loop"),
    )

    update = trainer.train(
        initial_tensors(study.model, 1024), source(path).records(study, part="train")
    )

    assert update.tensors


def test_an_image_of_another_shape_is_fitted_in_proportion() -> None:
    wide = np.ones((10, 40), dtype=np.float32)

    out = fitted(wide, height=20, width=20)

    assert out.shape == (20, 20)
    assert np.flatnonzero(out.sum(axis=1)).tolist() == [7, 8, 9, 10, 11] or out.sum() == 100.0
    assert out[:7].sum() == 0.0


def test_another_patient_key_than_the_sites_is_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", patients=PEOPLE, labels=LABELS, splits=SPLITS)

    with pytest.raises(DataError, match="patient_key"):
        source(path, key="visit").records(image_study(), part="train")


def test_a_study_with_a_wrong_shape_is_refused() -> None:
    for spec in (
        ModelSpec(name="cnn", shape=(1, 5, 5), hidden=(4,)),
        ModelSpec(name="cnn", shape=(1, SIDE, SIDE)),
        ModelSpec(name="resnet18", shape=(1, SIDE, SIDE), hidden=(4,)),
    ):
        with pytest.raises(ConfigError):
            build_model(spec, SIDE * SIDE)


def test_refusals_are_policy_refusals(policy: SitePolicy) -> None:
    with pytest.raises(PolicyRefused):
        policy.permits(record_study(), now=datetime.now(UTC))
