"""The pixels of one file of a site's images, of the size that the study says.

Apart from `images`, because what decodes them takes long to import.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
import torch
from torch.nn import functional

from fedward_client.data.dicom.pixels import FloatArray, Window, load_picture
from fedward_client.data.dicom.reasons import BadObject
from fedward_client.data.dicom.series import load_volume
from fedward_client.data.nifti import load_mask, load_nifti
from fedward_common.errors import DataError
from fedward_common.study.image_encoding import colours
from fedward_common.study.imaging import ImageMasks, Pictures

NIFTI: Final = (".nii", ".nii.gz")


@dataclass(frozen=True, slots=True)
class FilePixels:
    """The file `name` below `folder`, read when it is asked for."""

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
