"""What is predicted on: one DICOM image, or the slices of a series in the order of their place."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from fedward_client.data.dicom.pixels import FloatArray, Window, load_picture
from fedward_client.data.dicom.quiet import without_words
from fedward_client.data.dicom.reasons import BadObject
from fedward_client.data.dicom.series import load_volume
from fedward_client.data.image_files import centred, fitted, in_colour
from fedward_common.errors import DataError
from fedward_common.study.image_encoding import colours
from fedward_common.study.imaging import ImageMasks, Pictures


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Subject:
    """`sources` in the order of the first axis; `shape` of the image as it came; `features` flat
    in [-1, 1], made as in training.
    """

    sources: tuple[Dataset, ...]
    shape: tuple[int, ...]
    size: tuple[int, ...]
    features: FloatArray

    def as_it_came(self, mask: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """A mask of the study's size in the shape of the image; 0 where the model did not look."""
        out = np.zeros(self.shape, dtype=np.int64)
        into, whence = [], []
        for have, want in zip(self.shape, self.size, strict=True):
            common = min(have, want)
            into.append(slice((have - common) // 2, (have - common) // 2 + common))
            whence.append(slice((want - common) // 2, (want - common) // 2 + common))
        out[tuple(into)] = mask[tuple(whence)]
        return out


def read_subject(path: Path, data: Pictures) -> Subject:
    """The image in `path` (a file), or the volume (a folder with one series).

    Raises:
        DataError: nothing that this study's model can be asked about.
    """
    window = None
    if data.window is not None:
        window = Window(low=data.window.low, high=data.window.high)
    files = sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]
    if bool(data.depth) != path.is_dir():
        expected = "a folder with the slices of one series" if data.depth else "one DICOM file"
        raise DataError(f"predict: expected {expected}, found another kind of input")
    try:
        if data.depth:
            sources = _in_order([_read(one) for one in files])
            voxels = load_volume(files, window=window).voxels
        else:
            sources = (_read(path),)
            picture = load_picture(path, window=window)
            if len(picture.pixels) != 1:
                raise DataError("predict: expected a single image, found several frames")
            voxels = picture.pixels[0]
            if not colours(data):
                voxels = voxels.mean(axis=2, dtype=np.float32)
    except BadObject as error:
        raise DataError(f"predict: expected a readable object, found {error.reason}") from error
    if colours(data):
        small = in_colour(voxels, data)
    elif isinstance(data, ImageMasks) or data.depth:
        small = centred(voxels, data.size)
    else:
        small = fitted(voxels, height=data.height, width=data.width)
    scaled = np.clip(small, 0.0, 1.0) * np.float32(2.0) - np.float32(1.0)
    return Subject(sources=sources, shape=voxels.shape, size=data.size, features=scaled.ravel())


def _read(path: Path) -> Dataset:
    try:
        with without_words():
            return dcmread(path)
    except (InvalidDicomError, OSError, ValueError, EOFError) as error:
        raise DataError("predict: expected DICOM objects, found something else") from error


def _in_order(datasets: list[Dataset]) -> tuple[Dataset, ...]:
    """By place along the normal of the slices, as `load_volume` has its voxels."""
    try:
        axes = np.array(datasets[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
        normal = np.cross(axes[0], axes[1])
        along = [float(np.array(one.ImagePositionPatient, float) @ normal) for one in datasets]
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise DataError("predict: expected slices with a place in space, found others") from error
    return tuple(datasets[number] for number in np.argsort(along, kind="stable"))
