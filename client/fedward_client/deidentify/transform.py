"""One data set into one that says nothing of the patient, element by element.

A new data set is built from what a rule lets through; nothing is deleted from the old one.
"""

from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Final

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import UID

from fedward_client.deidentify import rules
from fedward_client.deidentify.options import Options, write_markers
from fedward_client.deidentify.pseudonyms import Pseudonyms
from fedward_client.deidentify.rules import Action
from fedward_client.deidentify.words import clean_code, clean_description

IMPLEMENTATION: Final = UID("2.25.181238423874512098172349871239487123")
MAX_DEPTH: Final = 32
_MODES: Final = {"DA": "19000101", "DT": "19000101", "TM": "000000"}
_TEXTS: Final = frozenset({"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UT", "CS"})


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """De-identifies the objects of one patient. `made` collects every name that it gave."""

    pseudonyms: Pseudonyms
    options: Options
    identity: str
    made: set[str] = field(default_factory=set)

    def transform(self, original: Dataset) -> Dataset:
        """The data set with markers, its file meta information made anew.

        Raises:
            ValueError, TypeError, ...: what pydicom raises on broken elements; nothing is kept of
                an object that raises.
        """
        clean = self._dataset(original, depth=0)
        if "PatientID" not in clean:
            clean.PatientID = clean.PatientName = self._patient()
        write_markers(clean, self.options)
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = UID(str(clean.SOPClassUID))
        meta.MediaStorageSOPInstanceUID = UID(str(clean.SOPInstanceUID))
        meta.TransferSyntaxUID = UID(str(original.file_meta.TransferSyntaxUID))
        meta.ImplementationClassUID = IMPLEMENTATION
        written = FileDataset("", clean, file_meta=meta, preamble=bytes(128))
        _mask_unused_bits(written)
        return written

    def _dataset(self, original: Dataset, *, depth: int) -> Dataset:
        if depth > MAX_DEPTH:
            raise ValueError("sequences nested too deep")
        clean = Dataset()
        for tag in sorted(original.keys()):
            if tag.group in (0x0002, 0xFFFC) or (action := self._action(tag)) is Action.REMOVE:
                continue  # not even decoded
            element = original[tag]
            if (kept := self._element(element, action, depth=depth)) is not None:
                clean.add(kept)
        return clean

    def _action(self, tag: BaseTag) -> Action:
        options = self.options
        if options.device_identity and tag in rules.DEVICE:
            return Action.KEEP
        if options.patient_characteristics and tag in rules.CHARACTERISTICS:
            return Action.CODE
        if options.clean_descriptors and tag in rules.DESCRIPTORS:
            return Action.DESCRIPTION
        return rules.action(tag)

    def _element(self, element: DataElement, action: Action, *, depth: int) -> DataElement | None:
        """The new element; None where nothing of it may stay."""
        tag, vr = element.tag, element.VR
        if vr == "SQ" or action is Action.SEQUENCE:
            return self._sequence(element, action, depth=depth)
        if action is Action.UID or vr == "UI":
            return self._uids(element, action)
        if self.options.modified_dates and vr in ("DA", "DT") and _datable(tag, action):
            return DataElement(tag, vr, [self._shifted(text) for text in _texts(element)])
        return self._by_rule(element, action)

    def _by_rule(self, element: DataElement, action: Action) -> DataElement | None:
        tag, vr = element.tag, element.VR
        match action:
            case Action.PATIENT:
                return DataElement(tag, rules.known_vr(tag), self._patient())
            case Action.EMPTY:
                return DataElement(tag, vr, None)
            case Action.CODE:
                return self._code(element)
            case Action.DESCRIPTION:
                return _description(element)
            case Action.DUMMY:
                return _dummy(element)
            case _:
                return _kept(element) if action is Action.KEEP else None

    def _sequence(self, element: DataElement, action: Action, *, depth: int) -> DataElement | None:
        if element.VR != "SQ":
            return None
        if action is Action.EMPTY:
            return DataElement(element.tag, "SQ", Sequence())
        if action is not Action.SEQUENCE:
            return None
        items = [self._dataset(item, depth=depth + 1) for item in element.value]
        # Empty items stay in their places: per-frame groups are counted.
        return DataElement(element.tag, "SQ", Sequence(items)) if any(map(len, items)) else None

    def _uids(self, element: DataElement, action: Action) -> DataElement | None:
        if action not in (Action.UID, Action.CLASS, Action.DUMMY) or element.VR != "UI":
            return None
        uids = [
            uid if action is Action.CLASS and UID(uid).type else self._uid(uid)
            for uid in _texts(element)
        ]
        return DataElement(element.tag, "UI", uids[0] if len(uids) == 1 else uids)

    def _uid(self, uid: str) -> str:
        new = self.pseudonyms.uid(uid)
        self.made.add(new)
        return new

    def _patient(self) -> str:
        name = self.pseudonyms.patient(self.identity)
        self.made.add(name)
        return name

    def _shifted(self, text: str) -> str:
        """The date of `text`, moved by this patient's days; the time of day goes."""
        try:
            day = date(int(text[:4]), int(text[4:6]), int(text[6:8]))
            day -= timedelta(days=self.pseudonyms.shift_days(self.identity))
        except (ValueError, OverflowError):
            return ""
        return day.strftime("%Y%m%d")

    def _code(self, element: DataElement) -> DataElement | None:
        tag = element.tag
        if tag in rules.CHARACTERISTICS:
            return _characteristic(element)
        codes = [clean_code(text) for text in _texts(element)]
        if not codes or (len(codes) == 1 and codes[0] is None):
            return None
        return DataElement(tag, rules.known_vr(tag), [code or "OTHER" for code in codes])


def _datable(tag: BaseTag, action: Action) -> bool:
    """Dates of what was done stay, moved; those of the patient (group 0010: birth) never."""
    return tag.group != 0x0010 and action in (Action.EMPTY, Action.DUMMY)


def _description(element: DataElement) -> DataElement | None:
    text = clean_description(" ".join(_texts(element)))
    return DataElement(element.tag, rules.known_vr(element.tag), text) if text else None


def _texts(element: DataElement) -> list[str]:
    value = element.value
    if value is None or value == "":
        return []
    several = isinstance(value, MultiValue | list | tuple)
    return [str(part) for part in (value if several else [value])]


def _dummy(element: DataElement) -> DataElement | None:
    tag, vr = element.tag, element.VR
    if vr in _MODES:
        return DataElement(tag, vr, _MODES[vr])
    if vr in _TEXTS:
        return DataElement(tag, vr, "ANON")
    if vr == "AS":
        return DataElement(tag, vr, "000Y")
    if vr in ("DS", "IS"):
        return DataElement(tag, vr, "0")
    if vr in rules.NUMBERS and vr != "AT":
        return DataElement(tag, vr, 0)
    return None


def _kept(element: DataElement) -> DataElement | None:
    """The element itself where its VR is the dictionary's and its numbers are numbers."""
    tag = element.tag
    if tag in rules.PIXELS:
        return element
    if tag in rules.DEVICE:
        return DataElement(tag, rules.known_vr(tag), element.value)
    if element.VR not in rules.NUMBERS:
        return None
    if element.VR in ("DS", "IS"):
        try:
            numbers = [str(float(text)) for text in _texts(element)]
        except ValueError:
            return None
        if not numbers:
            return DataElement(tag, element.VR, None)
    return DataElement(tag, element.VR, element.value)


def _characteristic(element: DataElement) -> DataElement | None:
    """Sex as a code, age in bands of five years up to 90, weight and size rounded."""
    text = next(iter(_texts(element)), "").strip().upper()
    if element.keyword == "PatientSex":
        return DataElement(element.tag, "CS", text if text in ("F", "M", "O") else None)
    if element.keyword == "PatientAge":
        if len(text) != 4 or not text[:3].isdigit() or text[3] not in "DWMY":
            return None
        years = min(int(text[:3]), 90) // 5 * 5 if text[3] == "Y" else 0
        return DataElement(element.tag, "AS", f"{years:03d}Y")
    try:
        number = float(text)
    except ValueError:
        return None
    step = 5.0 if element.keyword == "PatientWeight" else 0.05
    if not 0 < number < 1000:
        return None
    return DataElement(element.tag, "DS", f"{round(number / step) * step:g}")


def _mask_unused_bits(dataset: Dataset) -> None:
    """Clears what lies outside the stored bits of plain pixels: retired overlays, burned text."""
    syntax = UID(str(dataset.file_meta.TransferSyntaxUID))
    allocated, stored = int(dataset.get("BitsAllocated") or 0), int(dataset.get("BitsStored") or 0)
    if "PixelData" not in dataset or syntax.is_encapsulated or allocated not in (8, 16, 32):
        return
    if not 0 < stored < allocated or int(dataset.get("HighBit") or stored - 1) != stored - 1:
        return
    order = "<" if syntax.is_little_endian else ">"
    signed = bool(dataset.get("PixelRepresentation"))
    data = dataset.PixelData[: len(dataset.PixelData) // (allocated // 8) * (allocated // 8)]
    numbers = np.frombuffer(data, dtype=f"{order}u{allocated // 8}").copy()
    numbers &= np.array((1 << stored) - 1, dtype=numbers.dtype)
    if signed:
        negative = (numbers >> np.array(stored - 1, dtype=numbers.dtype)) & 1 == 1
        numbers[negative] |= np.array(
            ((1 << allocated) - 1) ^ ((1 << stored) - 1), dtype=numbers.dtype
        )
    masked = numbers.tobytes()
    dataset.PixelData = masked + (b"\0" if len(masked) % 2 else b"")
