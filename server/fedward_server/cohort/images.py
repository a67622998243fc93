"""Made-up images as DICOM objects with the table of whose they are, and the same in one .npz."""

import csv
import hashlib
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedward_common.errors import ConfigError
from fedward_server.cohort.people import Patient, Pixels
from fedward_server.sandbox.datasets_images import IMAGES, IMAGES_TABLE

DICOM: Final = "dicom"
_COMPUTED_RADIOGRAPHY: Final = "1.2.840.10008.5.1.4.1.1.1"
_EXPLICIT_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"
_WHEN: Final = (1980, 1, 1, 0, 0, 0)


def write_images(folder: Path, patients: Sequence[Patient]) -> None:
    """Writes `dicom/`, one object for each patient with an image, and the .npz into `folder`.

    Raises:
        ConfigError: pydicom is not installed.
    """
    shown = [(one.id, one.image) for one in patients if one.image is not None]
    (folder / DICOM).mkdir(parents=True)
    names = []
    for patient, image in shown:
        names.append(f"{patient}.dcm")
        (folder / DICOM / names[-1]).write_bytes(_object(patient, image))
    with (folder / DICOM / IMAGES_TABLE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "patient_id"])
        writer.writerows(zip(names, (patient for patient, _ in shown), strict=True))
    arrays = {
        # As a reader of DICOM scales 8 stored bits: both are the same numbers to the last bit.
        "images": np.array([image for _, image in shown], np.float32) * np.float32(1.0 / 255.0),
        "patient_id": np.array([patient for patient, _ in shown]),
    }
    (folder / IMAGES).write_bytes(_npz(arrays))


def _object(patient: str, image: Pixels) -> bytes:
    """One computed radiograph, marked as synthetic; its ids follow from the patient's."""
    dicom = _pydicom()
    meta = dicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = _COMPUTED_RADIOGRAPHY
    meta.MediaStorageSOPInstanceUID = _uid(patient, "object")
    meta.TransferSyntaxUID = _EXPLICIT_LITTLE_ENDIAN
    one = dicom.dataset.Dataset()
    one.file_meta = meta
    one.SOPClassUID = meta.MediaStorageSOPClassUID
    one.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    one.ImageType = ["DERIVED", "SECONDARY"]
    one.Modality = "CR"
    one.PatientName = "MADE^UP"
    one.PatientID = patient
    one.StudyDescription = "MADE UP, NO REAL PERSON"
    one.StudyInstanceUID, one.SeriesInstanceUID = _uid(patient, "study"), _uid(patient, "series")
    one.InstanceNumber = 1
    one.Rows, one.Columns = image.shape
    one.SamplesPerPixel = 1
    one.PhotometricInterpretation = "MONOCHROME2"
    one.BitsAllocated = one.BitsStored = 8
    one.HighBit, one.PixelRepresentation = 7, 0
    one.PixelData = image.tobytes()
    buffer = BytesIO()
    dicom.dcmwrite(buffer, one, enforce_file_format=True)
    return buffer.getvalue()


def _pydicom() -> Any:
    try:
        import pydicom  # noqa: PLC0415 - an extra, that only make-cohort needs
    except ModuleNotFoundError as error:
        raise ConfigError(
            "make-cohort: expected pydicom for DICOM objects, found none; install "
            "fedward-server[sandbox]"
        ) from error
    return pydicom


def _uid(patient: str, what: str) -> str:
    """A UID below 2.25, the same for the same patient."""
    digest = hashlib.sha256(f"fedward/cohort|{patient}|{what}".encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def _npz(arrays: dict[str, Any]) -> bytes:
    """A .npz without the time at which it was written."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            one = BytesIO()
            np.save(one, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _WHEN), one.getvalue())
    return buffer.getvalue()
