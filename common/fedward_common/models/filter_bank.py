"""A segmenter of fixed filters and few numbers: what little noise and few patients can train.

The noise of DP-SGD grows with the square root of the trained numbers, the signal does not. So what
looks at neighbourhoods is fixed here - Gaussians and their derivatives at three scales - and only
how the maps are mixed at each place is learned.
"""

import math
from typing import Final

import torch
from torch import nn

from fedward_common.errors import ConfigError
from fedward_common.models.imaging import folded_shape, initialised
from fedward_common.study.spec import ModelSpec

SCALES: Final = (1.0, 2.0, 4.0)
"""Standard deviations of the Gaussians, in pixels of half the resolution."""
BLOCKS: Final = (2, 4)
"""Sides of the blocks, in such pixels, over which the first layer's maps are averaged."""
_HALVED: Final = 2
_LEAST_SPREAD: Final = 0.05
_REACH: Final = 3.0


class FilterBank(nn.Module):
    """Logits [records, outputs, *sides] of an image by learned mixes of fixed maps.

    1. The image at half resolution, its mean taken off and its spread made one.
    2. At each place: the image, its Gaussians and their first and second derivatives along each
       side at three scales, each map by its own spread, and where the place is in the image.
    3. Mixed to `mixed` maps; these and their means over blocks to `joined`; these to the outputs.
    4. Back to full resolution, linearly.

    Every record by itself; every step by matrices and sums, alike on every device.

    Source: Jacobsen et al. 2016, "Structured Receptive Fields in CNNs".
    """

    def __init__(self, shape: tuple[int, ...], *, mixed: int, joined: int, outputs: int) -> None:
        super().__init__()
        self.shape, sides = shape, tuple(side // _HALVED for side in shape[1:])
        layer = nn.Conv2d if len(sides) == 2 else nn.Conv3d
        maps = shape[0] * (1 + len(SCALES) * (1 + 2 * len(sides))) + 2 * len(sides)
        self.mix = layer(maps, mixed, 1)
        self.join = layer(mixed * (1 + len(BLOCKS)), joined, 1)
        self.output = layer(joined, outputs, 1)
        # Constants, and no part of the weights.
        for axis, side in enumerate(sides):
            self.register_buffer(f"filters{axis}", _filters(side), persistent=False)
            self.register_buffer(f"finer{axis}", _finer(side), persistent=False)
        self.register_buffer("places", _places(sides), persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [records, outputs, *sides] of `features` [records, pixels]."""
        image = _standard(_block_means(features.reshape(-1, *self.shape), _HALVED))
        places = self._constant("places").expand(image.shape[0], *self._constant("places").shape)
        maps = _by_spread(torch.cat(self._maps(image), dim=1))
        mixed = torch.relu(self.mix(torch.cat([maps, places], dim=1)))
        wider = [_spread_out(_block_means(mixed, side), side) for side in BLOCKS]
        logits: torch.Tensor = self.output(torch.relu(self.join(torch.cat([mixed, *wider], dim=1))))
        for axis in range(len(self.shape) - 1):
            logits = _along(logits, self._constant(f"finer{axis}"), axis)
        return logits

    def _maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The image and its filtered maps, each [records, channels, *sides]."""
        sides = len(self.shape) - 1
        found = [image]
        for scale in range(len(SCALES)):
            # Orders of derivatives along the sides so far -> the map; two in all at most, one side.
            maps: dict[tuple[int, ...], torch.Tensor] = {(): image}
            for axis in range(sides):
                filters = self._constant(f"filters{axis}")[scale]
                maps = {
                    (*orders, order): _along(one, filters[order], axis)
                    for orders, one in maps.items()
                    for order in (0, 1, 2)
                    if not (order and any(orders))
                }
            found += maps.values()
        return found

    def _constant(self, name: str) -> torch.Tensor:
        return self.get_buffer(name)


def filter_bank(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `filter-bank`; `hidden` are the maps of its two learned layers.

    Raises:
        ConfigError: sizes that it does not take.
    """
    shape = folded_shape(spec, inputs)
    blocks = _HALVED * max(BLOCKS)
    if len(spec.hidden) != 2:
        raise ConfigError("model.hidden: expected two widths for filter-bank, such as [16, 16]")
    if any(side % blocks for side in shape[1:]):
        raise ConfigError(
            f"model.shape: expected sides that {blocks} divides for filter-bank, found "
            f"{list(shape[1:])}"
        )
    if spec.outputs < 2:
        raise ConfigError("model.outputs: expected background and at least one structure")
    mixed, joined = spec.hidden
    return initialised(
        lambda: FilterBank(shape, mixed=mixed, joined=joined, outputs=spec.outputs), spec
    )


def _filters(side: int) -> torch.Tensor:
    """[scales, 3, side, side]: a Gaussian and its derivatives along a side, the edge repeated."""
    found = []
    for scale in SCALES:
        reach = math.ceil(_REACH * scale)
        steps = torch.arange(-reach, reach + 1, dtype=torch.float64)
        bell = torch.exp(-(steps**2) / (2 * scale**2))
        bell = bell / bell.sum()
        # By powers of the scale, so that derivatives at all scales are of one size.
        taps = [bell, steps / scale * bell, ((steps / scale) ** 2 - 1.0) * bell]
        places = (torch.arange(side)[:, None] + steps.long()).clamp(0, side - 1)
        for one in taps:
            rows = torch.zeros(side, side, dtype=torch.float64)
            found.append(rows.scatter_add(1, places, one.expand(side, -1)))
    return torch.stack(found).view(len(SCALES), 3, side, side).float()


def _finer(side: int) -> torch.Tensor:
    """[2 side, side]: linear interpolation to twice as many places, the edge repeated."""
    rows = torch.zeros(_HALVED * side, side, dtype=torch.float64)
    for place in range(_HALVED * side):
        at = min(max((place + 0.5) / _HALVED - 0.5, 0.0), side - 1.0)
        low = min(int(at), side - 2)
        rows[place, low] += 1.0 - (at - low)
        rows[place, low + 1] += at - low
    return rows.float()


def _places(sides: tuple[int, ...]) -> torch.Tensor:
    """[2 sides, *sides]: each coordinate, and its square, of about mean 0 and spread 1."""
    lines = [torch.linspace(-1.5, 1.5, side) for side in sides]
    grid = torch.stack(torch.meshgrid(*lines, indexing="ij"))
    return torch.cat([grid, grid**2 - 0.75])


def _along(maps: torch.Tensor, matrix: torch.Tensor, axis: int) -> torch.Tensor:
    """`matrix` applied along one side of maps [records, channels, *sides]."""
    last = maps.dim() - 1
    return (maps.transpose(2 + axis, last) @ matrix.T).transpose(2 + axis, last)


def _block_means(maps: torch.Tensor, block: int) -> torch.Tensor:
    """Means over blocks of that side: every side of the maps becomes shorter by `block`."""
    for axis in range(2, maps.dim()):
        cut = (maps.shape[axis] // block, block)
        sides = (*maps.shape[:axis], *cut, *maps.shape[axis + 1 :])
        maps = maps.reshape(sides).mean(dim=axis + 1)
    return maps


def _spread_out(maps: torch.Tensor, block: int) -> torch.Tensor:
    """Each number of the maps as a block of that side."""
    for axis in range(2, maps.dim()):
        shape = list(maps.shape)
        shape.insert(axis + 1, block)
        maps = maps.unsqueeze(axis + 1).expand(shape).flatten(axis, axis + 1)
    return maps


def _standard(maps: torch.Tensor) -> torch.Tensor:
    """Each map of each record with mean 0, and its spread made 1."""
    rest = tuple(range(2, maps.dim()))
    return _by_spread(maps - maps.mean(dim=rest, keepdim=True))


def _by_spread(maps: torch.Tensor) -> torch.Tensor:
    """Each map of each record by its own standard deviation; hardly more where it is flat."""
    rest = tuple(range(2, maps.dim()))
    spread = maps.var(dim=rest, correction=0, keepdim=True).sqrt()
    return maps / spread.clamp_min(_LEAST_SPREAD)
