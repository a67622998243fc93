"""Studies with secret sums, over real guards and workers: the model is the central mechanism's."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fedward_common.privacy.randomness import RandomSource
from tests.support.secure_federation import Federation, federation

Vector = npt.NDArray[np.float64]


class Seeded:
    """A `RandomSource` that a test can repeat."""

    def __init__(self, *seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def uniform(self, count: int) -> Vector:
        return self._generator.random(count)

    def normal(self, count: int) -> Vector:
        return self._generator.standard_normal(count)


def seeded(kind: int) -> Callable[[int], Callable[[], RandomSource]]:
    """For each site a factory whose n-th source is seeded by (kind, site, n)."""

    def of_site(number: int) -> Callable[[], RandomSource]:
        calls = iter(range(10**6))
        return lambda: Seeded(kind, number, next(calls))

    return of_site


@pytest.fixture
def opened() -> Iterator[list[Federation]]:
    found: list[Federation] = []
    yield found
    for one in found:
        one.close()


def pooled_dp_sgd(one: Federation, *, without: Callable[[int], set[str]] = lambda _: set()) -> Any:
    """Plain numpy DP-SGD over all hospitals' patients, with the sites' own draws and noise."""
    study, dp, weights = one.study, one.study.dp, np.zeros(3)
    draws = {s: seeded(1)(n) for n, s in enumerate(one.hospitals)}
    noise = {s: seeded(2)(n) for n, s in enumerate(one.hospitals)}
    share = dp.noise_multiplier * dp.clip_norm / np.sqrt(study.thresholds.noisy_sites)
    for number in range(1, study.rounds + 1):
        total, patients = np.zeros(3), 0
        for site, hospital in one.hospitals.items():
            sampling, _ = draws[site](), draws[site]()
            drawn = sampling.uniform(60) < dp.sampling_probability
            features = np.c_[hospital.patients.features, np.ones(60)][drawn]
            error = 1 / (1 + np.exp(-features @ weights)) - hospital.patients.labels[drawn]
            gradients = error[:, None] * features
            norms = np.linalg.norm(gradients, axis=1, keepdims=True)
            clipped = gradients * np.minimum(1, dp.clip_norm / np.maximum(norms, 1e-300))
            # The wire's order is by name: linear.bias before linear.weight.
            drawn_noise = noise[site]().normal(3)[[1, 2, 0]]
            if site in without(number):
                continue
            total += clipped.sum(axis=0) + share * drawn_noise
            patients += study.site(site).patients
        gradient = total / (dp.sampling_probability * patients)
        weights = weights - study.training.learning_rate * gradient
    return weights


def learned(model: Any) -> Vector:
    return np.append(model["linear.weight"][0], model["linear.bias"]).astype(np.float64)


def deterministic(folder: Path, opened: list[Federation], **study: Any) -> Federation:
    one = federation(folder, draws=seeded(1), noise=seeded(2), **study)
    opened.append(one)
    return one


def test_masks_on_equals_plain_numpy_pooled_dp_sgd_with_the_same_draws(
    tmp_path: Path, opened: list[Federation]
) -> None:
    """To fixed-point accuracy: 60 patients, 3 sites and float32 weights are within 1e-5."""
    one = deterministic(tmp_path, opened)

    result = one.run().run()

    assert result.committed_rounds == 3
    np.testing.assert_allclose(learned(result.model), pooled_dp_sgd(one), atol=1e-5)
