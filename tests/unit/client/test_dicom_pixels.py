"""Pixels: the same numbers that PS3.3 asks for, and nothing of the header but an allow-list."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from fedward_client.data.dicom.header import read_header
from fedward_client.data.dicom.pixels import (
    ALLOWED,
    CODE_CHARACTERS,
    Window,
    load_picture,
    picture_of,
)
from fedward_client.data.dicom.reasons import BadObject, Reason
from fedward_client.data.dicom.series import load_volume
from fedward_client.data.nifti import load_nifti
from fedward_common.errors import DataError
from tests.support.dicom_objects import DICOM_TEST, SHARED, ct_slice, reread, write, written

NO_SHARED = pytest.mark.skipif(
    not DICOM_TEST.is_dir(), reason="the DICOM test files are not at ../shared/data"
)
NIFTI = SHARED / "hippocampus_msd" / "nifti"


@NO_SHARED
def test_every_real_image_that_the_index_takes_becomes_pixels_between_0_and_1() -> None:
    taken = 0
    for path in sorted(p for p in DICOM_TEST.rglob("*") if p.is_file()):
        try:
            header = read_header(path)
        except BadObject:
            continue
        picture = load_picture(path)
        taken += 1

        assert picture.pixels.shape[:3] == (header.frames, header.rows, header.columns)
        assert picture.pixels.dtype == np.float32
        assert 0.0 <= picture.pixels.min() <= picture.pixels.max() <= 1.0
        assert set(picture.header) <= set(ALLOWED)
        for value in picture.header.values():
            assert not isinstance(value, str) or set(value) <= CODE_CHARACTERS
    assert taken == 31


@NO_SHARED
def test_every_other_real_file_is_decoded_or_refused_without_words_of_its_own() -> None:
    for path in sorted(p for p in DICOM_TEST.rglob("*") if p.is_file()):
        words = _refusal(path)

        assert words in {"", Reason.UNREADABLE.value}


def _refusal(path: Path) -> str:
    try:
        load_picture(path)
    except BadObject as bad:
        return str(bad)
    return ""


def test_twelve_bit_lossy_jpeg_has_no_free_codec_here_and_is_refused() -> None:
    assert _refusal(Path(get_testdata_file("JPGExtended.dcm") or "")) == Reason.UNREADABLE.value


def test_nothing_that_pydicom_says_about_odd_values_reaches_a_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = ct_slice()
    dataset.Modality = "muster^erika"  # no code: pydicom quotes it
    dataset.WindowCenter, dataset.WindowWidth = 40, 400
    path = write(dataset, tmp_path / "a.dcm")
    caplog.clear()
    capfd.readouterr()

    read_header(path)
    load_picture(path)

    assert "erika" not in caplog.text.lower() + "".join(capfd.readouterr()).lower()


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_are_those_of_the_standard_as_pydicom_computes_them(function: str) -> None:
    dataset = _ramp()
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = 40, 400, function

    found = picture_of(dataset).pixels[0, :, :, 0]

    expected = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    # pydicom's output runs over the range of the stored bits after the rescale: -1024..3071.
    np.testing.assert_allclose(found, (expected + 1024.0) / 4095.0, atol=2e-6)


@NO_SHARED
def test_a_voi_table_is_applied() -> None:
    path = DICOM_TEST / "pydicom-data" / "mlut_18.dcm"
    dataset = dcmread(path)

    found = load_picture(path).pixels[0, :, :, 0]

    stored = apply_modality_lut(dataset.pixel_array, dataset)
    assert np.corrcoef(found.ravel(), stored.ravel())[0, 1] > 0.9


def test_a_public_window_overrules_the_one_in_the_header() -> None:
    dataset = _ramp()
    dataset.WindowCenter, dataset.WindowWidth = 0, 1

    found = picture_of(dataset, window=Window(low=-1024.0, high=3071.0)).pixels[0, :, :, 0]

    np.testing.assert_allclose(found, dataset.pixel_array / 4095.0, atol=1e-6)


def test_without_a_window_the_range_of_the_stored_bits_counts_not_that_of_the_image() -> None:
    found = picture_of(_with_file(ct_slice(value=4095))).pixels

    assert np.all(found == 1.0)
    assert picture_of(_with_file(ct_slice(value=0))).pixels.max() == 0.0


def test_monochrome1_is_turned_round() -> None:
    dataset = _ramp()
    straight = picture_of(dataset).pixels
    dataset.PhotometricInterpretation = "MONOCHROME1"

    np.testing.assert_allclose(picture_of(dataset).pixels, 1.0 - straight, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("SC_rgb_rle.dcm", (1, 100, 100, 3)),
        ("SC_ybr_full_422_uncompressed.dcm", (1, 100, 100, 3)),
        ("examples_palette.dcm", (1, 350, 800, 3)),
        ("MR_small_jpeg_ls_lossless.dcm", (1, 64, 64, 1)),
        ("MR_small_jp2klossless.dcm", (1, 64, 64, 1)),
        ("MR_small_bigendian.dcm", (1, 64, 64, 1)),
        ("image_dfl.dcm", (1, 512, 512, 1)),
        ("rtdose.dcm", None),
    ],
)
def test_transfer_syntaxes_and_colours_of_pydicoms_own_files(
    name: str, shape: tuple[int, ...] | None
) -> None:
    path = Path(get_testdata_file(name) or "")

    if shape is None:
        with pytest.raises(BadObject):
            read_header(path)
    else:
        assert load_picture(path).pixels.shape == shape


def test_a_header_that_asks_for_more_than_memory_holds_is_refused() -> None:
    dataset = _with_file(ct_slice())
    dataset.Rows = dataset.Columns = 65535

    with pytest.raises(BadObject):
        picture_of(dataset)


def test_text_in_an_allowed_element_passes_only_as_a_code(tmp_path: Path) -> None:
    dataset = ct_slice()
    dataset.ViewPosition = "AP"
    dataset.ImageLaterality = "Muster^Erika"
    dataset.PatientSex = "F"

    header = load_picture(write(dataset, tmp_path / "a.dcm")).header

    assert header["ViewPosition"] == "AP"
    assert "ImageLaterality" not in header
    assert "PatientSex" not in header


def test_slices_are_sorted_by_place_with_spacing_and_orientation(tmp_path: Path) -> None:
    # Instance numbers and names run against the places.
    paths = [
        write(
            ct_slice(z=3.0 * i, number=9 - i, value=400 * i, series="1.5"),
            tmp_path / f"{9 - i}.dcm",
        )
        for i in (2, 0, 3, 1)
    ]

    volume = load_volume(paths)

    assert np.all(np.diff(volume.voxels[:, 0, 0]) > 0)
    assert volume.spacing == (3.0, 0.5, 0.75)
    np.testing.assert_allclose(volume.orientation, np.eye(3)[::-1])
    np.testing.assert_allclose(volume.origin, [-10.0, -20.0, 0.0])


@pytest.mark.parametrize(
    ("places", "words"), [((0.0, 2.0, 6.0), "missing slice"), ((0.0, 2.0, 2.0), "two at one")]
)
def test_a_series_with_a_hole_or_two_slices_at_one_place_is_no_volume(
    places: tuple[float, ...], words: str, tmp_path: Path
) -> None:
    paths = [write(ct_slice(z=z), tmp_path / f"{i}.dcm") for i, z in enumerate(places)]

    with pytest.raises(DataError, match=words):
        load_volume(paths)


@NO_SHARED
def test_a_real_series_of_three_slices_is_a_volume() -> None:
    volume = load_volume(sorted((DICOM_TEST / "dcmqi/segmentations/ct-3slice").iterdir()))

    assert volume.voxels.shape == (3, 512, 512)
    assert min(volume.spacing) > 0


@pytest.mark.skipif(not NIFTI.is_dir(), reason="the hippocampus files are not at ../shared/data")
def test_real_nifti_volumes_have_positive_spacing_and_labels_in_the_same_order() -> None:
    for path in sorted((NIFTI / "images").iterdir()):
        volume = load_nifti(path)
        label = load_nifti(NIFTI / "labels" / path.name, window=Window(low=0, high=2))

        assert volume.voxels.shape == label.voxels.shape
        assert set(np.unique(label.voxels)) == {0.0, 0.5, 1.0}
        assert volume.spacing == pytest.approx((1.0, 1.0, 1.0))
        np.testing.assert_allclose(volume.orientation @ volume.orientation.T, np.eye(3), atol=1e-6)


def test_a_nifti_volume_keeps_its_voxels_in_their_places(tmp_path: Path) -> None:
    data = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    affine = np.diag([-1.5, -2.0, 3.0, 1.0])  # x to the left, y to the back: LPS as it is
    affine[:3, 3] = [10.0, 20.0, 30.0]
    nibabel.save(nibabel.Nifti1Image(data, affine), tmp_path / "a.nii.gz")

    volume = load_nifti(tmp_path / "a.nii.gz", window=Window(low=0.0, high=23.0))

    assert volume.voxels.shape == (4, 3, 2)
    assert volume.spacing == (3.0, 2.0, 1.5)
    assert volume.voxels[3, 2, 1] == 1.0
    np.testing.assert_allclose(volume.origin, [-10.0, -20.0, 30.0])
    np.testing.assert_allclose(volume.orientation, np.eye(3)[::-1])


def test_what_is_no_nifti_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"no volume")

    with pytest.raises(DataError):
        load_nifti(tmp_path / "a.nii")


def _ramp() -> Dataset:
    dataset = ct_slice(size=64)
    dataset.PixelData = np.arange(4096, dtype="<u2").tobytes()
    return _with_file(dataset)


def _with_file(dataset: Dataset) -> Dataset:
    """As it is after it was written and read: pixel_array asks for that."""
    return reread(written(dataset))
