"""The grid of secure sums: saturation before noise, capacity, corners."""

import math

import numpy as np
import pytest

from fedward_common.privacy.randomness import Csprng
from fedward_common.secagg.fixedpoint import TAIL_ERRORS, FixedPoint
from fedward_common.secagg.refusals import SecAggRefused


def test_fifty_thousand_identical_patients_saturate_and_do_not_wrap_around() -> None:
    """Rules 8."""
    grid = FixedPoint.fitting(clip_norm=1.0, sites=3, noise_std=2.0)
    one = grid.quantise(np.array([1.0, -1.0, 0.25]))

    total = grid.saturate(50_000 * one)
    decoded = grid.from_ring(np.add.reduce([grid.to_ring(total)] * 3))

    assert total.tolist() == [grid.saturation, -grid.saturation, grid.saturation]
    np.testing.assert_allclose(decoded, np.array([3, -3, 3]) * grid.saturation / grid.scale)


def test_saturation_never_moves_two_neighbouring_sums_further_apart() -> None:
    grid = FixedPoint(scale=4.0, saturation=10)
    generator = np.random.default_rng(1)
    totals = generator.integers(-30, 30, size=(200, 5))
    patient = generator.integers(-3, 4, size=(200, 5))

    apart = np.linalg.norm(grid.saturate(totals + patient) - grid.saturate(totals), axis=1)

    assert (apart <= np.linalg.norm(patient, axis=1)).all()


@pytest.mark.parametrize(("sites", "bits"), [(3, 32), (16, 32), (100, 32), (100, 64)])
def test_the_ring_holds_every_saturated_sum_with_its_noise(sites: int, bits: int) -> None:
    std = 1.5
    grid = FixedPoint.fitting(clip_norm=0.7, sites=sites, noise_std=std, bits=bits)  # type: ignore[arg-type]
    reach = sites * grid.saturation + TAIL_ERRORS * math.sqrt(sites) * std * grid.scale

    grid.check(sites=sites, noise_std=std)

    assert reach < 2.0 ** (bits - 1)
    assert grid.saturation >= 2**20


def test_a_ring_that_is_too_small_is_refused_with_the_way_out() -> None:
    with pytest.raises(SecAggRefused, match="take 64 bits"):
        FixedPoint.fitting(clip_norm=1.0, sites=100, noise_std=40.0)
    with pytest.raises(SecAggRefused, match="expected sums below"):
        FixedPoint(scale=2.0**20, saturation=2**30).check(sites=3, noise_std=1.0)


def test_noise_on_the_grid_has_the_stated_scale() -> None:
    """False alarm below 1e-9; a scale 2 % off is 12 standard deviations away."""
    grid = FixedPoint(scale=2.0**20, saturation=2**30)
    count = 200_000

    noise = grid.noise(count, std=1.5, source=Csprng()) / grid.scale

    assert abs((noise.var() / 1.5**2 - 1) / math.sqrt(2 / count)) < 6.5
    assert noise.dtype == np.float64


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(SecAggRefused, match="finite"):
        FixedPoint(scale=1.0, saturation=1).quantise(np.array([np.nan]))
