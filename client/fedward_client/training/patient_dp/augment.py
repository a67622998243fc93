"""Images changed in ways that keep their label, each by draws of its own; no other image enters."""

from collections.abc import Sequence

import torch
from torch.nn import functional

from fedward_common.privacy.randomness import RandomSource
from fedward_common.study.augmentation import (
    MOVING,
    Augmentation,
    Brightness,
    Contrast,
    Flip,
    Turn,
    Zoom,
)


def augmented(
    features: torch.Tensor,
    *,
    image: tuple[int, int],
    ways: Sequence[Augmentation],
    sampling: RandomSource,
) -> torch.Tensor:
    """`features` [records, planes x height x width], each record changed in every one of `ways`.

    What moves pixels is one step of bilinear sampling, edges repeated; values stay in [-1, 1].
    """
    records = len(features)
    if not records:
        return features
    drawn = torch.from_numpy(sampling.uniform(records * len(ways)).reshape(records, len(ways)))
    changed = features
    if any(isinstance(way, MOVING) for way in ways):
        changed = _moved(features, image=image, ways=ways, drawn=drawn)
    for number, way in enumerate(ways):
        apart = (2.0 * drawn[:, number] - 1.0).to(changed).view(-1, *[1] * (changed.dim() - 1))
        if isinstance(way, Contrast):
            changed = changed * (1.0 + way.factor * apart)
        elif isinstance(way, Brightness):
            changed = changed + way.by * apart
    return changed.clamp(-1.0, 1.0)


def _moved(
    features: torch.Tensor,
    *,
    image: tuple[int, int],
    ways: Sequence[Augmentation],
    drawn: torch.Tensor,
) -> torch.Tensor:
    height, width = image
    places = torch.eye(2, dtype=torch.float64).repeat(len(features), 1, 1)
    for number, way in enumerate(ways):
        places = places @ _places(way, drawn[:, number])
    # affine_grid counts from -1 to 1 along each side: a turn is one of pixels, not of that.
    sides = torch.tensor([width, height], dtype=torch.float64)
    scaled = places * (sides[None, :] / sides[:, None])
    theta = torch.cat([scaled, torch.zeros(len(features), 2, 1, dtype=torch.float64)], dim=2)
    pictures = features.reshape(len(features), -1, height, width)
    grid = functional.affine_grid(theta.to(pictures), list(pictures.shape), align_corners=False)
    return functional.grid_sample(
        pictures, grid, mode="bilinear", padding_mode="border", align_corners=False
    ).view_as(features)


def _places(way: Augmentation, drawn: torch.Tensor) -> torch.Tensor:
    """For each record the matrix [2, 2] from a pixel (right, down) to where it is taken from."""
    found = torch.eye(2, dtype=torch.float64).repeat(len(drawn), 1, 1)
    apart = 2.0 * drawn - 1.0
    if isinstance(way, Flip):
        side = 0 if way.axis == "left-right" else 1
        found[:, side, side] = torch.where(drawn < 0.5, -1.0, 1.0).to(found)
    elif isinstance(way, Turn):
        angle = torch.deg2rad(way.degrees * apart)
        found[:, 0, 0] = found[:, 1, 1] = torch.cos(angle)
        found[:, 0, 1], found[:, 1, 0] = -torch.sin(angle), torch.sin(angle)
    elif isinstance(way, Zoom):
        found /= (1.0 + way.factor * apart)[:, None, None]
    return found
