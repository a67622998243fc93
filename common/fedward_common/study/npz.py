"""Arrays out of a .npz file, without ever unpickling: numbers and text only."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy.typing as npt
from numpy.lib import format as npy

from fedward_common.errors import DataError


def read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of the file by name.

    Raises:
        DataError: no such file, no .npz, or an array of Python objects in it.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    arrays[name.removesuffix(".npy")] = npy.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            "images: expected a .npz file of numbers and text without Python objects, found none"
        ) from error
    return arrays
