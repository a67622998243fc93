"""From a site's images to tensors, each image by itself and by public constants alone (rules 6)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedward_common.errors import DataError
from fedward_common.study.encoding import (
    PatientRecords,
    TablePart,
    decimal_number,
    hash_part,
)
from fedward_common.study.imaging import ImageData
from fedward_common.study.npz import read_npz
from fedward_common.study.tabular import HashSplit

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRow:
    """One image: its cells by column, and its pixels when they are asked for.

    `pixels` gives float32 [height, width] in [0, 1], or raises DataError where they cannot be used.
    """

    cells: Mapping[str, str]
    pixels: Callable[[], FloatArray]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Image:
    label: float
    part: TablePart
    row: ImageRow


def encode_images(
    schema: ImageData, rows: Iterable[ImageRow], *, part: TablePart, strict: bool
) -> tuple[PatientRecords, int]:
    """The records of the patients in `part`, grouped by patient; and how many patients are absent.

    A patient whose rows do not fit - a wrong label, both classes, both sides of the split, an image
    that cannot be decoded - counts as absent (rules 7). With `strict` it is an error instead. Only
    the images of `part` are decoded.

    Raises:
        DataError: with `strict`, anything that does not fit; names columns and rules.
    """
    groups: dict[str, list[_Image]] = {}
    absent: set[str] = set()
    for number, row in enumerate(rows):
        patient = f"#{number}" if schema.no_patient_key else _cell(row, schema.patient_key)
        try:
            groups.setdefault(patient, []).append(_image(schema, row, patient=patient))
        except DataError:
            if strict:
                raise
            absent.add(patient)
    kept: list[tuple[float, list[FloatArray]]] = []
    for patient, images in groups.items():
        if patient in absent:
            continue
        try:
            _check_patient(schema, images, patient=patient)
            if images[0].part == part:
                kept.append((images[0].label, [_pixels(schema, image.row) for image in images]))
        except DataError:
            if strict:
                raise
            absent.add(patient)
    if strict and part == "train" and not kept:
        raise DataError("images: expected at least one patient to train on, found none")
    return _records(schema, kept), len(absent)


def npz_rows(path: Path, schema: ImageData) -> list[ImageRow]:
    """The rows of a benchmark set: `images` uint8 or float [n, height, width], one array a column.

    Raises:
        DataError: no such file, pickled objects in it, or arrays that are not of one length.
    """
    arrays = read_npz(path)
    if "images" not in arrays or any(name not in arrays for name in schema.columns):
        raise DataError(
            f"images: expected the arrays images, {', '.join(schema.columns)} in the .npz file, "
            "found others"
        )
    if schema.no_patient_key and schema.patient_key in arrays:
        raise DataError("images: expected no array for the patient, found one")
    images = arrays["images"]
    columns = {name: arrays[name].ravel().astype(str) for name in schema.columns}
    if images.shape[1:] != (schema.height, schema.width):
        raise DataError(
            f"images: expected {schema.height} x {schema.width} pixels, found arrays of another "
            "size"
        )
    if any(len(column) != len(images) for column in columns.values()):
        raise DataError("images: expected one cell for each image, found another number")
    return [
        ImageRow(
            cells={name: str(column[number]) for name, column in columns.items()},
            pixels=_NpzPixels(images, number).read,
        )
        for number in range(len(images))
    ]


@dataclass(frozen=True, slots=True)
class _NpzPixels:
    images: npt.NDArray[np.generic]
    number: int

    def read(self) -> FloatArray:
        """One image in [0, 1]: bytes by their range, floats as they are."""
        image = self.images[self.number]
        pixels: FloatArray = image.astype(np.float32)
        pixels /= np.float32(255.0 if image.dtype == np.uint8 else 1.0)
        return pixels


def _image(schema: ImageData, row: ImageRow, *, patient: str) -> _Image:
    if not patient:
        raise DataError(f"column {schema.patient_key!r}: expected a patient id in every row")
    rule = schema.label
    value = decimal_number(_cell(row, rule.column))
    if value is None or value != int(value) or not rule.low <= value <= rule.high:
        raise DataError(
            f"column {rule.column!r}: expected a whole number from {rule.low} to {rule.high} as "
            "label, found something else"
        )
    if isinstance(schema.split, HashSplit):
        part = hash_part(schema.split, patient)
    else:
        text = _cell(row, schema.split.column)
        if text not in ("train", "test"):
            raise DataError(f"column {schema.split.column!r}: expected 'train' or 'test'")
        part = "train" if text == "train" else "test"
    return _Image(label=1.0 if value >= rule.positive_from else 0.0, part=part, row=row)


def _check_patient(schema: ImageData, images: list[_Image], *, patient: str) -> None:
    if not patient:
        raise DataError(f"column {schema.patient_key!r}: expected a patient id in every row")
    if len({image.part for image in images}) > 1:
        raise DataError("split: expected all images of a patient on one side, found both")
    if len({image.label for image in images}) > 1:
        raise DataError(
            f"column {schema.label.column!r}: expected one label per patient, found both classes"
        )


def _pixels(schema: ImageData, row: ImageRow) -> FloatArray:
    """The flat inputs of one image in [-1, 1]."""
    pixels = row.pixels()
    if pixels.shape != (schema.height, schema.width):
        raise DataError(f"images: expected {schema.height} x {schema.width} pixels, found others")
    if not np.isfinite(pixels).all():
        raise DataError("images: expected finite pixels, found others")
    return np.clip(pixels, 0.0, 1.0).ravel() * np.float32(2.0) - np.float32(1.0)


def _cell(row: ImageRow, column: str) -> str:
    return row.cells.get(column, "").strip()


def _records(schema: ImageData, kept: list[tuple[float, list[FloatArray]]]) -> PatientRecords:
    sizes = [len(images) for _label, images in kept]
    features = np.zeros((sum(sizes), schema.input_size), dtype=np.float32)
    for number, image in enumerate(image for _label, images in kept for image in images):
        features[number] = image
    return PatientRecords(
        features=features,
        labels=np.repeat(np.array([label for label, _ in kept], dtype=np.float32), sizes),
        patient=np.repeat(np.arange(len(kept), dtype=np.int64), sizes),
    )
