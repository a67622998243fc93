"""Real vectors as integers modulo 2^32 or 2^64, so that sums are exact and masks are perfect.

The privacy bound holds on the integers, not on the real numbers before them: a patient's vector is
rounded towards zero, so no coordinate grows and its norm stays below C on the grid.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from fedward_common.privacy.randomness import RandomSource
from fedward_common.secagg.refusals import Reason, SecAggRefused

Ring = npt.NDArray[Any]
"""uint32 or uint64: residues modulo 2^bits."""
Int64Array = npt.NDArray[np.int64]
TAIL_ERRORS = 12.0
"""Standard deviations of the total's noise that must fit the ring: 2e-33 a coordinate beyond."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedPoint:
    """The public grid of a study: `scale` units for 1.0, `saturation` (Q) and the ring.

    Guarantees: encoding then decoding a sum of n vectors is off by less than n units per patient in
    it plus half a unit per site of noise; nothing wraps around while `check` holds.
    """

    scale: float
    saturation: int
    bits: Literal[32, 64] = 32

    @classmethod
    def fitting(
        cls,
        *,
        clip_norm: float,
        sites: int,
        noise_std: float,
        bits: Literal[32, 64] = 32,
        fraction_bits: int = 20,
    ) -> Self:
        """The grid of C / 2^fraction_bits with the largest saturation that the ring holds.

        `noise_std`: the standard deviation of one site's noise, in real units.

        Raises:
            SecAggRefused: the ring does not even hold one clipped patient per site.
        """
        scale = 2.0**fraction_bits / clip_norm
        room = 2.0 ** (bits - 1) - TAIL_ERRORS * math.sqrt(sites) * noise_std * scale
        # A hair below: 2^63 has no float64 neighbour that an integer sum could tell from it.
        saturation = math.floor(room * (1 - 1e-9) / sites) - 1
        if saturation < 2**fraction_bits:
            raise SecAggRefused(
                Reason.CAPACITY,
                f"expected room for one patient of every site in {bits} bits, found none; take 64 "
                "bits or a coarser grid",
            )
        return cls(scale=scale, saturation=min(saturation, 2**62), bits=bits)

    def check(self, *, sites: int, noise_std: float) -> None:
        """Returns when the sum of `sites` vectors with this total noise fits the ring.

        `noise_std`: the standard deviation of one site's noise, in real units.

        Raises:
            SecAggRefused: it does not; says which ring or grid would.
        """
        reach = sites * self.saturation + TAIL_ERRORS * math.sqrt(sites) * noise_std * self.scale
        if not reach < 2.0 ** (self.bits - 1):
            raise SecAggRefused(
                Reason.CAPACITY,
                f"expected sums below 2^{self.bits - 1}, found up to 2^{math.log2(reach):.1f}; "
                "take a coarser grid, a smaller saturation or 64 bits",
            )

    def quantise(self, vectors: npt.NDArray[np.float64]) -> Int64Array:
        """Each row on the grid, rounded towards zero: norms do not grow."""
        if not np.isfinite(vectors).all():
            raise SecAggRefused(Reason.VECTOR, "expected finite numbers, found others")
        grid = np.trunc(vectors * self.scale)
        if np.abs(grid).max(initial=0.0) >= 2.0**62:
            raise SecAggRefused(Reason.CAPACITY, "expected numbers within the grid, found larger")
        return grid.astype(np.int64)

    def saturate(self, total: Int64Array) -> Int64Array:
        """The site's sum with every coordinate within +-Q, before noise: sensitivity unchanged.

        Clipping a coordinate to an interval never moves two sums further apart.
        """
        return np.clip(total, -self.saturation, self.saturation)

    def noise(self, count: int, *, std: float, source: RandomSource) -> Int64Array:
        """`count` integers round(N(0, (std scale)^2)): rounding after the Gaussian is
        post-processing of it.
        """
        return np.rint(source.normal(count) * (std * self.scale)).astype(np.int64)

    def to_ring(self, values: Int64Array) -> Ring:
        """The residues of signed integers."""
        return values.astype(np.uint64).astype(self.dtype)

    def from_ring(self, residues: Ring) -> npt.NDArray[np.float64]:
        """The real numbers of residues, read as signed: a copy, float64."""
        signed = residues.astype(self.dtype, copy=False).view(
            np.int32 if self.bits == 32 else np.int64
        )
        values = signed.astype(np.float64)
        values /= self.scale
        return values

    @property
    def dtype(self) -> type[np.uint32] | type[np.uint64]:
        """The unsigned type of the ring."""
        return np.uint32 if self.bits == 32 else np.uint64
