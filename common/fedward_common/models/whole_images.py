"""A segmentation of whole images by a network of patches, and how well it fits.

Both sides use this: a site on its held-out patients, the sandbox's parent on its own copy of them,
`predict` on new images.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedward_common.study.imaging import ImageMasks

OVERLAP: Final = 0.5
Mask = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """How well one structure was found in one image.

    `distance_mm`: the 95th percentile of the distances between both surfaces, in both directions.
    A structure that is in neither mask was found (Dice 1, distance 0); one that is in one of them
    only was not (Dice 0), and its distance is infinite.
    """

    dice: float
    iou: float
    distance_mm: float


def logits_of(model: nn.Module, features: torch.Tensor, schema: ImageMasks) -> torch.Tensor:
    """Logits [structures + 1, *size] of one flat image, from overlapping patches (MONAI).

    Patches are weighted by a Gaussian around their middle; each is computed alone.
    """
    from monai.inferers import sliding_window_inference  # noqa: PLC0415 - an extra

    found = sliding_window_inference(
        features.reshape(1, 1, *schema.size),
        roi_size=schema.patch,
        sw_batch_size=1,
        predictor=lambda patch: model(patch.flatten(1)),
        overlap=OVERLAP,
        mode="gaussian",
    )
    return torch.as_tensor(found)[0]


def overlaps(
    found: Mask, expected: Mask, *, structures: int, spacing_mm: tuple[float, ...]
) -> list[Overlap]:
    """How well each structure was found; masks hold 0 for background and 1 for the first one."""
    return [
        _overlap(found == number, expected == number, spacing_mm=spacing_mm)
        for number in range(1, structures + 1)
    ]


def _overlap(
    found: npt.NDArray[np.bool_], expected: npt.NDArray[np.bool_], *, spacing_mm: tuple[float, ...]
) -> Overlap:
    sizes = int(found.sum()), int(expected.sum())
    if not any(sizes):
        return Overlap(dice=1.0, iou=1.0, distance_mm=0.0)
    if not all(sizes):
        return Overlap(dice=0.0, iou=0.0, distance_mm=math.inf)
    both = int((found & expected).sum())
    return Overlap(
        dice=2.0 * both / sum(sizes),
        iou=both / (sum(sizes) - both),
        distance_mm=_hausdorff95(found, expected, spacing_mm=spacing_mm),
    )


def _hausdorff95(
    found: npt.NDArray[np.bool_], expected: npt.NDArray[np.bool_], *, spacing_mm: tuple[float, ...]
) -> float:
    """By exact distance transforms of both surfaces; the larger of the two directions."""
    from scipy import ndimage  # type: ignore[import-untyped]  # noqa: PLC0415 - half a second

    one, other = (mask & ~ndimage.binary_erosion(mask) for mask in (found, expected))
    to_other = ndimage.distance_transform_edt(~other, sampling=spacing_mm)[one]
    to_one = ndimage.distance_transform_edt(~one, sampling=spacing_mm)[other]
    return float(max(np.percentile(to_other, 95), np.percentile(to_one, 95)))
