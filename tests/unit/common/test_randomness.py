"""The CSPRNG: what it draws has the right distribution, and the tests would see a wrong one.

Thresholds leave one false alarm in about a million runs; each check is also shown to reject
numbers with a fault, because a test that accepts anything proves nothing. The faults are sized so
that each is seen by at least ten standard deviations: a weaker one would sometimes pass.
"""

import copy
import inspect
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from fedward_common.privacy.randomness import Csprng, Float64Array

COUNT = 400_000
Spoil = Callable[[Float64Array], Float64Array]


@pytest.fixture(scope="module")
def normals() -> Float64Array:
    return Csprng().normal(COUNT)


@pytest.fixture(scope="module")
def uniforms() -> Float64Array:
    return Csprng().uniform(COUNT)


def looks_standard_normal(sample: Float64Array) -> bool:
    """Mean, variance, shape (Kolmogorov-Smirnov), fourth moment and serial correlation."""
    count = len(sample)
    scores = [
        sample.mean() * math.sqrt(count),
        (sample.var() - 1) / math.sqrt(2 / count),
        ((sample**4).mean() - 3) / math.sqrt(96 / count),
        (sample[1:] * sample[:-1]).mean() * math.sqrt(count),
        (sample[: count // 2] * sample[count - count // 2 :]).mean() * math.sqrt(count // 2),
    ]
    return max(map(abs, scores)) < 5 and stats.kstest(sample, "norm").pvalue > 1e-6


def looks_uniform(sample: Float64Array) -> bool:
    """The top 8 and the lowest 8 of the 53 bits, each by chi-square over 256 values."""
    bits = (sample * 2.0**53).astype(np.uint64)
    return all(
        stats.chisquare(np.bincount(part, minlength=256)).pvalue > 1e-6
        for part in (bits >> np.uint64(45), bits & np.uint64(255))
    )


def test_normals_look_standard_normal(normals: Float64Array) -> None:
    assert looks_standard_normal(normals)


@pytest.mark.parametrize(
    ("fault", "spoil"),
    [
        ("2 % too little noise", lambda x: 0.98 * x),
        ("2 % too much noise", lambda x: 1.02 * x),
        ("a shifted mean", lambda x: x + 0.02),
        ("uniform of the same variance", lambda x: stats.norm.cdf(x) * math.sqrt(12) - 3**0.5),
        ("every number twice", lambda x: np.repeat(x[: COUNT // 2], 2)),
        ("the same half again", lambda x: np.tile(x[: COUNT // 2], 2)),
        ("tails cut at 2.5", lambda x: np.clip(x, -2.5, 2.5)),
        ("absolute values", np.abs),
    ],
)
def test_faulty_normals_are_told_apart(fault: str, spoil: Spoil, normals: Float64Array) -> None:
    assert not looks_standard_normal(spoil(normals)), fault


def test_uniforms_look_uniform_down_to_the_last_bit(uniforms: Float64Array) -> None:
    assert looks_uniform(uniforms)
    assert uniforms.min() >= 0
    assert uniforms.max() < 1


@pytest.mark.parametrize(
    ("fault", "spoil"),
    [
        ("only 32 bits", lambda u: np.floor(u * 2**32) / 2**32),
        ("slightly bent", lambda u: u**1.05),
        ("half the range", lambda u: u / 2),
    ],
)
def test_faulty_uniforms_are_told_apart(fault: str, spoil: Spoil, uniforms: Float64Array) -> None:
    assert not looks_uniform(spoil(uniforms)), fault


@pytest.mark.parametrize("count", [0, 1, 2, 3, 65_535, 65_536, 65_537])
def test_any_count_is_drawn_exactly(count: int) -> None:
    source = Csprng()

    assert source.uniform(count).shape == (count,)
    assert source.normal(count).shape == (count,)
    assert np.isfinite(source.normal(count)).all()
    assert source.normal(count).dtype == source.uniform(count).dtype == np.float64


def test_a_negative_count_is_an_error() -> None:
    with pytest.raises(ValueError, match="found -1"):
        Csprng().uniform(-1)
    with pytest.raises(ValueError, match="found -1"):
        Csprng().normal(-1)


def test_there_is_nothing_to_seed_and_no_state_to_copy() -> None:
    source = Csprng()
    with pytest.raises(TypeError):
        Csprng(0)
    with pytest.raises(AttributeError):
        source.seed = 0
    copies = [source, copy.deepcopy(source), pickle.loads(pickle.dumps(source))]

    draws = np.stack([one.normal(100) for one in copies])

    assert list(inspect.signature(Csprng).parameters) == []
    assert len(np.unique(draws)) == draws.size


def test_sampling_and_noise_draw_independently() -> None:
    sampling, noise = Csprng(), Csprng()

    correlation = (sampling.normal(100_000) * noise.normal(100_000)).mean()

    assert abs(correlation) * math.sqrt(100_000) < 5
