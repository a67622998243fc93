"""DICOM objects made for tests, and the folder of real ones."""

import io
from pathlib import Path

import numpy as np
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SHARED = Path(__file__).parents[3] / "shared" / "data"
DICOM_TEST = SHARED / "dicom_test"


def ct_slice(
    *,
    patient: str = "P-0001",
    study: str = "1.2.3.1",
    series: str = "1.2.3.1.1",
    sop: str | None = None,
    z: float = 0.0,
    number: int = 1,
    size: int = 16,
    value: int = 100,
) -> Dataset:
    """One axial CT slice of made-up numbers, complete enough for every check."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = sop or generate_uid()
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Modality = "CT"
    dataset.PatientName = "Muster^Erika"
    dataset.PatientID = patient
    dataset.StudyInstanceUID = study
    dataset.SeriesInstanceUID = series
    dataset.InstanceNumber = number
    dataset.ImagePositionPatient = [-10.0, -20.0, z]
    dataset.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    dataset.PixelSpacing = [0.5, 0.75]
    dataset.SliceThickness = 2.0
    dataset.Rows = dataset.Columns = size
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 16
    dataset.BitsStored = 12
    dataset.HighBit = 11
    dataset.PixelRepresentation = 0
    dataset.RescaleSlope = 1
    dataset.RescaleIntercept = -1024
    dataset.PixelData = np.full((size, size), value, dtype="<u2").tobytes()
    return dataset


def complete(
    *, z: float = 0.0, number: int = 1, study: str = "1.2.3.1", size: int = 16, value: int = 100
) -> Dataset:
    """A CT slice with what a report has to say of its patient and study."""
    dataset = ct_slice(z=z, number=number, study=study, size=size, value=value)
    dataset.SeriesInstanceUID = f"{study}.1"
    dataset.FrameOfReferenceUID = "1.2.3.4.5"
    for name in ("PatientBirthDate", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"):
        setattr(dataset, name, "")
    dataset.PatientSex = "F"
    dataset.ReferringPhysicianName = ""
    return dataset


def write(dataset: Dataset, path: Path) -> Path:
    """`dataset` as a DICOM file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dcmwrite(path, dataset, enforce_file_format=True)
    return path


def written(dataset: Dataset) -> bytes:
    """The bytes of `dataset` as a DICOM file."""
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def reread(data: bytes) -> Dataset:
    """The data set in the bytes of a DICOM file."""
    return dcmread(io.BytesIO(data))
