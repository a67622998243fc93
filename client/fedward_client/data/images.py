"""A site's images with the table that says whose they are: files in a folder, or a `.npz` set.

A folder holds `images.csv`: the column `image` (below the folder a DICOM file, a folder with the
slices of one series, or a NIfTI file), `mask` (NIfTI) where structures are learned, and the study's
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
from fedward_client.data.dicom.series import load_volume
from fedward_client.data.nifti import load_mask, load_nifti
from fedward_client.data.tabular import nobody, readable_lines
from fedward_common.errors import DataError, ProtocolError
from fedward_common.study.encoding import PatientRecords, TablePart
from fedward_common.study.image_encoding import ImageRow, colours, encode_images, npz_rows
from fedward_common.study.imaging import ImageMasks, Pictures
from fedward_common.study.spec import StudySpec

TABLE: Final = "images.csv"
IMAGE_COLUMN: Final = "image"
MASK_COLUMN: Final = "mask"
NIFTI: Final = (".nii", ".nii.gz")

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

    def _rows(self, schema: Pictures) -> list[ImageRow]:
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
            else folder_rows(found.path, schema)
        )
        excluded = self._excluded()
        return [row for row in rows if row.cells.get(schema.patient_key, "") not in excluded]


def image_schema(study: StudySpec) -> Pictures:
    """The schema of a study of images. Raises ProtocolError where its data are something else."""
    if not isinstance(study.data, Pictures):
        raise ProtocolError(f"data: expected images, found {study.data.kind!r}")
    return study.data


def folder_rows(folder: Path, schema: Pictures) -> list[ImageRow]:
    """The rows of images.csv in `folder`; no image is read yet.

    Raises:
        DataError: no table, or one without a column that the study reads.
    """
    lines = readable_lines(folder / TABLE, delimiter=",")
    header = next(iter(lines), [])
    files = (IMAGE_COLUMN, MASK_COLUMN) if isinstance(schema, ImageMasks) else (IMAGE_COLUMN,)
    absent = [name for name in (*files, *schema.columns) if name not in header]
    if absent:
        raise DataError(
            f"images: expected the columns {', '.join(map(repr, absent))} in {TABLE}, found none "
            "of that name"
        )
    if schema.no_patient_key and schema.patient_key in header:
        raise DataError("images: expected no column for the patient, as the study says, found one")
    rows = [dict(zip(header, line, strict=True)) for line in lines[1:]]
    return [
        ImageRow(
            cells=row,
            pixels=_FilePixels(folder, row[IMAGE_COLUMN], schema).read,
            mask=(
                _FilePixels(folder, row[MASK_COLUMN], schema).mask if MASK_COLUMN in files else None
            ),
        )
        for row in rows
    ]


@dataclass(frozen=True, slots=True)
class _FilePixels:
    folder: Path
    name: str
    schema: Pictures

    def read(self) -> FloatArray:
        """The image of the study's size in [0, 1]: grey, its sides in proportion, the rest dark.

        A flat image is scaled to fit; of a volume or a masked image the voxels stay as they are,
        and what is larger than the study's size loses its edges.
        """
        place, window = self._place(), self._window()
        if colours(self.schema) and (place.is_dir() or place.name.endswith(NIFTI)):
            raise DataError("images: expected single objects in colour, found a volume")
        try:
            if place.name.endswith(NIFTI):
                voxels = load_nifti(place, window=window).voxels
            elif place.is_dir():
                files = sorted(path for path in place.iterdir() if path.is_file())
                voxels = load_volume(files, window=window).voxels
            else:
                picture = load_picture(place, window=window)
                if len(picture.pixels) != 1:
                    raise DataError("images: expected single images, found several frames")
                if colours(self.schema):
                    return in_colour(picture.pixels[0], self.schema)
                voxels = picture.pixels[0].mean(axis=2, dtype=np.float32)
        except BadObject as error:
            raise DataError(f"images: expected a readable object, found {error.reason}") from error
        if isinstance(self.schema, ImageMasks) or self.schema.depth:
            return centred(_flat(voxels, self.schema), self.schema.size)
        return fitted(
            _flat(voxels, self.schema), height=self.schema.height, width=self.schema.width
        )

    def mask(self) -> FloatArray:
        """The mask of the study's size, as whole numbers; NIfTI only."""
        place = self._place()
        if not place.name.endswith(NIFTI):
            raise DataError("masks: expected .nii or .nii.gz files, found another kind")
        return centred(_flat(load_mask(place), self.schema), self.schema.size)

    def _place(self) -> Path:
        place = PurePosixPath(self.name)
        if place.is_absolute() or ".." in place.parts or not place.parts:
            raise DataError("images: expected files below the folder, found another place")
        return self.folder / place

    def _window(self) -> Window | None:
        window = self.schema.window
        return None if window is None else Window(low=window.low, high=window.high)


def in_colour(pixels: FloatArray, schema: Pictures) -> FloatArray:
    """Red, green and blue of the study's size, [3, height, width], of [rows, columns, 3].

    Raises:
        DataError: a grey image.
    """
    if pixels.shape[2] != len("rgb"):
        raise DataError("images: expected colour images, found grey ones")
    one_by_one = [
        fitted(pixels[:, :, channel], height=schema.height, width=schema.width)
        for channel in range(pixels.shape[2])
    ]
    return np.stack(one_by_one)


def _flat(voxels: FloatArray, schema: Pictures) -> FloatArray:
    """A volume of one slice as a flat image where the study is about those."""
    if not schema.depth and voxels.ndim == 3 and len(voxels) == 1:
        voxels = voxels[0]
    if voxels.ndim != len(schema.size):
        raise DataError(f"images: expected {len(schema.size)} sides, found {voxels.ndim}")
    return voxels


def centred(image: FloatArray, size: tuple[int, ...]) -> FloatArray:
    """The middle of `image` in the middle of an array of `size`, the rest 0."""
    out = np.zeros(size, dtype=np.float32)
    from_image, into = [], []
    for have, want in zip(image.shape, size, strict=True):
        common = min(have, want)
        from_image.append(slice((have - common) // 2, (have - common) // 2 + common))
        into.append(slice((want - common) // 2, (want - common) // 2 + common))
    out[tuple(into)] = image[tuple(from_image)]
    return out


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
