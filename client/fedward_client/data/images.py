"""A site's images with the table that says whose they are: DICOM in a folder, or a `.npz` set.

A folder holds `images.csv`: the column `image` (a DICOM file below the folder), and the study's
columns for patient, label and split. Pixels come through `data/dicom/pixels`: nothing else of an
object reaches a model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

import numpy as np
import structlog
import torch
from torch.nn import functional

from fedward_client.data.dicom.pixels import FloatArray, Window, load_picture
from fedward_client.data.dicom.reasons import BadObject
from fedward_client.data.tabular import nobody, readable_lines
from fedward_common.errors import DataError, ProtocolError
from fedward_common.study.encoding import PatientRecords, TablePart
from fedward_common.study.image_encoding import ImageRow, encode_images, npz_rows
from fedward_common.study.imaging import ImageData
from fedward_common.study.spec import StudySpec

TABLE: Final = "images.csv"
IMAGE_COLUMN: Final = "image"

_log = structlog.get_logger(__name__)


class ImageSet(Protocol):
    """Where images are; `ImageFiles` of site.toml is one."""

    @property
    def path(self) -> Path:
        """A folder with images.csv, or a .npz file."""
        ...

    @property
    def patient_key(self) -> str | None:
        """The column that says who is one patient."""
        ...

    @property
    def no_patient_key(self) -> bool:
        """Whether the set does not say whose an image is."""
        ...


class ImageSource:
    """A `DataSource` over one set of images, read afresh at each call and never changed.

    `excluded` gives the ids of patients who object: none of their images is decoded.
    """

    def __init__(
        self, sets: Sequence[ImageSet], *, excluded: Callable[[], frozenset[str]] = nobody
    ) -> None:
        self._sets = tuple(sets)
        self._excluded = excluded

    def records(self, study: StudySpec, *, part: TablePart) -> PatientRecords:
        """The records of `part`; a patient whose images do not fit counts as absent (rules 7).

        Raises:
            DataError: this site has no set of images or more than one, another patient key than
                the study's, or none that can be read.
            ProtocolError: the study is not about images.
        """
        schema = image_schema(study)
        records, absent = encode_images(schema, self._rows(schema), part=part, strict=False)
        if absent:
            # Stays in the worker's own log; which patients is for `fedward-client rehearse`.
            _log.warning("data.patients-absent", count=absent)
        return records

    def checked_records(self, study: StudySpec, *, part: TablePart) -> PatientRecords:
        """As `records`, for the site's own eyes: what does not fit is an error. Raises: as such."""
        schema = image_schema(study)
        records, _ = encode_images(schema, self._rows(schema), part=part, strict=True)
        return records

    def _rows(self, schema: ImageData) -> list[ImageRow]:
        if len(self._sets) != 1:
            raise DataError(
                "images: expected one [[data]] of kind images in site.toml, found "
                f"{len(self._sets)}"
            )
        found = self._sets[0]
        if found.no_patient_key != schema.no_patient_key:
            raise DataError(
                "images: expected no_patient_key of the study as in [[data]] of site.toml, found "
                "another; a set that says whose an image is has the privacy unit patient"
            )
        if not schema.no_patient_key and found.patient_key != schema.patient_key:
            raise DataError(
                "images: expected a study that takes patient_key of [[data]] for who is one "
                "patient, found another column"
            )
        rows = (
            npz_rows(found.path, schema)
            if found.path.suffix == ".npz"
            else _folder_rows(found.path, schema)
        )
        excluded = self._excluded()
        return [row for row in rows if row.cells.get(schema.patient_key, "") not in excluded]


def image_schema(study: StudySpec) -> ImageData:
    """The schema of a study of images. Raises ProtocolError where its data are something else."""
    if not isinstance(study.data, ImageData):
        raise ProtocolError(f"data: expected kind 'image', found {study.data.kind!r}")
    return study.data


def _folder_rows(folder: Path, schema: ImageData) -> list[ImageRow]:
    lines = readable_lines(folder / TABLE, delimiter=",")
    header = next(iter(lines), [])
    absent = [name for name in (IMAGE_COLUMN, *schema.columns) if name not in header]
    if absent:
        raise DataError(
            f"images: expected the columns {', '.join(map(repr, absent))} in {TABLE}, found none "
            "of that name"
        )
    if schema.no_patient_key and schema.patient_key in header:
        raise DataError("images: expected no column for the patient, as the study says, found one")
    rows = [dict(zip(header, line, strict=True)) for line in lines[1:]]
    return [
        ImageRow(cells=row, pixels=_DicomPixels(folder, row[IMAGE_COLUMN], schema).read)
        for row in rows
    ]


@dataclass(frozen=True, slots=True)
class _DicomPixels:
    folder: Path
    name: str
    schema: ImageData

    def read(self) -> FloatArray:
        """The image as [height, width] in [0, 1]: grey, whole, its sides in proportion, padded."""
        place = PurePosixPath(self.name)
        if place.is_absolute() or ".." in place.parts or not place.parts:
            raise DataError("images: expected files below the folder, found another place")
        window = self.schema.window
        try:
            picture = load_picture(
                self.folder / place,
                window=None if window is None else Window(low=window.low, high=window.high),
            )
        except BadObject as error:
            raise DataError(f"images: expected a readable object, found {error.reason}") from error
        if len(picture.pixels) != 1:
            raise DataError("images: expected single images, found several frames")
        grey = picture.pixels[0].mean(axis=2, dtype=np.float32)
        return fitted(grey, height=self.schema.height, width=self.schema.width)


def fitted(image: FloatArray, *, height: int, width: int) -> FloatArray:
    """`image` [rows, columns] scaled into [height, width] by area, the rest dark."""
    scale = min(height / image.shape[0], width / image.shape[1])
    size = (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale)))
    tensor = torch.from_numpy(np.ascontiguousarray(image))[None, None]
    small = functional.interpolate(tensor, size=size, mode="bilinear", antialias=True)[0, 0]
    out = np.zeros((height, width), dtype=np.float32)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    out[top : top + size[0], left : left + size[1]] = small.numpy()
    return np.clip(out, 0.0, 1.0)
