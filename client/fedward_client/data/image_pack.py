"""A folder of images with their table as one .npz set, each image as training would read it."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import TypeAdapter, ValidationError

from fedward_client.data.dicom.pixels import FloatArray
from fedward_client.data.images import TABLE, folder_rows
from fedward_common.errors import ConfigError, DataError
from fedward_common.study.files import read_toml
from fedward_common.study.image_encoding import ImageRow, colours
from fedward_common.study.imaging import ImageData, ImageMasks, Pictures, PlainImages
from fedward_common.trust.private_files import write_private

_SCHEMA: Final = TypeAdapter[ImageData | ImageMasks | PlainImages](
    ImageData | ImageMasks | PlainImages
)


def pack(folder: Path, study: Path, target: Path) -> int:
    """The number of images of `folder` that are now in `target` (0600, new), with their cells.

    `images` float32 in [0, 1], [n, *size] ([n, height, width, 3] in colour), `masks` where the
    study has them, and one array of text for each column that the study reads. `study` is a study
    file, or its JSON; of it only `data` is read.

    Raises:
        ConfigError: no study of images in `study`, or `target` exists.
        DataError: a table or an image that is not as the study says.
    """
    schema = read_schema(study)
    if target.exists():
        raise ConfigError(f"{target}: expected no file of that name, found one")
    rows = folder_rows(folder, schema)
    pixels = [_read(row.pixels, line) for line, row in enumerate(rows, start=2)]
    images = np.stack(pixels) if pixels else np.zeros((0, *schema.size), np.float32)
    arrays = _cells(rows, schema)
    arrays["images"] = np.moveaxis(images, 1, -1) if colours(schema) else images
    masks = [_read(row.mask, line) for line, row in enumerate(rows, start=2) if row.mask]
    if masks:
        arrays["masks"] = np.stack(masks).astype(np.uint8)
    buffer = BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_private(target, buffer.getvalue())
    return len(rows)


def read_schema(study: Path) -> Pictures:
    """The `data` of a study of images. Raises ConfigError where there is none."""
    try:
        whole: Any = json.loads(study.read_text()) if study.suffix == ".json" else read_toml(study)
        return _SCHEMA.validate_python(whole["data"])
    except (OSError, ValueError, LookupError, TypeError, ValidationError) as error:
        raise ConfigError(
            f"{study}: expected a study file with [data] of images, found none"
        ) from error


def _read(read: Callable[[], FloatArray], line: int) -> FloatArray:
    """An image or mask. Raises DataError with the line of the table, not with the file's name."""
    try:
        return read()
    except DataError as error:
        raise DataError(f"{TABLE}, row {line}: {error}") from error


def _cells(rows: list[ImageRow], schema: Pictures) -> dict[str, Any]:
    return {name: np.array([row.cells[name] for row in rows], str) for name in schema.columns}
