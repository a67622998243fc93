"""A site's images with the table that says whose they are: files in a folder, or a `.npz` set.

A folder holds `images.csv`: the column `image` (below the folder a DICOM file, a folder with the
slices of one series, or a NIfTI file), `mask` (NIfTI) where structures are learned, and the study's
columns for patient, label and split. Pixels come through `data/dicom/pixels`: nothing else of an
object reaches a model.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

import structlog

from fedward_client.data.tabular import nobody, readable_lines
from fedward_common.errors import DataError, ProtocolError
from fedward_common.study.encoding import PatientRecords, TablePart
from fedward_common.study.image_encoding import ImageRow, encode_images, npz_rows
from fedward_common.study.imaging import ImageMasks, Pictures
from fedward_common.study.spec import StudySpec

TABLE: Final = "images.csv"
IMAGE_COLUMN: Final = "image"
MASK_COLUMN: Final = "mask"

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
    # pydicom and GDCM take a third of a second: a site without images does without them.
    from fedward_client.data.image_files import FilePixels  # noqa: PLC0415

    rows = [dict(zip(header, line, strict=True)) for line in lines[1:]]
    return [
        ImageRow(
            cells=row,
            pixels=FilePixels(folder, row[IMAGE_COLUMN], schema).read,
            mask=(
                FilePixels(folder, row[MASK_COLUMN], schema).mask if MASK_COLUMN in files else None
            ),
        )
        for row in rows
    ]
