"""What a site may keep beyond the basic profile; every option is a code that the result names."""

from dataclasses import dataclass

from pydicom.dataset import Dataset

METHOD = "Fedward: PS3.15 E basic profile, unknown elements removed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The options of PS3.15 Table E.1-1 that Fedward implements; none unless it is asked for."""

    modified_dates: bool = False
    patient_characteristics: bool = False
    device_identity: bool = False
    clean_descriptors: bool = False


# PS3.16 CID 7050.
_BASIC = ("113100", "Basic Application Confidentiality Profile")
_OPTIONS = {
    "clean_descriptors": ("113105", "Clean Descriptors Option"),
    "modified_dates": (
        "113107",
        "Retain Longitudinal Temporal Information Modified Dates Option",
    ),
    "patient_characteristics": ("113108", "Retain Patient Characteristics Option"),
    "device_identity": ("113109", "Retain Device Identity Option"),
}


MARKERS = frozenset({METHOD[:64], _BASIC[1], *(text for _code, text in _OPTIONS.values())})
"""What is written into every object, whoever the patient is."""


def write_markers(dataset: Dataset, options: Options) -> None:
    """Says in the object that and how it was de-identified (PS3.15 E.1.1, PS3.3 C.12.1.1)."""
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = METHOD[:64]
    codes = [_BASIC, *(code for name, code in _OPTIONS.items() if getattr(options, name))]
    dataset.DeidentificationMethodCodeSequence = [_item(value, text) for value, text in codes]
    dataset.LongitudinalTemporalInformationModified = (
        "MODIFIED" if options.modified_dates else "REMOVED"
    )


def _item(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = "DCM"
    item.CodeMeaning = meaning
    return item
