"""A packed folder reads as the folder does; what cannot be read is named by its row alone."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from fedward_client.data.image_pack import pack, read_schema
from fedward_client.data.images import ImageSource
from fedward_client.data_entries import ImageFiles
from fedward_common.errors import ConfigError, DataError
from tests.support.dicom_objects import ct_slice, write
from tests.support.image_studies import image_study

PEOPLE = ("a", "a", "b", "c")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four slices of three patients with images.csv."""
    folder = tmp_path / "objects"
    folder.mkdir()
    with (folder / "images.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "patient_id", "label", "split"])
        for number, patient in enumerate(PEOPLE):
            name = f"Muster_{number}.dcm"
            part = "test" if patient == "c" else "train"
            write(ct_slice(patient=patient, sop=f"1.2.9.{number + 1}", z=number), folder / name)
            rows.writerow([name, patient, int(patient == "b"), part])
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.json"
    path.write_text(json.dumps(image_study().model_dump(mode="json")))
    return path


def records(path: Path, part: str):  # type: ignore[no-untyped-def]
    files = ImageFiles(path=path, patient_key="patient_id", no_patient_key=False)
    return ImageSource([files]).records(image_study(), part=part)  # type: ignore[arg-type]


def test_a_packed_folder_reads_as_the_folder_does(
    folder: Path, study: Path, tmp_path: Path
) -> None:
    count = pack(folder, study, tmp_path / "images.npz")

    assert count == len(PEOPLE)
    assert (tmp_path / "images.npz").stat().st_mode & 0o077 == 0
    for part in ("train", "test"):
        single, packed = records(folder, part), records(tmp_path / "images.npz", part)
        assert np.array_equal(single.features, packed.features)
        assert np.array_equal(single.labels, packed.labels)
        assert np.array_equal(single.patient, packed.patient)


def test_an_unreadable_image_is_named_by_its_row_alone(
    folder: Path, study: Path, tmp_path: Path
) -> None:
    (folder / "Muster_2.dcm").write_bytes(b"no DICOM")

    with pytest.raises(DataError, match=r"images.csv, row 4: .*readable") as error:
        pack(folder, study, tmp_path / "images.npz")

    assert "Muster" not in str(error.value)
    assert not (tmp_path / "images.npz").exists()


def test_no_study_of_images_and_a_file_that_is_there_are_refused(
    folder: Path, study: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.toml"
    other.write_text('[data]\nkind = "tabular"\n')
    with pytest.raises(ConfigError, match=r"\[data\] of images"):
        read_schema(other)
    (tmp_path / "images.npz").write_bytes(b"")
    with pytest.raises(ConfigError, match="expected no file of that name"):
        pack(folder, study, tmp_path / "images.npz")
