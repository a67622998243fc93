"""The header of one DICOM object without its pixels, checked as far as a header can be.

Only the elements of a short list are decoded; the pixel data are measured, not read.
"""

import gzip
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from pydicom import charset
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from fedward_client.data.dicom.quiet import without_words
from fedward_client.data.dicom.reasons import BadObject, Reason, class_reason

MAX_UNPACKED: Final = 1 << 30
"""No more than this many bytes come out of one gzip file."""

UNREADABLE_ERRORS: Final = (
    InvalidDicomError,
    BytesLengthException,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    struct.error,
    zlib.error,
)
"""What pydicom raises on broken input."""

_PIXELS: Final = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_PN_DELIMITERS: Final = {ord(character) for character in "\\^="}
_UNDEFINED: Final = 0xFFFFFFFF
_KEYWORDS: Final = (
    "SpecificCharacterSet",
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BurnedInAnnotation",
)
_TAGS: Final = [Tag(keyword) for keyword in _KEYWORDS]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageHeader:
    """What the index keeps of one image; `patient` and the UIDs stay at the site."""

    patient: str
    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class: str
    transfer_syntax: str
    modality: str
    photometric: str
    rows: int
    columns: int
    frames: int
    samples: int
    bits: int
    instance: int | None
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    frame_of_reference: str
    burned_in: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pixels:
    """Where the pixel data start and how long they say they are."""

    length: int
    offset: int
    available: int


def open_object(path: Path) -> BinaryIO:
    """The bytes of a DICOM file, unpacked in memory where it is gzip.

    Raises:
        BadObject: not readable, or a gzip file that is broken or too large.
    """
    try:
        if path.suffix != ".gz":
            return path.open("rb")
        with gzip.open(path) as packed:
            data = packed.read(MAX_UNPACKED + 1)
    except EOFError as error:
        raise BadObject(Reason.TRUNCATED) from error
    except (OSError, zlib.error) as error:
        raise BadObject(Reason.UNREADABLE) from error
    if len(data) > MAX_UNPACKED:
        raise BadObject(Reason.UNREADABLE)
    return io.BytesIO(data)


def read_header(path: Path) -> ImageHeader:
    """The header of the image in `path`, whose pixel data are there in the length that it says.

    Raises:
        BadObject: the object is no image, or cannot be used; with the first reason found.
    """
    with open_object(path) as file, without_words():
        try:
            return _checked(file)
        except BadObject:
            raise
        except UNREADABLE_ERRORS as error:
            raise BadObject(Reason.UNREADABLE) from error


def _checked(file: BinaryIO) -> ImageHeader:
    size = file.seek(0, io.SEEK_END)
    file.seek(128)
    if file.read(4) != b"DICM" and not _looks_bare(file):
        raise BadObject(Reason.NOT_DICOM)
    file.seek(0)
    dataset, pixels = _read(file, size=size)
    sop_class = str(dataset.get("SOPClassUID", "")) or _meta(dataset, "MediaStorageSOPClassUID")
    if not _meta(dataset, "TransferSyntaxUID"):
        raise BadObject(Reason.NO_TRANSFER_SYNTAX)
    if not sop_class:
        raise BadObject(Reason.MISSING_ELEMENT)
    if (reason := class_reason(sop_class)) is not None:
        raise BadObject(reason)
    syntax = _transfer_syntax(dataset)
    _check_whole(dataset)
    _check_charset(dataset)
    header = _image(dataset, sop_class=sop_class, syntax=syntax)
    if pixels is None:
        # A header that was stepped over beyond the end of the file is cut off, not without pixels.
        raise BadObject(Reason.TRUNCATED if file.tell() > size else Reason.MISSING_PIXEL_DATA)
    _check_pixels(header, pixels, file)
    return header


def _looks_bare(file: BinaryIO) -> bool:
    """Whether the file begins like a data set without preamble: a small element of group 8 or 2."""
    file.seek(0)
    start = file.read(8)
    return len(start) == 8 and start[:2] in (b"\x08\x00", b"\x02\x00") and start[3] == 0


def _read(file: BinaryIO, *, size: int) -> tuple[FileDataset, _Pixels | None]:
    """The wanted elements before the pixel data, and the pixel data's length and place."""
    found: list[int] = []

    def at_pixels(tag: BaseTag, _vr: str | None, length: int) -> bool:
        if tag in _PIXELS:
            found.append(length)
        return int(tag) >= _PIXELS[0]

    dataset = read_partial(file, at_pixels, force=True, specific_tags=[*_TAGS])
    if not found:
        return dataset, None
    if _meta(dataset, "TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        return dataset, _Pixels(length=found[0], offset=-1, available=-1)
    place = file.tell()
    implicit, _little = dataset.original_encoding
    place += 8 if implicit else 12
    return dataset, _Pixels(length=found[0], offset=place, available=size - place)


def _transfer_syntax(dataset: FileDataset) -> str:
    syntax = UID(_meta(dataset, "TransferSyntaxUID"))
    if syntax.is_private or not syntax.is_transfer_syntax:
        raise BadObject(Reason.UNKNOWN_TRANSFER_SYNTAX)
    return str(syntax)


def _meta(dataset: FileDataset, keyword: str) -> str:
    return str(dataset.file_meta.get(keyword, "") or "")


def _check_whole(dataset: Dataset) -> None:
    """No element's value is shorter than its length says: the file ends in it."""
    for tag in dataset.keys():  # noqa: SIM118 - iterating a dataset decodes its elements
        raw = _raw(dataset, tag)
        if raw is None or raw.value is None or raw.length == _UNDEFINED:
            continue
        if len(raw.value) < raw.length:
            raise BadObject(Reason.TRUNCATED)


def _raw(dataset: Dataset, key: BaseTag | str) -> RawDataElement | None:
    """The undecoded element; None where it is absent or decoded already."""
    element: object = dataset.get_item(key) if key in dataset else None
    return element if isinstance(element, RawDataElement) else None


def _check_charset(dataset: Dataset) -> None:
    """What says who the patient is can be decoded without loss in the declared character sets."""
    declared = dataset.get("SpecificCharacterSet") or "ISO_IR 6"
    names = [declared] if isinstance(declared, str) else list(declared)
    if any(name and name not in charset.python_encoding for name in names):
        raise BadObject(Reason.WRONG_CHARSET)
    encodings = charset.convert_encodings(names)
    only_ascii = all(name in ("", "ISO_IR 6", "ISO 2022 IR 6") for name in names)
    for keyword in ("PatientID", "IssuerOfPatientID", "PatientName"):
        raw = _raw(dataset, keyword)
        value = raw.value if raw is not None else None
        if not value:
            continue
        # The default repertoire has no byte above 0x7f; pydicom would read Latin-1 there.
        if only_ascii and max(value) >= 0x80:
            raise BadObject(Reason.WRONG_CHARSET)
        if "\ufffd" in charset.decode_bytes(value, encodings, _PN_DELIMITERS):
            raise BadObject(Reason.WRONG_CHARSET)


def _image(dataset: FileDataset, *, sop_class: str, syntax: str) -> ImageHeader:
    patient = str(dataset.get("PatientID") or "").strip()
    if not patient:
        raise BadObject(Reason.NO_PATIENT_ID)
    issuer = str(dataset.get("IssuerOfPatientID") or "").strip()
    uids = [
        str(dataset.get(keyword) or "")
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    ]
    rows, columns = _number(dataset, "Rows"), _number(dataset, "Columns")
    bits = _number(dataset, "BitsAllocated")
    if not all(uids) or not rows or not columns or not bits:
        raise BadObject(Reason.MISSING_ELEMENT)
    instance = dataset.get("InstanceNumber")
    return ImageHeader(
        patient=f"{issuer}/{patient}" if issuer else patient,
        study_uid=uids[0],
        series_uid=uids[1],
        sop_uid=uids[2],
        sop_class=sop_class,
        transfer_syntax=syntax,
        modality=str(dataset.get("Modality") or ""),
        photometric=str(dataset.get("PhotometricInterpretation") or ""),
        rows=rows,
        columns=columns,
        frames=_number(dataset, "NumberOfFrames") or 1,
        samples=_number(dataset, "SamplesPerPixel") or 1,
        bits=bits,
        instance=int(instance) if instance not in (None, "") else None,
        position=_floats(dataset, "ImagePositionPatient", 3),
        orientation=_floats(dataset, "ImageOrientationPatient", 6),
        frame_of_reference=str(dataset.get("FrameOfReferenceUID") or ""),
        burned_in=str(dataset.get("BurnedInAnnotation") or ""),
    )


def _number(dataset: Dataset, keyword: str) -> int:
    value = dataset.get(keyword)
    return int(value) if value not in (None, "") else 0


def _floats(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    value = dataset.get(keyword)
    if value in (None, "") or len(value) != count:
        return None
    return tuple(float(number) for number in value)


def _check_pixels(header: ImageHeader, pixels: _Pixels, file: BinaryIO) -> None:
    """The pixel data are as long as rows, columns, frames, samples and bits say, and all there."""
    if UID(header.transfer_syntax).is_encapsulated:
        if pixels.length != _UNDEFINED:
            raise BadObject(Reason.WRONG_LENGTH)
        _walk_fragments(file, pixels)
        return
    values = header.rows * header.columns * header.frames
    samples = header.samples
    if header.photometric == "YBR_FULL_422":
        samples = 2
    expected = (values * samples * header.bits + 7) // 8
    if pixels.length not in (expected, expected + expected % 2):
        raise BadObject(Reason.WRONG_LENGTH)
    if 0 <= pixels.available < expected:
        raise BadObject(Reason.TRUNCATED)


def _walk_fragments(file: BinaryIO, pixels: _Pixels) -> None:
    """Steps from fragment to fragment to the delimiter, without reading them.

    Encapsulated pixel data are always explicit little endian (PS3.5 A.4).
    """
    place, end, fragments = pixels.offset, pixels.offset + pixels.available, -1
    while place + 8 <= end:
        file.seek(place)
        group, element, length = struct.unpack("<HHI", file.read(8))
        if (group, element) == (0xFFFE, 0xE0DD):
            if fragments < 1:  # the first item is the offset table
                raise BadObject(Reason.MISSING_PIXEL_DATA)
            return
        if (group, element) != (0xFFFE, 0xE000) or length == _UNDEFINED:
            raise BadObject(Reason.WRONG_LENGTH)
        fragments += 1
        place += 8 + length
    raise BadObject(Reason.TRUNCATED)
