"""Which element stays, changes or goes. What has no rule goes.

The attributes of PS3.15 Table E.1-1 come from dicom-anonymizer's table of edition 2026c; where the
table leaves a choice by IOD the stricter reading that keeps the object valid is taken. Beyond the
table the standard keeps everything; Fedward keeps only what is listed here.
"""

from collections.abc import Mapping
from enum import Enum, auto
from functools import cache
from typing import Final

from pydicom.datadict import dictionary_VR, get_entry
from pydicom.tag import BaseTag, Tag

from fedward_common.errors import ConfigError

EDITION: Final = "dicomfields_2026c"


class Action(Enum):
    """What happens to one element."""

    REMOVE = auto()
    EMPTY = auto()
    DUMMY = auto()
    UID = auto()
    KEEP = auto()
    CODE = auto()
    DESCRIPTION = auto()
    SEQUENCE = auto()
    CLASS = auto()
    PATIENT = auto()


_CATEGORIES: Final[Mapping[str, Action]] = {
    "D_TAGS": Action.DUMMY,
    "Z_TAGS": Action.EMPTY,
    "X_TAGS": Action.REMOVE,
    "U_TAGS": Action.UID,
    "Z_D_TAGS": Action.DUMMY,
    "X_Z_TAGS": Action.EMPTY,
    "X_D_TAGS": Action.DUMMY,
    "X_Z_D_TAGS": Action.DUMMY,
    "X_Z_U_STAR_TAGS": Action.SEQUENCE,
}

NUMBERS: Final = frozenset({"US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "DS", "IS", "AT"})
TECHNICAL_GROUPS: Final = frozenset({0x0018, 0x0020, 0x0022, 0x0028, 0x0048, 0x0052, 0x0054})
"""Acquisition, relationship, ophthalmology, presentation, microscopy, endoscopy, nuclear."""

PIXELS: Final = frozenset(
    Tag(keyword)
    for keyword in (
        "PixelData",
        "FloatPixelData",
        "DoubleFloatPixelData",
        "ExtendedOffsetTable",
        "ExtendedOffsetTableLengths",
        "RedPaletteColorLookupTableData",
        "GreenPaletteColorLookupTableData",
        "BluePaletteColorLookupTableData",
        "RedPaletteColorLookupTableDescriptor",
        "GreenPaletteColorLookupTableDescriptor",
        "BluePaletteColorLookupTableDescriptor",
        "SmallestImagePixelValue",
        "LargestImagePixelValue",
        "PixelPaddingValue",
        "LUTDescriptor",
        "LUTData",
    )
)
_CODES: Final = frozenset(
    Tag(keyword)
    for keyword in (
        "Modality",
        "ImageType",
        "FrameType",
        "ConversionType",
        "PresentationIntentType",
        "PhotometricInterpretation",
        "PixelPresentation",
        "VolumetricProperties",
        "VolumeBasedCalculationTechnique",
        "BurnedInAnnotation",
        "RecognizableVisualFeatures",
        "LossyImageCompression",
        "LossyImageCompressionMethod",
        "PatientPosition",
        "ViewPosition",
        "Laterality",
        "ImageLaterality",
        "FrameLaterality",
        "BodyPartExamined",
        "PatientOrientation",
        "RescaleType",
        "VOILUTFunction",
        "PresentationLUTShape",
        "PixelIntensityRelationship",
        "ScanningSequence",
        "SequenceVariant",
        "ScanOptions",
        "MRAcquisitionType",
        "AcquisitionContrast",
        "ComplexImageComponent",
        "Units",
        "CountsSource",
    )
)
_CLASSES: Final = frozenset(Tag(k) for k in ("SOPClassUID", "ReferencedSOPClassUID"))
_PATIENT: Final = frozenset(Tag(k) for k in ("PatientID", "PatientName"))
CHARACTERISTICS: Final = frozenset(
    Tag(k) for k in ("PatientSex", "PatientAge", "PatientSize", "PatientWeight")
)
DEVICE: Final = frozenset(
    Tag(k)
    for k in (
        "Manufacturer",
        "ManufacturerModelName",
        "DeviceSerialNumber",
        "SoftwareVersions",
        "StationName",
        "DetectorID",
        "GantryID",
    )
)
DESCRIPTORS: Final = frozenset(
    Tag(k)
    for k in (
        "StudyDescription",
        "SeriesDescription",
        "ProtocolName",
        "AcquisitionProtocolDescription",
        "RequestedProcedureDescription",
        "PerformedProcedureStepDescription",
        "ImageComments",
        "SequenceName",
        "ConvolutionKernel",
    )
)


@cache
def _standard() -> Mapping[BaseTag, Action]:
    """The table of PS3.15 as actions.

    Raises:
        ConfigError: the package with the table is not installed here.
    """
    try:
        from dicomanonymizer.dicomfields_selector import (  # noqa: PLC0415 - an extra
            dicom_anonymization_database_selector,
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            "deidentify: expected the package dicom-anonymizer, found none; install "
            "fedward-client[imaging]"
        ) from error
    table = dicom_anonymization_database_selector(EDITION)
    return {
        Tag(*tag): action
        for category, action in _CATEGORIES.items()
        for tag in table[category]
        if len(tag) == 2  # the three with a mask are whole groups, which `action` removes
    }


def action(tag: BaseTag) -> Action:
    """What the basic profile does to the element `tag`, whatever is in it."""
    if tag.is_private or 0x5000 <= tag.group <= 0x50FF or 0x6000 <= tag.group <= 0x60FF:
        return Action.REMOVE
    for tags, known in (
        (_PATIENT, Action.PATIENT),
        (_CLASSES, Action.CLASS),
        (PIXELS, Action.KEEP),
        (_CODES, Action.CODE),
    ):
        if tag in tags:
            return known
    if (standard := _standard().get(tag)) is not None:
        return standard
    try:
        vr, _vm, _name, retired, _keyword = get_entry(tag)
    except KeyError:
        return Action.REMOVE
    if retired:
        return Action.REMOVE
    if vr == "SQ":
        return Action.SEQUENCE
    if tag.group in TECHNICAL_GROUPS and set(vr.split(" or ")) <= NUMBERS:
        return Action.KEEP
    return Action.REMOVE


def known_vr(tag: BaseTag) -> str:
    """The VR of the data dictionary, whatever the object says; the first of several."""
    return dictionary_VR(tag).split(" or ")[0]
