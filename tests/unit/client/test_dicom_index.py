"""The image index: what is used, what is set aside and why, and that it can be resumed."""

import gzip
import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import UID, EncapsulatedPDFStorage, JPEG2000Lossless

from fedward_client.data.dicom.header import read_header
from fedward_client.data.dicom.index import ImageIndex
from fedward_client.data.dicom.reasons import BadObject, Reason
from fedward_client.data.dicom.scan import DataReport, index_folder
from fedward_common.errors import DataError
from tests.support.dicom_objects import DICOM_TEST, ct_slice, write, written

NO_SHARED = pytest.mark.skipif(
    not DICOM_TEST.is_dir(), reason="the DICOM test files are not at ../shared/data"
)


def indexed(root: Path, *, file: Path | None = None) -> DataReport:
    with ImageIndex(file or root.parent / "index.sqlite") as index:
        return index_folder(root, index)


def reason_of(path: Path) -> Reason | None:
    try:
        read_header(path)
    except BadObject as bad:
        return bad.reason
    return None


def test_every_image_of_a_folder_is_indexed_by_study(tmp_path: Path) -> None:
    for number in range(3):
        write(ct_slice(number=number, z=number * 2.0), tmp_path / "in" / f"a{number}.dcm")
    write(ct_slice(patient="P-2", study="1.9", series="1.9.1"), tmp_path / "in" / "b" / "c")

    report = indexed(tmp_path / "in")

    assert (report.files, report.images, report.series) == (4, 4, 2)
    assert (report.studies, report.patients, report.quarantined) == (2, 2, {})


def test_the_index_is_private_to_its_user(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    indexed(tmp_path / "in")

    assert stat.S_IMODE((tmp_path / "index.sqlite").stat().st_mode) == 0o600


BROKEN: dict[str, tuple[Callable[[Dataset], None], Reason]] = {
    "no patient id": (lambda d: setattr(d, "PatientID", " "), Reason.NO_PATIENT_ID),
    "no rows": (lambda d: delattr(d, "Rows"), Reason.MISSING_ELEMENT),
    "no series": (lambda d: delattr(d, "SeriesInstanceUID"), Reason.MISSING_ELEMENT),
    "no pixels": (lambda d: delattr(d, "PixelData"), Reason.MISSING_PIXEL_DATA),
    "pixels too short": (
        lambda d: setattr(d, "PixelData", d.PixelData[:-2]),
        Reason.WRONG_LENGTH,
    ),
    "pixels too long": (
        lambda d: setattr(d, "PixelData", d.PixelData + b"\0\0"),
        Reason.WRONG_LENGTH,
    ),
    "a document": (
        lambda d: setattr(d, "SOPClassUID", EncapsulatedPDFStorage),
        Reason.ENCAPSULATED_DOCUMENT,
    ),
    "an unknown class": (lambda d: setattr(d, "SOPClassUID", UID("1.2.3")), Reason.NOT_AN_IMAGE),
    "more frames than pixels": (
        lambda d: setattr(d, "NumberOfFrames", 2),
        Reason.WRONG_LENGTH,
    ),
}


@pytest.mark.parametrize("case", sorted(BROKEN))
def test_a_bad_object_is_set_aside_with_its_reason(case: str, tmp_path: Path) -> None:
    spoil, expected = BROKEN[case]
    dataset = ct_slice()
    spoil(dataset)
    write(dataset, tmp_path / "in" / "bad.dcm")
    write(ct_slice(), tmp_path / "in" / "good.dcm")

    report = indexed(tmp_path / "in")

    assert report.quarantined == {expected.value: 1}
    assert report.images == 1


def test_an_object_cut_off_anywhere_is_never_used_and_never_stops_the_index(
    tmp_path: Path,
) -> None:
    whole = written(ct_slice())
    path = tmp_path / "cut.dcm"

    found = set()
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        found.add(reason_of(path))

    assert None not in found
    assert Reason.TRUNCATED in found


def test_compressed_pixels_cut_off_are_truncated(tmp_path: Path) -> None:
    source = Path(get_testdata_file("MR_small_jp2klossless.dcm") or "")
    data = source.read_bytes()
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(data[: len(data) // 2])

    assert reason_of(source) is None
    assert reason_of(cut) is Reason.TRUNCATED


def test_compressed_syntax_with_plain_pixels_has_a_wrong_length(tmp_path: Path) -> None:
    data = written(ct_slice()).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4.90"[:20])
    assert JPEG2000Lossless == "1.2.840.10008.1.2.4.90"
    path = tmp_path / "odd.dcm"
    path.write_bytes(data)

    assert reason_of(path) in {Reason.WRONG_LENGTH, Reason.UNKNOWN_TRANSFER_SYNTAX}


@pytest.mark.parametrize(
    ("declared", "name", "expected"),
    [
        ("GB18030", "王^小东".encode("gb18030"), None),
        ("ISO_IR 192", "Müller^Jürgen".encode(), None),
        ("ISO_IR 192", "Müller^Jürgen".encode("latin-1"), Reason.WRONG_CHARSET),
        ("", "Müller^Jürgen".encode("latin-1"), Reason.WRONG_CHARSET),
        ("ISO_IR 999", b"Muller^J", Reason.WRONG_CHARSET),
    ],
)
def test_who_the_patient_is_must_be_readable_in_the_declared_charset(
    declared: str, name: bytes, expected: Reason | None, tmp_path: Path
) -> None:
    dataset = ct_slice()
    dataset.PatientName = "X" * len(name)
    data = written(dataset).replace(b"X" * len(name), name)
    if declared:
        dataset.SpecificCharacterSet = "Y" * len(declared)
        data = written(dataset).replace(b"X" * len(name), name)
        data = data.replace(b"Y" * len(declared), declared.encode())
    (tmp_path / "a.dcm").write_bytes(data)

    assert reason_of(tmp_path / "a.dcm") is expected


def test_a_series_of_two_kinds_is_set_aside_whole(tmp_path: Path) -> None:
    write(ct_slice(number=1), tmp_path / "in" / "1.dcm")
    write(ct_slice(number=2, size=8), tmp_path / "in" / "2.dcm")

    assert indexed(tmp_path / "in").quarantined == {"mixed-series": 2}


def test_a_study_of_two_patients_is_set_aside_whole(tmp_path: Path) -> None:
    write(ct_slice(patient="A"), tmp_path / "in" / "1.dcm")
    write(ct_slice(patient="B", series="1.2.3.1.9"), tmp_path / "in" / "2.dcm")

    assert indexed(tmp_path / "in").quarantined == {"mixed-series": 2}


def test_of_equal_files_one_stays_and_of_unequal_ones_with_one_uid_none(tmp_path: Path) -> None:
    same = ct_slice(sop="1.2.3.77")
    write(same, tmp_path / "in" / "a.dcm")
    (tmp_path / "in" / "a.dcm.gz").write_bytes(gzip.compress(written(same)))
    write(ct_slice(sop="1.2.3.88", value=1), tmp_path / "in" / "c.dcm")
    write(ct_slice(sop="1.2.3.88", value=2), tmp_path / "in" / "d.dcm")

    assert indexed(tmp_path / "in").quarantined == {"duplicate": 1, "duplicate-uid": 2}


def test_a_second_run_reads_only_what_changed(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for number in range(3):
        write(ct_slice(number=number), root / f"{number}.dcm")
    first = indexed(root)
    (root / "0.dcm").unlink()
    write(ct_slice(number=1, value=7, size=12, series="1.2.3.1.4"), root / "1.dcm")
    write(ct_slice(number=9), root / "9.dcm")

    second = indexed(root)

    assert (first.read, second.read, second.unchanged, second.gone) == (3, 2, 1, 1)
    assert second.images == 3


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for number in range(4):
        write(ct_slice(number=number), root / f"{number}.dcm")

    def stop(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with ImageIndex(tmp_path / "x.sqlite") as index, pytest.raises(KeyboardInterrupt):
        index_folder(root, index, progress=stop)

    report = indexed(root, file=tmp_path / "x.sqlite")

    assert (report.read, report.unchanged, report.images) == (2, 2, 4)


def test_a_name_of_foreign_bytes_and_links_do_no_harm(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write(ct_slice(), root / "a.dcm")
    (root / "a.dcm").rename(os.fsdecode(os.fsencode(root) + b"/\xff\xfe.dcm"))
    (root / "loop").symlink_to(root)

    assert indexed(root).images == 1


def test_a_dicomdir_names_its_files_and_missing_ones_are_counted(tmp_path: Path) -> None:
    source = Path(get_testdata_file("DICOMDIR") or "")
    with ImageIndex(tmp_path / "index.sqlite") as index:
        report = index_folder(source.parent, index, dicomdir=source)

    # pydicom's own set: 31 images of 2 patients are named.
    assert report.files == 31
    assert report.files == report.images + sum(report.quarantined.values())
    assert report.images > 0


def test_a_dicomdir_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    source = Path(get_testdata_file("DICOMDIR") or "")
    data = source.read_bytes()
    assert data.count(b"77654033") > 1
    (tmp_path / "DICOMDIR").write_bytes(data.replace(b"77654033\\", b"..\\654033"))

    with ImageIndex(tmp_path / "index.sqlite") as index, pytest.raises(DataError, match="below"):
        index_folder(tmp_path, index, dicomdir=tmp_path / "DICOMDIR")


@NO_SHARED
def test_every_real_file_is_used_or_set_aside_with_a_reason(tmp_path: Path) -> None:
    report = indexed(DICOM_TEST, file=tmp_path / "index.sqlite")

    assert report.files == report.images + sum(report.quarantined.values())
    assert report.images == 27
    assert report.quarantined == {
        "duplicate": 1,
        "duplicate-uid": 3,
        "no-patient-id": 9,
        "no-transfer-syntax": 1,
        "not-an-image": 1,
        "not-dicom": 3,
        "parametric-map": 2,
        "segmentation": 10,
        "structured-report": 1,
    }


def test_a_file_that_is_no_index_is_refused_and_stays_as_it_was(tmp_path: Path) -> None:
    other = tmp_path / "site.toml"
    other.write_text('[data]\nkind = "images"\n' * 40)
    other.chmod(0o644)

    foreign = tmp_path / "foreign.sqlite"
    with closing(sqlite3.connect(foreign)) as database:
        database.execute("CREATE TABLE a (b)")
    for path in (other, tmp_path, foreign):
        with pytest.raises(DataError, match="expected an image index"):
            ImageIndex(path)
    with pytest.raises(DataError, match="expected an image index"):
        ImageIndex(tmp_path / "none.sqlite", create=False)

    assert other.read_text() == '[data]\nkind = "images"\n' * 40
    assert other.stat().st_mode & 0o777 == 0o644
    assert not (tmp_path / "none.sqlite").exists()
