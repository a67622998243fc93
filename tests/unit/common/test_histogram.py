"""The evaluation mechanism: exact bins, sensitivity 1, noise of the declared size."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from fedward_common.errors import ConfigError, DataError
from fedward_common.privacy.histogram import (
    GRID,
    NOWHERE,
    Counts,
    binned_counts,
    noisy_counts,
    tallied,
    tallied_units,
)
from fedward_common.privacy.randomness import Csprng

Numbers = npt.NDArray[np.float64]


@dataclass
class Counted:
    """A noise source that gives 1, 2, 3, ... and remembers how much was asked."""

    asked: list[int] = field(default_factory=list)

    def uniform(self, count: int) -> Numbers:
        raise AssertionError

    def normal(self, count: int) -> Numbers:
        self.asked.append(count)
        return np.arange(1, count + 1, dtype=np.float64)


def counts(scores: list[float], labels: list[int], patient: list[int], *, bins: int = 4) -> Counts:
    return binned_counts(
        np.array(scores), np.array(labels, dtype=np.float32), np.array(patient), bins=bins
    )


def test_each_patient_counts_once_in_its_bin() -> None:
    found = counts([0.0, 0.24, 0.25, 0.99, 1.0], [0, 0, 1, 1, 1], [0, 1, 2, 3, 4])

    assert found.tolist() == [[2, 0, 0, 0], [0, 1, 0, 2]]


def test_a_patient_with_several_records_counts_once_in_all() -> None:
    found = counts([0.1, 0.1, 0.9, 0.9], [1, 1, 1, 0], [0, 0, 0, 1])

    assert found.sum() == 2.0
    np.testing.assert_allclose(found[1], [2 / 3, 0, 0, 1 / 3])


def test_removing_a_patient_moves_the_counts_by_at_most_one() -> None:
    generator = np.random.default_rng(1)
    for _ in range(50):
        patient = np.sort(generator.integers(0, 10, size=40))
        scores, labels = generator.random(40), generator.integers(0, 2, size=40).astype(float)
        gone = patient != patient[0]

        whole = binned_counts(scores, labels, patient, bins=5)
        less = binned_counts(scores[gone], labels[gone], patient[gone], bins=5)

        assert np.linalg.norm(whole - less) <= 1.0 + 1e-12
        assert (whole - less >= -1e-12).all()


def test_a_patient_with_a_non_finite_score_contributes_nothing() -> None:
    found = counts([0.1, np.nan, 0.9, np.inf], [0, 0, 1, 1], [0, 0, 1, 2])

    assert found.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1]]


def test_no_record_gives_zeros() -> None:
    assert counts([], [], []).tolist() == [[0.0] * 4] * 2


@pytest.mark.parametrize(
    ("scores", "labels", "patient"),
    [([0.5], [2], [0]), ([1.5], [1], [0]), ([-0.1], [1], [0]), ([0.5, 0.5], [1], [0])],
)
def test_what_is_not_a_score_and_a_label_is_refused(
    scores: list[float], labels: list[int], patient: list[int]
) -> None:
    with pytest.raises(DataError):
        counts(scores, labels, patient)


def test_fewer_than_two_bins_are_refused() -> None:
    with pytest.raises(ConfigError):
        counts([0.5], [1], [0], bins=1)


def test_every_entry_gets_its_own_noise() -> None:
    noise = Counted()

    noised = noisy_counts(np.zeros((2, 3)), noise_multiplier=2.0, noise=noise)

    assert noise.asked == [6]
    assert noised.tolist() == [[2, 4, 6], [8, 10, 12]]


def test_the_noise_has_the_declared_deviation() -> None:
    noised = noisy_counts(np.full((2, 20_000), 7.0), noise_multiplier=3.0, noise=Csprng())

    standardised = (noised.ravel() - 7.0) / 3.0
    assert stats.kstest(standardised, "norm").pvalue > 1e-6


def test_noised_counts_stand_on_a_coarse_grid() -> None:
    noised = noisy_counts(np.full((2, 10), 1 / 3), noise_multiplier=3.0, noise=Csprng())

    np.testing.assert_array_equal(noised * GRID, np.round(noised * GRID))


@pytest.mark.parametrize("multiplier", [0.0, -1.0, np.nan, np.inf])
def test_without_noise_nothing_is_released(multiplier: float) -> None:
    with pytest.raises(ConfigError):
        noisy_counts(np.zeros((2, 2)), noise_multiplier=multiplier, noise=Csprng())


def test_marks_of_one_patient_move_the_counts_by_at_most_the_root_of_their_number() -> None:
    generator = np.random.default_rng(5)
    patient = np.repeat(np.arange(6), [1, 3, 2, 1, 4, 2])
    places = np.stack([generator.integers(4 * m, 4 * m + 4, len(patient)) for m in range(3)], 1)
    everyone = tallied(places, patient, rows=3, bins=4)

    for one in range(6):
        rest = patient != one
        _, renamed = np.unique(patient[rest], return_inverse=True)
        moved = everyone - tallied(places[rest], renamed, rows=3, bins=4)

        assert np.isclose(moved.sum(), 3)
        assert np.linalg.norm(moved) <= np.sqrt(3) + 1e-12


def test_a_mark_that_is_nowhere_counts_nothing_and_units_are_rounded_down() -> None:
    places = np.array([[0], [NOWHERE], [3]])

    units = tallied_units(places, np.array([0, 0, 1]), rows=2, bins=2, scale=7.0)

    assert units.tolist() == [[3, 0], [0, 7]]
    assert tallied(np.zeros((0, 2), np.int64), np.zeros(0, int), rows=2, bins=2).sum() == 0
    with pytest.raises(DataError, match="places"):
        tallied(np.array([[4]]), np.array([0]), rows=2, bins=2)
