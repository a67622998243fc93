"""A search of the finished object for this patient's own identifiers: what the rules missed.

It knows nothing of rules. It takes who the patient is from the original header, and looks into
every string, number and byte of the result.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

MIN_SUBSTRING: Final = 4
MIN_DIGITS: Final = 5
MIN_BYTES: Final = 5
ENCODINGS: Final = (
    "utf-8",
    "latin-1",
    "gb18030",
    "utf-16-le",
    "utf-16-be",
    "shift_jis",
    "iso2022_jp",
    "euc_kr",
    "iso8859-5",
)

_NAMES: Final = (
    "PatientName",
    "OtherPatientNames",
    "PatientBirthName",
    "PatientMotherBirthName",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "OperatorsName",
    "NameOfPhysiciansReadingStudy",
    "RequestingPhysician",
    "PhysiciansOfRecord",
    "ResponsiblePerson",
)
_IDS: Final = (
    "PatientID",
    "IssuerOfPatientID",
    "OtherPatientIDs",
    "AccessionNumber",
    "StudyID",
    "PatientInsurancePlanCodeSequence",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "MedicalRecordLocator",
    "AdmissionID",
    "MilitaryRank",
    "PatientBirthDate",
    "RegionOfResidence",
    "CountryOfResidence",
)
_UIDS: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
_SPLIT: Final = re.compile(r"[\^=\\\s,;/]+")
_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Identifiers:
    """What would give this patient away: `texts` folded, `uids` as they are. Stays in memory."""

    texts: frozenset[str]
    uids: frozenset[str]


def identifiers(original: Dataset, *, further: Iterable[str] = ()) -> Identifiers:
    """The identifiers in the header of `original`, nested ones too, and `further` from a worklist.

    Single characters and words of two or three letters that are no name are left out: they are in
    every object.
    """
    texts: set[str] = set()
    uids: set[str] = set()
    for element in _elements(original):
        if element.keyword in _NAMES:
            for text in _strings(element):
                texts |= {part for part in _SPLIT.split(_fold(text)) if _telling(part)}
        elif element.keyword in _IDS:
            for text in _strings(element):
                texts |= {_fold(text), *_dates(text)} - {""}
        elif element.keyword in _UIDS:
            uids |= set(_strings(element))
    texts |= {_fold(text) for text in further if text.strip()}
    return Identifiers(texts=frozenset(t for t in texts if _telling(t)), uids=frozenset(uids))


def residue(result: Dataset, wanted: Identifiers, *, made: frozenset[str]) -> str | None:
    """The keyword of the first element that still holds an identifier; None where none does.

    `made` are the pseudonyms that were put there: random digits may look like a short number.
    """
    if isinstance(meta := getattr(result, "file_meta", None), Dataset):
        for element in _elements(meta):
            if _holds(element, wanted, made=made):
                return element.keyword or "an element without a name"
    for element in _elements(result):
        if _holds(element, wanted, made=made):
            return element.keyword or "an element without a name"
    return None


def _holds(element: DataElement, wanted: Identifiers, *, made: frozenset[str]) -> bool:
    value = element.value
    if isinstance(value, bytes | bytearray):
        return _in_bytes(bytes(value), wanted)
    for text in _strings(element):
        if text in made:
            continue
        if text in wanted.uids or any(uid in text for uid in wanted.uids):
            return True
        if element.VR == "UI":
            continue  # a class or a transfer syntax: its digits are the standard's
        if _in_text(_fold(text), wanted):
            return True
        if element.VR in _NUMERIC and _is_number(text, wanted):
            return True
    return False


_NUMERIC: Final = frozenset({"DS", "IS", "US", "SS", "UL", "SL", "UV", "SV", "FL", "FD"})


def _in_text(text: str, wanted: Identifiers) -> bool:
    words = set(_WORD.findall(text))
    bare = re.sub(r"\W+", "", text)
    for one in wanted.texts:
        if len(one) < MIN_SUBSTRING and one.isascii():
            if one in words:
                return True
        elif one in text or re.sub(r"\W+", "", one) in bare:
            return True
    return False


def _is_number(text: str, wanted: Identifiers) -> bool:
    try:
        number = float(text)
    except ValueError:
        return False
    return any(
        one.isdecimal() and len(one) >= MIN_DIGITS and float(one) == number for one in wanted.texts
    )


def _in_bytes(data: bytes, wanted: Identifiers) -> bool:
    lowered = data.lower()
    for one in (*wanted.texts, *wanted.uids):
        for encoding in ENCODINGS:
            try:
                needle = one.encode(encoding)
            except UnicodeEncodeError:
                continue
            if len(needle) >= MIN_BYTES and (needle in lowered or needle in data):
                return True
    return False


def _elements(dataset: Dataset) -> Iterator[DataElement]:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _elements(item)
        else:
            yield element


def _strings(element: DataElement) -> list[str]:
    value = element.value
    if value is None or isinstance(value, bytes | bytearray):
        return []
    several = isinstance(value, MultiValue | list | tuple)
    return [str(part).strip() for part in (value if several else [value])]


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().strip()


def _telling(text: str) -> bool:
    """Whether a part is more than what stands in every header."""
    return len(text) >= 2 and text not in _TITLES


_TITLES: Final = frozenset({"mr", "ms", "mrs", "dr", "md", "prof", "phd", "jr", "sr", "ii", "iii"})


def _dates(text: str) -> set[str]:
    """Other ways to write a date YYYYMMDD."""
    if not re.fullmatch(r"(19|20)\d{6}", text):
        return set()
    year, month, day = text[:4], text[4:6], text[6:]
    return {f"{year}-{month}-{day}", f"{day}.{month}.{year}", f"{month}/{day}/{year}"}
