"""A 3-D series: slices in the order of their place in space, with spacing and orientation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from fedward_client.data.dicom.pixels import FloatArray, Header, Window, load_picture
from fedward_common.errors import DataError

SPACING_TOLERANCE: Final = 0.02
"""By how much one gap between slices may differ from the middle one, as a fraction."""

ORIENTATION_TOLERANCE: Final = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Volume:
    """Voxels float32 [slices, rows, columns] in [0, 1] and where they are.

    `spacing`: mm between slices, rows and columns. `orientation`: the unit vectors of a step to
    the next slice, row and column in the patient's coordinates (LPS), [3, 3]. `origin`: the centre
    of voxel [0, 0, 0], mm.
    """

    voxels: FloatArray
    spacing: tuple[float, float, float]
    orientation: npt.NDArray[np.float64]
    origin: npt.NDArray[np.float64]


def load_volume(paths: Sequence[Path], *, window: Window | None = None) -> Volume:
    """The volume whose slices are in `paths`, one image each, in any order.

    Sorted by position along the normal of the slices, not by instance number or name.

    Raises:
        DataError: not a volume: a slice without place, other orientations, two slices at one
            place, or gaps between slices.
        BadObject: a slice cannot be decoded.
    """
    slices = [load_picture(path, window=window) for path in paths]
    places = [_place(one.header) for one in slices]
    first = places[0]
    for place in places[1:]:
        if not np.allclose(place.axes, first.axes, atol=ORIENTATION_TOLERANCE):
            raise DataError("series: expected slices of one orientation, found several")
        if place.spacing != first.spacing:
            raise DataError("series: expected slices of one pixel spacing, found several")
    if len({one.pixels.shape for one in slices}) != 1 or slices[0].pixels.shape[::3] != (1, 1):
        raise DataError("series: expected single grey slices of one size, found others")
    normal = np.cross(first.axes[0], first.axes[1])
    along = np.array([float(place.origin @ normal) for place in places])
    order = np.argsort(along, kind="stable")
    return Volume(
        voxels=np.stack([slices[i].pixels[0, :, :, 0] for i in order]),
        spacing=(_gap(along[order], first.thickness), *first.spacing),
        # PS3.3 C.7.6.2.1.1: the first vector runs along a row, from column to column.
        orientation=np.stack([normal, first.axes[1], first.axes[0]]),
        origin=places[int(order[0])].origin,
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Place:
    axes: npt.NDArray[np.float64]
    origin: npt.NDArray[np.float64]
    spacing: tuple[float, float]
    thickness: float | None


def _place(header: Header) -> _Place:
    position = header.get("ImagePositionPatient")
    orientation = header.get("ImageOrientationPatient")
    spacing = header.get("PixelSpacing")
    if not (
        isinstance(position, tuple)
        and len(position) == 3
        and isinstance(orientation, tuple)
        and len(orientation) == 6
        and isinstance(spacing, tuple)
        and len(spacing) == 2
    ):
        raise DataError(
            "series: expected position, orientation and pixel spacing in every slice, found a "
            "slice without"
        )
    axes = np.array(orientation, dtype=np.float64).reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=ORIENTATION_TOLERANCE * 10):
        raise DataError("series: expected perpendicular unit vectors as orientation, found others")
    thickness = header.get("SliceThickness")
    return _Place(
        axes=axes,
        origin=np.array(position, dtype=np.float64),
        spacing=(spacing[0], spacing[1]),
        thickness=thickness if isinstance(thickness, float) else None,
    )


def _gap(along: npt.NDArray[np.float64], thickness: float | None) -> float:
    if len(along) == 1:
        return thickness or 1.0
    gaps = np.diff(along)
    middle = float(np.median(gaps))
    if middle <= 0 or gaps.min() <= 0:
        raise DataError("series: expected every slice at its own place, found two at one")
    if np.abs(gaps - middle).max() > SPACING_TOLERANCE * middle:
        raise DataError("series: expected equal gaps between slices, found a missing slice")
    return middle
