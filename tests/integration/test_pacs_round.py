"""Forty real objects in a PACS become a trained model, and its answers go back into the PACS."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.data.data_manager import DATA_ROOT
from pydicom.errors import InvalidDicomError

from fedward_client.data.dicom.index import ImageIndex, Indexed
from fedward_client.data.dicom.pixels import load_picture
from fedward_client.data.dicom.reasons import BadObject
from fedward_client.pacs.web import WebPacs
from fedward_client.predict.answer import answer
from tests.support.dicom_objects import complete, reread, written
from tests.support.image_studies import masks_study
from tests.support.live import program
from tests.support.orthanc import Orthanc, orthanc  # noqa: F401
from tests.support.packages import make_package

pytestmark = pytest.mark.federation

SITES = ("north", "east", "south")
STUDY = """
id = "modality"
title = "Magnetic resonance or not, from three archives"
rounds = 1
local_steps = 2
quorum = 3
deadline_seconds = 120

[task]
kind = "image-classification"

[model]
name = "cnn"
shape = [1, 16, 16]
hidden = [4]

[dp]
kind = "dp-sgd"
epsilon = 20.0
delta = 1e-3
clip_norm = 1.0
sampling_probability = 0.5
max_records_per_patient = 4

[training]
learning_rate = 0.5

[aggregation]
name = "fedavg"

[[releases]]
kind = "binned-scores"
bins = 4
noise_multiplier = 4.0

[data]
kind = "image"
height = 16
width = 16

[data.label]
column = "mr"
low = 0
high = 1
positive_from = 1

[data.split]
kind = "column"
column = "split"
"""


def real_objects(count: int) -> list[Dataset]:
    """Objects of real scanners and programs that come with pydicom: images with a patient id."""
    found: dict[str, Dataset] = {}
    for path in sorted(Path(DATA_ROOT, "test_files").rglob("*")):
        if not path.is_file() or path.stat().st_size > 200_000:
            continue
        try:
            dataset = dcmread(path)
        except (InvalidDicomError, ValueError, NotImplementedError):
            continue
        whole = all(
            dataset.get(name) for name in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")
        )
        if whole and "PixelData" in dataset and dataset.get("Modality") not in ("SEG", "RTDOSE"):
            found.setdefault(str(dataset.SOPInstanceUID), dataset)
    return list(found.values())[:count]


def pulled(url: str, patients: Sequence[str], folder: Path) -> list[Indexed]:
    """What the commands for images find of these patients, in `folder`/objects."""
    for patient in patients:
        done = program(
            "fedward-client",
            "images",
            "pull",
            folder / "objects",
            "--url",
            url,
            "--where",
            f"PatientID={patient}",
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
    done = program(
        "fedward-client",
        "images",
        "index",
        folder / "objects",
        "--index",
        folder / "index.sqlite",
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    with ImageIndex(folder / "index.sqlite") as index:
        return list(index.images())


def is_decodable(folder: Path, one: Indexed) -> bool:
    """Some of pydicom's objects are broken on purpose: `images pack` would name their rows."""
    try:
        load_picture(folder / "objects" / one.path, window=None)
    except BadObject:
        return False
    return True


def in_table(folder: Path, images: Sequence[Indexed]) -> None:
    """images.csv of single images: their patient, and whether there are some of magnetic
    resonance of them.
    """
    single = [one for one in images if one.header.frames == 1 and is_decodable(folder, one)]
    people = sorted({one.header.patient for one in single})
    scanned = {one.header.patient for one in single if one.header.modality == "MR"}
    held_out = people[1:2]  # nobody where there is one patient
    with (folder / "images.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "patient_id", "mr", "split"])
        for one in single:
            header = one.header
            part = "test" if header.patient in held_out else "train"
            mr = int(header.patient in scanned)
            rows.writerow([f"objects/{one.path}", header.patient, mr, part])


def modalities(pacs: WebPacs, study: str) -> set[str]:
    (found,) = pacs.find({"StudyInstanceUID": study})
    return set(found.modalities)


def test_forty_real_objects_from_the_pacs_train_a_round_and_the_answers_go_back(
    orthanc: Orthanc,  # noqa: F811
    tmp_path: Path,
) -> None:
    pacs = WebPacs(orthanc.url)
    stored = real_objects(40)
    pacs.store(stored)
    patients = sorted({str(one.PatientID) for one in stored})

    options = []
    text = STUDY
    for number, site in enumerate(SITES):  # each asks the archive for its own patients
        folder = tmp_path / site
        images = pulled(orthanc.url, patients[number :: len(SITES)], folder)
        in_table(folder, images)
        options += ["--site", f"{site}={folder}"]
        text += f'\n[[sites]]\nid = "{site}"\npatients = 2\n'
    (tmp_path / "study.toml").write_text(text)
    out = tmp_path / "out"
    done = program(
        "fedward-server",
        "sandbox",
        tmp_path / "study.toml",
        *options,
        "--out",
        out,
        "--json",
        timeout=600,
    )

    assert len(stored) == 40
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rounds"] == {"committed": 1, "abandoned": 0}

    one = next((tmp_path / "north" / "objects").iterdir())
    answered = program(
        "fedward-client",
        "predict",
        out / "model",
        one,
        "--config",
        out / "sites" / "north" / "site.toml",
        "--store",
        orthanc.url,
        "--out",
        tmp_path / "answer",
        timeout=120,
    )
    assert answered.returncode == 0, answered.stderr
    assert "SR" in modalities(pacs, str(dcmread(one).StudyInstanceUID))

    volume = [complete(z=2.0 * n, number=n + 1, study="1.2.3.904", size=20) for n in range(6)]
    pacs.store([reread(written(slice)) for slice in volume])
    pacs.pull(["1.2.3.904"], into=tmp_path / "series")
    masks = make_package(tmp_path / "masks", masks_study(), seed=1).opened()
    pacs.store(answer(masks, tmp_path / "series", out=tmp_path / "seg").objects)
    assert "SEG" in modalities(pacs, "1.2.3.904")
