"""One object through risk rules, transformation and residual scan; and a folder of them."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from io import BytesIO
from pathlib import Path

from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import UID

from fedward_client.data.dicom.header import UNREADABLE_ERRORS, open_object
from fedward_client.data.dicom.quiet import without_words
from fedward_client.data.dicom.reasons import BadObject, Reason, class_reason
from fedward_client.data.dicom.scan import walk
from fedward_client.deidentify.burned_in import burned_in_risk, overlay_in_pixels
from fedward_client.deidentify.options import MARKERS, Options
from fedward_client.deidentify.pseudonyms import Pseudonyms
from fedward_client.deidentify.residual import identifiers, residue
from fedward_client.deidentify.transform import Transformer
from fedward_common.errors import ConfigError
from fedward_common.trust.private_files import write_private


class Risk(StrEnum):
    """Why an object is set aside although it can be read."""

    BURNED_IN = "burned-in-risk"
    OVERLAY_IN_PIXELS = "overlay-in-pixels"
    RESIDUAL = "residual-identifier"


@dataclass(frozen=True, kw_only=True, slots=True)
class SetAside:
    """An object that does not come out, and why; `element` where a scan found an identifier."""

    reason: str
    element: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Clean:
    """A de-identified object: its bytes, and a path made of pseudonyms only."""

    data: bytes
    path: Path


@dataclass(kw_only=True, slots=True)
class Report:
    """What happened to a folder. Counts are exact: for the site's own eyes."""

    objects: int = 0
    written: int = 0
    set_aside: dict[str, int] = field(default_factory=dict)
    residual_elements: dict[str, int] = field(default_factory=dict)

    def count(self, outcome: Clean | SetAside) -> None:
        """Adds one object."""
        self.objects += 1
        if isinstance(outcome, Clean):
            self.written += 1
            return
        self.set_aside[outcome.reason] = self.set_aside.get(outcome.reason, 0) + 1
        if outcome.element is not None:
            known = self.residual_elements
            known[outcome.element] = known.get(outcome.element, 0) + 1


def deidentify(
    original: Dataset,
    *,
    pseudonyms: Pseudonyms,
    options: Options | None = None,
    further: Iterable[str] = (),
) -> Clean | SetAside:
    """The object without its patient, or why it is set aside.

    1. What is no image, or may show the patient in its pixels, is set aside.
    2. A new data set is made of what a rule lets through, and marked.
    3. It is written, read again and searched for this patient's own identifiers; any hit sets it
       aside.

    `further` are identifiers that do not stand in the header, such as a worklist's.
    """
    with without_words():
        try:
            return _deidentify(original, pseudonyms, options or Options(), further)
        except UNREADABLE_ERRORS:
            return SetAside(reason=Reason.UNREADABLE.value)


def _deidentify(
    original: Dataset, pseudonyms: Pseudonyms, options: Options, further: Iterable[str]
) -> Clean | SetAside:
    # 1. What may not come out at all.
    if (reason := class_reason(str(original.get("SOPClassUID") or ""))) is not None:
        return SetAside(reason=reason.value)
    if not getattr(original, "file_meta", None) or "TransferSyntaxUID" not in original.file_meta:
        return SetAside(reason=Reason.NO_TRANSFER_SYNTAX.value)
    if burned_in_risk(original):
        return SetAside(reason=Risk.BURNED_IN.value)
    syntax = UID(str(original.file_meta.TransferSyntaxUID))
    if syntax.is_encapsulated and overlay_in_pixels(original):
        return SetAside(reason=Risk.OVERLAY_IN_PIXELS.value)
    identity = _identity(original)
    if not identity:
        return SetAside(reason=Reason.NO_PATIENT_ID.value)
    if not original.get("SOPInstanceUID"):
        return SetAside(reason=Reason.MISSING_ELEMENT.value)

    # 2. What a rule lets through.
    wanted = identifiers(original, further=further)
    transformer = Transformer(pseudonyms=pseudonyms, options=options, identity=identity)
    buffer = BytesIO()
    dcmwrite(buffer, transformer.transform(original), enforce_file_format=True)

    # 3. What came out, as another reader sees it.
    result = dcmread(BytesIO(buffer.getvalue()))
    found = residue(result, wanted, made=MARKERS | transformer.made)
    if found is not None:
        return SetAside(reason=Risk.RESIDUAL.value, element=found)
    return Clean(
        data=buffer.getvalue(),
        path=Path(str(result.PatientID))
        / str(result.get("SeriesInstanceUID", "series"))
        / f"{result.SOPInstanceUID}.dcm",
    )


def _identity(original: Dataset) -> str:
    patient = str(original.get("PatientID") or "").strip()
    issuer = str(original.get("IssuerOfPatientID") or "").strip()
    return f"{issuer}/{patient}" if issuer and patient else patient


def deidentify_folder(
    source: Path,
    target: Path,
    *,
    pseudonyms: Pseudonyms,
    options: Options,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Every file below `source`: clean objects into `target`, the others stay and are counted.

    Raises:
        ConfigError: `target` is not empty, or lies in `source`.
    """
    if target.exists() and any(target.iterdir()):
        raise ConfigError("deidentify: expected an empty folder for the results, found files in it")
    if target.resolve().is_relative_to(source.resolve()):
        raise ConfigError("deidentify: expected results outside of the source, found them inside")
    report = Report()
    for entry in walk(source):
        outcome = _file(Path(entry.path), pseudonyms, options)
        if isinstance(outcome, Clean):
            place = target / outcome.path
            if place.exists():
                outcome = SetAside(reason=Reason.DUPLICATE_UID.value)
            else:
                os.makedirs(place.parent, mode=0o700, exist_ok=True)  # noqa: PTH103 - with a mode
                write_private(place, outcome.data)
        report.count(outcome)
        if progress is not None:
            progress(report.objects)
    return report


def _file(path: Path, pseudonyms: Pseudonyms, options: Options) -> Clean | SetAside:
    try:
        with open_object(path) as file, without_words():
            original = dcmread(file)
    except BadObject as bad:
        return SetAside(reason=bad.reason.value)
    except UNREADABLE_ERRORS:
        return SetAside(reason=Reason.NOT_DICOM.value)
    return deidentify(original, pseudonyms=pseudonyms, options=options)
