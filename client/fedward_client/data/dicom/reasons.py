"""Why an object is set aside instead of used, and the classes of objects that are images."""

from enum import StrEnum
from typing import Final


class Reason(StrEnum):
    """Why an object is quarantined. The words are what the data report counts."""

    NOT_DICOM = "not-dicom"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    WRONG_LENGTH = "wrong-length"
    NO_TRANSFER_SYNTAX = "no-transfer-syntax"
    UNKNOWN_TRANSFER_SYNTAX = "unknown-transfer-syntax"
    MISSING_PIXEL_DATA = "missing-pixel-data"
    MISSING_ELEMENT = "missing-element"
    WRONG_CHARSET = "wrong-charset"
    NO_PATIENT_ID = "no-patient-id"
    DUPLICATE = "duplicate"
    DUPLICATE_UID = "duplicate-uid"
    MIXED_SERIES = "mixed-series"
    SEGMENTATION = "segmentation"
    STRUCTURED_REPORT = "structured-report"
    ENCAPSULATED_DOCUMENT = "encapsulated-document"
    PARAMETRIC_MAP = "parametric-map"
    DICOMDIR = "dicomdir"
    MISSING_FILE = "missing-file"
    NOT_AN_IMAGE = "not-an-image"


class BadObject(Exception):
    """One object cannot be used, for `reason`; carries nothing out of the object."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


_ROOT: Final = "1.2.840.10008.5.1.4.1.1."
IMAGE_CLASSES: Final = frozenset(
    _ROOT + suffix
    for suffix in (
        "1",  # CR
        "1.1",  # DX for presentation, for processing, mammography, intra-oral
        "1.1.1",
        "1.2",
        "1.2.1",
        "1.3",
        "1.3.1",
        "2",  # CT, enhanced, legacy converted
        "2.1",
        "2.2",
        "3",  # ultrasound, retired and current, multi-frame and still
        "3.1",
        "6",
        "6.1",
        "6.2",
        "4",  # MR, enhanced, enhanced colour, legacy converted
        "4.1",
        "4.3",
        "4.4",
        "5",  # nuclear medicine
        "20",
        "7",  # secondary capture
        "7.1",
        "7.2",
        "7.3",
        "7.4",
        "12.1",  # angiography, fluoroscopy, 3-D, breast tomosynthesis
        "12.1.1",
        "12.2",
        "12.2.1",
        "13.1.1",
        "13.1.2",
        "13.1.3",
        "77.1.1",  # endoscopy, microscopy, photography, ophthalmic
        "77.1.2",
        "77.1.4",
        "77.1.5.1",
        "77.1.5.2",
        "77.1.5.4",
        "128",  # PET, enhanced, legacy converted
        "128.1",
        "130",
        "481.1",  # RT image
    )
)
_OTHERS: Final = {
    "66.4": Reason.SEGMENTATION,
    "66.5": Reason.SEGMENTATION,
    "30": Reason.PARAMETRIC_MAP,
    "104.1": Reason.ENCAPSULATED_DOCUMENT,
    "104.2": Reason.ENCAPSULATED_DOCUMENT,
    "104.3": Reason.ENCAPSULATED_DOCUMENT,
    "104.4": Reason.ENCAPSULATED_DOCUMENT,
    "104.5": Reason.ENCAPSULATED_DOCUMENT,
}
DICOMDIR_CLASS: Final = "1.2.840.10008.1.3.10"


def class_reason(sop_class: str) -> Reason | None:
    """Why objects of this SOP class are no images to train on; None for image classes."""
    if sop_class in IMAGE_CLASSES:
        return None
    if sop_class == DICOMDIR_CLASS:
        return Reason.DICOMDIR
    suffix = sop_class.removeprefix(_ROOT)
    if suffix.startswith("88."):
        return Reason.STRUCTURED_REPORT
    return _OTHERS.get(suffix, Reason.NOT_AN_IMAGE)
