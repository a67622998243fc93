"""NIfTI volumes of research sets: voxels in one order of axes, with spacing and orientation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from fedward_client.data.dicom.pixels import Window
from fedward_client.data.dicom.series import Volume
from fedward_common.errors import DataError

MAX_VOXELS: Final = 1 << 28
_RAS_TO_LPS: Final = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Turned:
    """Voxels and affine after the axes were turned to the nearest LPS order."""

    voxels: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]


def load_nifti(path: Path, *, window: Window | None = None) -> Volume:
    """The volume in `path`, axes turned to the nearest LPS order: slices, rows, columns.

    With `window` voxels are scaled by these public limits, otherwise by the volume's own extremes.

    Raises:
        DataError: no NIfTI file, not three-dimensional, too large, or without finite voxels.
    """
    found = _turned(path)
    voxels, affine = found.voxels, found.affine
    steps = affine[:3, :3] * _RAS_TO_LPS[:, None]
    spacing = np.linalg.norm(steps, axis=0)
    if spacing.min() <= 0:
        raise DataError("NIfTI: expected a positive spacing, found zero")
    low, high = (window.low, window.high) if window else (float(voxels.min()), float(voxels.max()))
    scaled = np.clip((voxels - low) / max(high - low, 1e-12), 0.0, 1.0, dtype=np.float32)
    return Volume(
        voxels=np.ascontiguousarray(scaled),
        spacing=(float(spacing[2]), float(spacing[1]), float(spacing[0])),
        orientation=(steps / spacing).T[::-1],
        origin=affine[:3, 3] * _RAS_TO_LPS,
    )


def load_mask(path: Path) -> npt.NDArray[np.float32]:
    """The numbers in `path` as they are, turned like an image's voxels. Raises: as `load_nifti`."""
    return _turned(path).voxels


def _turned(path: Path) -> _Turned:
    from nibabel.filebasedimages import ImageFileError  # noqa: PLC0415 - only who reads NIfTI pays
    from nibabel.loadsave import load  # noqa: PLC0415
    from nibabel.orientations import (  # noqa: PLC0415
        axcodes2ornt,
        io_orientation,
        ornt_transform,
    )
    from nibabel.spatialimages import SpatialImage  # noqa: PLC0415

    try:
        image = load(path)
        if not isinstance(image, SpatialImage) or len(image.shape) != 3:
            raise DataError("NIfTI: expected a volume of three dimensions, found another")
        if np.prod(image.shape) > MAX_VOXELS:
            raise DataError(f"NIfTI: expected at most {MAX_VOXELS} voxels, found more")
        # LPS, like DICOM: to the patient's left, back and head.
        wanted = axcodes2ornt(("L", "P", "S"))
        turned = image.as_reoriented(ornt_transform(io_orientation(image.affine), wanted))
        voxels = np.asarray(turned.dataobj, dtype=np.float32).transpose(2, 1, 0)
        affine = np.asarray(turned.affine, dtype=np.float64)
    except (ImageFileError, OSError, EOFError, ValueError) as error:
        raise DataError("NIfTI: expected a readable .nii or .nii.gz file, found none") from error
    if not np.isfinite(voxels).all() or not np.isfinite(affine).all():
        raise DataError("NIfTI: expected finite voxels and a finite affine, found others")
    return _Turned(voxels=voxels, affine=affine)
