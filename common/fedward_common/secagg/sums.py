"""Which numbers of a study are added in secret, on which grid and with how much noise at each site.

Both sides compute this from the signed study alone: nothing about a sum is agreed at run time.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from fedward_common.errors import ConfigError, ProtocolError
from fedward_common.privacy.statistics import noise_spread
from fedward_common.secagg.fixedpoint import FixedPoint
from fedward_common.secagg.refusals import Reason, SecAggRefused
from fedward_common.study.evaluation import evaluation_of, validation_rounds
from fedward_common.study.kept import released_shapes
from fedward_common.study.spec import DpSgd, SecureAggregation, StudySpec
from fedward_common.study.statistics import cells, is_statistics, statistics_releases
from fedward_common.wire import Kind

Shapes = Mapping[str, tuple[int, ...]]
Float64Array = npt.NDArray[np.float64]

FINEST: Final = {32: 20, 64: 30}
"""Fraction bits of a grid, at most: a unit is C / 2^20 or C / 2^30."""
COARSEST: Final = 12
LEAST_NOISE: Final = 4096.0
"""Grid units of one site's noise, at least: from there on a sum of rounded Gaussians differs from a
rounded Gaussian by less than 4e-12 in total variation for 10 million numbers."""
ROOM_FACTOR: Final = 1.25
ROOM_EXTRA: Final = 64.0
"""A site's sum may reach so many clip norms before it saturates: what its planned number of
patients draws, a quarter more, and 64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SumPlan:
    """One secret sum: `size` numbers on `grid`; every site's guard adds noise of `noise_std`.

    `noise_std` is in real units; 0.0 where the noise is in the numbers already (local noise).
    """

    size: int
    grid: FixedPoint
    noise_std: float

    @property
    def masked_bytes(self) -> int:
        """The length of a masked vector on the wire."""
        return self.size * np.dtype(self.grid.dtype).itemsize


def sum_number(study: StudySpec, kind: Kind, round_number: int) -> int:
    """The number of a sum within its study, in the order of time: a round, the validation after it,
    the next round; the evaluation of the final model is the last. Never used twice.
    """
    validated = validation_rounds(study)
    if kind == "evaluate" and round_number not in validated:
        return last_sum(study)
    before = sum(one < round_number for one in validated)
    return round_number + before + (kind == "evaluate")


def kind_of_sum(study: StudySpec, number: int) -> Kind:
    """What the sum of this number adds up."""
    if is_statistics(study):
        return "statistics"
    rounds = (*validation_rounds(study), study.rounds)
    evaluated = {sum_number(study, "evaluate", one) for one in rounds}
    return "evaluate" if evaluation_of(study) is not None and number in evaluated else "train"


def last_sum(study: StudySpec) -> int:
    """The number of the study's last secret sum."""
    if is_statistics(study):
        return len(study.releases)
    release = evaluation_of(study)
    return study.rounds + (0 if release is None else release.times)


def is_distributed(study: StudySpec) -> bool:
    """Whether the sites' shares of noise add up to the declared noise."""
    return getattr(study.dp, "placement", "local") == "distributed"


def noise_share(study: StudySpec) -> float:
    """What each site multiplies a declared noise by: 1, or 1 / sqrt(n - d - c) (rules 1)."""
    return study.thresholds.site_noise_factor if is_distributed(study) else 1.0


def sum_plan(study: StudySpec, kind: Kind, round_number: int, *, shapes: Shapes) -> SumPlan:
    """The plan of the sum that an instruction of this kind and round asks for.

    `shapes` are those of the study's tensors; only training looks at them.

    Raises:
        ConfigError: the study has no such sum.
        SecAggRefused: its numbers do not fit the ring.
    """
    most = max(site.patients for site in study.sites)
    match kind:
        case "train" if isinstance(study.dp, DpSgd):
            size = sum(math.prod(shape) for _, shape in summed(study, shapes))
            if not is_distributed(study):
                return SumPlan(size=size, grid=_update_grid(study), noise_std=0.0)
            dp = study.dp
            noise = dp.noise_multiplier * dp.clip_norm * noise_share(study)
            reach = dp.sampling_probability * most
            return _plan(study, size, norm=dp.clip_norm, noise=noise, reach=reach)
        case "evaluate":
            release = evaluation_of(study)
            if release is not None:
                noise = release.noise_std * noise_share(study)
                size, norm = release.rows * release.bins, release.sensitivity
                return _plan(study, size, norm=norm, noise=noise, reach=float(most))
        case "statistics":
            asked = statistics_releases(study)[round_number - 1]
            noise = noise_spread(asked, study.data) * noise_share(study)
            size = len(cells(asked, study.data))
            return _plan(study, size, norm=1.0, noise=noise, reach=float(most))
    raise ConfigError(f"study {study.id}: expected it to add something for {kind}, found nothing")


def summed(study: StudySpec, shapes: Shapes) -> list[tuple[str, tuple[int, ...]]]:
    """The tensors that training adds up, names sorted: neither frozen nor kept at the sites."""
    released = released_shapes(study, shapes)
    return [(name, released[name]) for name in sorted(released) if not study.is_frozen(name)]


def flat(study: StudySpec, tensors: Mapping[str, npt.NDArray[np.floating]]) -> Float64Array:
    """The summed tensors of a study as one vector, in the order of `summed`."""
    names = summed(study, {name: tensor.shape for name, tensor in tensors.items()})
    parts = [np.asarray(tensors[name], dtype=np.float64).reshape(-1) for name, _ in names]
    return np.concatenate([np.zeros(0), *parts])


def unflat(study: StudySpec, vector: Float64Array, *, shapes: Shapes) -> dict[str, Float64Array]:
    """The tensors in a vector of `flat`."""
    names = summed(study, shapes)
    ends = np.cumsum([math.prod(shape) for _, shape in names])
    if vector.shape != (int(ends[-1]) if len(ends) else 0,):
        raise ProtocolError("sum: expected one number for each parameter, found another length")
    parts = np.split(vector, ends[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(names, parts, strict=True)}


def survivor_patients(study: StudySpec, survivors: Iterable[str]) -> int:
    """The public number of patients of the sites in a sum."""
    chosen = set(survivors)
    return sum(site.patients for site in study.sites if site.id in chosen)


def _plan(study: StudySpec, size: int, *, norm: float, noise: float, reach: float) -> SumPlan:
    """The finest grid whose ring holds every site's planned patients and the noise (rules 8)."""
    how, wanted = study.secagg or SecureAggregation(), ROOM_FACTOR * reach + ROOM_EXTRA
    for fraction_bits in _fractions(how.ring_bits):
        try:
            grid = FixedPoint.fitting(
                clip_norm=norm,
                sites=len(study.sites),
                noise_std=noise,
                bits=how.ring_bits,
                fraction_bits=fraction_bits,
            )
        except SecAggRefused:
            continue
        if grid.saturation >= wanted * 2.0**fraction_bits and noise * grid.scale >= LEAST_NOISE:
            return SumPlan(size=size, grid=grid, noise_std=noise)
    raise SecAggRefused(
        Reason.CAPACITY,
        f"expected sums of {len(study.sites)} sites and their noise to fit {how.ring_bits} bits, "
        "found none that does; set ring_bits = 64 under [secagg]",
    )


def _fractions(bits: int) -> Sequence[int]:
    return range(FINEST[bits], COARSEST - 1, -1)


def _update_grid(study: StudySpec) -> FixedPoint:
    """The grid of weighted updates that are noised already: in 32 bits it saturates at 2048 / n."""
    how = study.secagg or SecureAggregation()
    room = (2 ** (how.ring_bits - 1) - 1) // len(study.sites) - 1
    return FixedPoint(
        scale=2.0 ** FINEST[how.ring_bits], saturation=min(room, 2**62), bits=how.ring_bits
    )
