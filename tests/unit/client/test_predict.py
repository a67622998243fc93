"""A model's answer as report, capture, segmentation, picture and ONNX; each says its origin."""

from pathlib import Path

import highdicom as hd
import numpy as np
import onnx
import pytest
from PIL import Image
from pydicom import Dataset, dcmread

from fedward_client.predict.answer import answer
from fedward_client.predict.export import export_onnx
from fedward_client.predict.objects import procedure_of
from fedward_client.predict.package import Predictor
from fedward_client.predict.subject import read_subject
from fedward_common.errors import ConfigError, DataError, SignatureRefused
from fedward_common.study.spec import StudySpec
from tests.support.dicom_objects import complete, write
from tests.support.image_studies import SIDE, classes_study, image_study, masks_study
from tests.support.packages import make_package

NOTE = "not for clinical use"


def series(folder: Path, *, slices: int = 10, size: int = 20) -> Path:
    """Slices whose names, numbers and places are in three different orders."""
    generator = np.random.default_rng(3)
    for number in range(slices):
        dataset = complete(z=2.0 * ((number * 7) % slices), number=number + 1, size=size)
        dataset.PixelData = generator.integers(0, 4096, (size, size), dtype="<u2").tobytes()
        write(dataset, folder / f"{number}.dcm")
    return folder


def everything(dataset: Dataset) -> str:
    return str(dataset)


def test_classes_become_a_report_and_a_capture_that_name_model_study_and_use(
    tmp_path: Path,
) -> None:
    package = make_package(tmp_path, classes_study())
    image = write(complete(size=30, value=2000), tmp_path / "a.dcm")

    found = answer(package.opened(), image, out=tmp_path / "out")

    assert sum(found.facts["scores"].values()) == pytest.approx(1.0, abs=1e-5)
    report = dcmread(tmp_path / "out" / "report.dcm")
    capture = dcmread(tmp_path / "out" / "capture.dcm")
    digest = found.facts["model_sha256"]
    said = [str(one.value) for one in report.iterall() if one.keyword == "TextValue"]
    assert (report.Modality, report.PatientID) == ("SR", "P-0001")
    assert {digest, f"model_sha256: {digest}", "study: made-up", f"intended_use: {NOTE}"} <= {*said}
    values = [float(one.value) for one in report.iterall() if one.keyword == "NumericValue"]
    assert values == pytest.approx(list(found.facts["scores"].values()), abs=1e-5)
    assert report.StudyInstanceUID == capture.StudyInstanceUID == "1.2.3.1"
    assert NOTE in capture.SeriesDescription
    assert digest[:12] in capture.ImageComments
    assert (capture.BurnedInAnnotation, capture.SamplesPerPixel) == ("YES", 3)
    assert (tmp_path / "out" / "report.dcm").stat().st_mode & 0o077 == 0


def test_a_segmentation_lies_where_the_images_lie(tmp_path: Path) -> None:
    """Read back: every marked pixel is at the same place of the patient as in the source slice."""
    study = masks_study()
    package = make_package(tmp_path, study, seed=1)
    folder = series(tmp_path / "series")
    predictor = package.opened()
    subject = read_subject(folder, predictor.data)
    expected = subject.as_it_came(predictor.mask(subject.features))

    answer(predictor, folder, out=tmp_path / "out")

    seg = hd.seg.segread(tmp_path / "out" / "segmentation.dcm")
    places = [one.ImagePositionPatient for one in subject.sources]
    assert [float(place[2]) for place in places] == [2.0 * n for n in range(10)]
    assert 0 < expected.sum() < expected.size
    uids = [one.SOPInstanceUID for one in subject.sources]
    pixels = seg.get_pixels_by_source_instance(uids, ignore_spatial_locations=True)
    np.testing.assert_array_equal(pixels[..., 0], expected)
    volume = seg.get_volume(combine_segments=False)
    source = np.array(subject.sources[0].ImagePositionPatient, float)
    marked = np.argwhere(np.asarray(volume.array)[..., 0] == 1)
    mapped = volume.map_indices_to_reference(marked)
    there = {tuple(np.round(place, 3)) for place in mapped}
    row, column = (float(part) for part in subject.sources[0].PixelSpacing)
    wanted = {
        tuple(np.round(source + np.array([column * c, row * r, 2.0 * s]), 3))
        for s, r, c in np.argwhere(expected == 1)
    }
    assert there == wanted
    assert NOTE in seg.ContentDescription
    assert seg.PatientID == "P-0001"
    assert predictor.origin.model_sha256 in everything(seg)


@pytest.mark.parametrize("method", ["grad-cam", "integrated-gradients"])
def test_an_explanation_is_a_picture_and_a_capture(method: str, tmp_path: Path) -> None:
    package = make_package(tmp_path, classes_study())
    dataset = complete(size=24)
    dataset.PixelData = np.random.default_rng(0).integers(0, 4096, (24, 24), "<u2").tobytes()
    image = write(dataset, tmp_path / "a.dcm")

    found = answer(package.opened(), image, out=tmp_path / "out", explain=method)

    picture = Image.open(tmp_path / "out" / f"{method}.png")
    pixels = np.asarray(picture).astype(int)
    assert picture.text["model_sha256"] == found.facts["model_sha256"]  # type: ignore[attr-defined]
    assert picture.text["intended_use"] == NOTE  # type: ignore[attr-defined]
    assert (pixels[..., 0] - pixels[..., 1]).max() > 30  # somewhere the heat is seen
    assert dcmread(tmp_path / "out" / f"{method}.dcm").Rows == pixels.shape[0]
    with pytest.raises(ConfigError, match="grad-cam or integrated-gradients"):
        answer(package.opened(), image, out=tmp_path / "out", explain="magic")


@pytest.mark.parametrize("method", ["grad-cam", "integrated-gradients"])
def test_a_model_of_colour_images_answers_in_colour_and_takes_no_grey_one(
    method: str, tmp_path: Path
) -> None:
    study = image_study(
        data={"channels": 3}, model={"name": "cnn", "shape": [3, SIDE, SIDE], "hidden": [4]}
    )
    package = make_package(tmp_path, study)
    dataset = complete(size=24)
    dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
    dataset.PhotometricInterpretation = "RGB"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    pixels = np.zeros((24, 24, 3), dtype=np.uint8)
    pixels[..., 1] = 200
    dataset.PixelData = pixels.tobytes()
    image = write(dataset, tmp_path / "a.dcm")

    answer(package.opened(), image, out=tmp_path / "out", explain=method)

    shown = dcmread(tmp_path / "out" / "capture.dcm").pixel_array
    assert (shown[:SIDE, :SIDE, 1] > 190).all()
    assert (shown[:SIDE, :SIDE, 0] == 0).all()
    assert (tmp_path / "out" / f"{method}.png").is_file()
    grey = write(complete(size=24), tmp_path / "grey.dcm")
    with pytest.raises(DataError, match="expected colour images, found grey"):
        answer(package.opened(), grey, out=tmp_path / "out")


BANK = {"name": "filter-bank", "shape": [1, 8, 8, 8], "hidden": [4, 4], "outputs": 2}


@pytest.mark.parametrize("study", [classes_study(), masks_study(model=BANK)])
def test_onnx_answers_as_torch_does_and_names_its_model(study: StudySpec, tmp_path: Path) -> None:
    package = make_package(tmp_path, study)
    predictor = package.opened()

    worst = export_onnx(predictor, tmp_path / "a.onnx")

    facts = {prop.key: prop.value for prop in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert worst <= 1e-4
    assert facts["model_sha256"] == predictor.origin.model_sha256
    assert facts["intended_use"] == NOTE


def test_a_changed_package_or_study_and_an_unfit_image_are_refused(tmp_path: Path) -> None:
    package = make_package(tmp_path / "a", classes_study())
    other = make_package(tmp_path / "b", classes_study(title="Another"))

    with pytest.raises(SignatureRefused, match="the study of the model"):
        Predictor.open(package.folder, approved=None, public_key=None, study_file=other.study_file)
    with pytest.raises(ConfigError, match="--study"):
        Predictor.open(package.folder, approved=None)
    with pytest.raises(SignatureRefused, match="approved"):
        Predictor.open(package.folder, approved=frozenset())
    (tmp_path / "x.dcm").write_bytes(b"Muster^Erika")
    with pytest.raises(DataError) as error:
        read_subject(tmp_path / "x.dcm", package.opened().data)
    assert "Muster" not in str(error.value)
    model = package.folder / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"\x01")
    with pytest.raises(SignatureRefused):
        package.opened()


def test_an_image_without_a_patient_is_refused_without_words(tmp_path: Path) -> None:
    dataset = complete()
    del dataset.StudyInstanceUID
    write(dataset, tmp_path / "a.dcm")
    package = make_package(tmp_path, classes_study())

    with pytest.raises(DataError, match="patient, study"):
        answer(package.opened(), tmp_path / "a.dcm", out=tmp_path / "out")


@pytest.mark.parametrize(
    ("modalities", "code"),
    [
        (["MR", "MR"], "113091000"),
        (["DX"], "168537006"),
        (["CT", "MR"], "363679005"),
        (["XX"], "363679005"),
        ([None], "363679005"),
    ],
)
def test_a_report_says_what_was_done_by_the_images_modality(
    modalities: list[str | None], code: str
) -> None:
    images = [Dataset() for _ in modalities]
    for image, modality in zip(images, modalities, strict=True):
        if modality is not None:
            image.Modality = modality

    assert procedure_of(images).value == code
