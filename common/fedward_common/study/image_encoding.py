"""From a site's images to tensors, each image by itself and by public constants alone (rules 6)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from fedward_common.errors import DataError
from fedward_common.study.encoding import (
    PatientRecords,
    TablePart,
    code_text,
    decimal_number,
    hash_part,
)
from fedward_common.study.imaging import ClassLabel, ImageData, ImageMasks, Pictures
from fedward_common.study.npz import read_npz
from fedward_common.study.tabular import HashSplit, LabelRule

FloatArray = npt.NDArray[np.float32]
BITS: Final = {"0": 0, "1": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRow:
    """One image: its cells by column, and its pixels (and mask) when they are asked for.

    `pixels` gives float32 of the study's size in [0, 1], `mask` the number of a structure for each
    pixel; both raise DataError where they cannot be used.
    """

    cells: Mapping[str, str]
    pixels: Callable[[], FloatArray]
    mask: Callable[[], FloatArray] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Image:
    label: float
    part: TablePart
    row: ImageRow


@dataclass(frozen=True, kw_only=True, slots=True)
class _Example:
    """One record: flat inputs, and a number or a flat mask as label."""

    features: FloatArray
    label: float | FloatArray


def encode_images(
    schema: Pictures, rows: Iterable[ImageRow], *, part: TablePart, strict: bool
) -> tuple[PatientRecords, int]:
    """The records of the patients in `part`, grouped by patient; and how many patients are absent.

    A patient whose rows do not fit - a wrong label, several classes, both sides of the split, an
    image that cannot be decoded - counts as absent (rules 7). With `strict` it is an error instead.
    Only the images of `part` are decoded. With masks, a training record is a patch and a held-out
    record a whole image.

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
    kept: dict[str, list[_Example]] = {}
    for patient, images in groups.items():
        if patient in absent:
            continue
        try:
            _check_patient(schema, images, patient=patient)
            if images[0].part == part:
                kept[patient] = [e for image in images for e in _examples(schema, image, part=part)]
        except DataError:
            if strict:
                raise
            absent.add(patient)
    if strict and part == "train" and not kept:
        raise DataError("images: expected at least one patient to train on, found none")
    return _records(schema, kept, part=part), len(absent)


def npz_rows(path: Path, schema: Pictures) -> list[ImageRow]:
    """The rows of a benchmark set: `images` uint8 or float [n, *size], one array a column; of
    colour [n, height, width, 3].

    With masks, `masks` holds whole numbers in the shape of `images`.

    Raises:
        DataError: no such file, pickled objects in it, or arrays that are not of one length.
    """
    arrays = read_npz(path)
    pictures = ("images", "masks") if isinstance(schema, ImageMasks) else ("images",)
    if any(name not in arrays for name in (*pictures, *schema.columns)):
        raise DataError(
            f"images: expected the arrays {', '.join((*pictures, *schema.columns))} in the .npz "
            "file, found others"
        )
    if schema.no_patient_key and schema.patient_key in arrays:
        raise DataError("images: expected no array for the patient, found one")
    images = arrays["images"]
    columns = {name: arrays[name].ravel().astype(str) for name in schema.columns}
    stored = (*schema.size[1:], schema.size[0]) if colours(schema) else schema.size
    if images.shape[1:] != stored or any(arrays[p].shape != images.shape for p in pictures):
        raise DataError(
            f"images: expected {_size_text(schema)} pixels, found arrays of another size"
        )
    if colours(schema):
        images = np.moveaxis(images, -1, 1)
    if any(len(column) != len(images) for column in columns.values()):
        raise DataError("images: expected one cell for each image, found another number")
    return [
        ImageRow(
            cells={name: str(column[number]) for name, column in columns.items()},
            pixels=_NpzPixels(images, number).read,
            mask=_NpzPixels(arrays["masks"], number).whole if "masks" in pictures else None,
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

    def whole(self) -> FloatArray:
        """One mask as it is."""
        mask: FloatArray = self.images[self.number].astype(np.float32)
        return mask


def colours(schema: Pictures) -> bool:
    """Whether images have three channels."""
    return isinstance(schema, ImageData) and schema.channels > 1


def _image(schema: Pictures, row: ImageRow, *, patient: str) -> _Image:
    if not patient:
        raise DataError(f"column {schema.patient_key!r}: expected a patient id in every row")
    label = _label(schema, row) if isinstance(schema, ImageData) else 0.0
    if isinstance(schema.split, HashSplit):
        part = hash_part(schema.split, patient)
    else:
        text = _cell(row, schema.split.column)
        if text not in ("train", "test"):
            raise DataError(f"column {schema.split.column!r}: expected 'train' or 'test'")
        part = "train" if text == "train" else "test"
    return _Image(label=label, part=part, row=row)


def _label(schema: ImageData, row: ImageRow) -> float:
    """0 or 1, the number of a class, or a whole number whose bits are the labels."""
    rule = schema.label
    if isinstance(rule, LabelRule):
        value = decimal_number(_cell(row, rule.column))
        if value is None or value != int(value) or not rule.low <= value <= rule.high:
            raise DataError(
                f"column {rule.column!r}: expected a whole number from {rule.low} to {rule.high} "
                "as label, found something else"
            )
        return 1.0 if value >= rule.positive_from else 0.0
    if isinstance(rule, ClassLabel):
        text = _cell(row, rule.column)
        if text not in rule.classes:
            raise DataError(
                f"column {rule.column!r}: expected one of the study's {len(rule.classes)} classes, "
                "found something else"
            )
        return float(rule.classes.index(text))
    bits = 0
    for place, column in enumerate(rule.labels):
        code = code_text(_cell(row, column))
        if code not in BITS:
            raise DataError(f"column {column!r}: expected 0 or 1, found something else")
        bits |= BITS[code] << place
    return float(bits)


def _check_patient(schema: Pictures, images: list[_Image], *, patient: str) -> None:
    if not patient:
        raise DataError(f"column {schema.patient_key!r}: expected a patient id in every row")
    if len({image.part for image in images}) > 1:
        raise DataError("split: expected all images of a patient on one side, found both")
    if isinstance(schema, ImageData) and len({image.label for image in images}) > 1:
        rule = schema.label
        columns = (rule.column,) if isinstance(rule, LabelRule) else rule.columns
        raise DataError(
            f"columns {', '.join(map(repr, columns))}: expected one label per patient, found "
            "several"
        )


def _examples(schema: Pictures, image: _Image, *, part: TablePart) -> list[_Example]:
    """The records that one image gives."""
    pixels = _pixels(schema, image.row)
    if not isinstance(schema, ImageMasks):
        return [_Example(features=pixels.ravel(), label=image.label)]
    mask = _mask(schema, image.row)
    if part == "test":
        return [_Example(features=pixels.ravel(), label=mask.ravel())]
    places = [
        tuple(slice(start, start + side) for start, side in zip(corner, schema.patch, strict=True))
        for corner in product(*schema.starts)
    ]
    return [_Example(features=pixels[at].ravel(), label=mask[at].ravel()) for at in places]


def _pixels(schema: Pictures, row: ImageRow) -> FloatArray:
    """One image in [-1, 1]."""
    pixels = row.pixels()
    if pixels.shape != schema.size:
        raise DataError(f"images: expected {_size_text(schema)} pixels, found others")
    if not np.isfinite(pixels).all():
        raise DataError("images: expected finite pixels, found others")
    return np.clip(pixels, 0.0, 1.0) * np.float32(2.0) - np.float32(1.0)


def _mask(schema: ImageMasks, row: ImageRow) -> FloatArray:
    mask = row.mask() if row.mask is not None else None
    if mask is None or mask.shape != schema.size:
        raise DataError(f"masks: expected {_size_text(schema)} pixels, found others")
    if not np.isin(mask, range(len(schema.structures) + 1)).all():
        raise DataError(
            f"masks: expected whole numbers up to {len(schema.structures)}, found others"
        )
    return mask


def _size_text(schema: Pictures) -> str:
    return " x ".join(map(str, schema.size))


def _cell(row: ImageRow, column: str) -> str:
    return row.cells.get(column, "").strip()


def _records(
    schema: Pictures, kept: Mapping[str, list[_Example]], *, part: TablePart
) -> PatientRecords:
    sizes = [len(examples) for examples in kept.values()]
    masks = isinstance(schema, ImageMasks)
    whole = np.prod(schema.size, dtype=int) if part == "test" else schema.input_size
    features = np.zeros((sum(sizes), whole), dtype=np.float32)
    labels = np.zeros((sum(sizes), whole) if masks else (sum(sizes),), dtype=np.float32)
    for number, example in enumerate(one for own in kept.values() for one in own):
        features[number], labels[number] = example.features, example.label
    return PatientRecords(
        features=features,
        labels=labels,
        patient=np.repeat(np.arange(len(kept), dtype=np.int64), sizes),
        ids=tuple(kept),
    )
