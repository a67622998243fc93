"""From noised counts to figures: near the truth, honest about noise, silent on small classes."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import expit, ndtr

from fedward_common.errors import ProtocolError
from fedward_common.ids import SiteId
from fedward_common.study.evaluation import BinnedScores
from fedward_server.evaluation import PrivateFigures, evaluate, figures

Numbers = npt.NDArray[np.float64]

BINS = 4
MEAN, SPREAD = 1.2, 1.0
AUC = float(ndtr(2 * MEAN / (SPREAD * math.sqrt(2))))
ACCURACY = float(ndtr(MEAN / SPREAD))
NORTH, EAST = SiteId("north"), SiteId("east")


def made_up(generator: np.random.Generator, patients: int) -> Numbers:
    """Counts of `patients` per class whose logits are normal around -MEAN and MEAN."""
    logits = generator.normal([[-MEAN], [MEAN]], SPREAD, size=(2, patients))
    return np.stack([np.histogram(expit(row), bins=BINS, range=(0, 1))[0] for row in logits]) * 1.0


@pytest.mark.parametrize("patients", [2_000, 20_000, 2_000_000])
def test_with_many_patients_the_figures_are_the_true_ones(patients: int) -> None:
    found = figures(made_up(np.random.default_rng(1), patients), noise=2.0)

    assert found.auc is not None
    assert found.accuracy is not None
    tolerance = 1.0 / math.sqrt(patients)
    assert found.auc.value == pytest.approx(AUC, abs=tolerance)
    assert found.accuracy.value == pytest.approx(ACCURACY, abs=tolerance)
    assert 0.0 < found.auc.high - found.auc.low < 2.0 * tolerance


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """95 % intervals over patients and noise together: at least 85 of 100 made-up evaluations."""
    generator = np.random.default_rng(2)
    covered = []
    for _ in range(100):
        counts = made_up(generator, 90)
        found = figures(counts + generator.normal(size=counts.shape) * 4.0, noise=4.0)
        assert found.auc is not None
        assert found.accuracy is not None
        covered.append(
            (
                found.auc.low <= AUC <= found.auc.high,
                found.accuracy.low <= ACCURACY <= found.accuracy.high,
            )
        )

    assert (np.mean(covered, axis=0) >= 0.85).all()


def test_estimates_are_closer_than_reading_counts_cut_at_zero() -> None:
    generator = np.random.default_rng(3)
    errors = []
    for _ in range(60):
        counts = made_up(generator, 60)
        noised = counts + generator.normal(size=counts.shape) * 6.0
        found = figures(noised, noise=6.0)
        if found.accuracy is None:
            continue
        cut = np.maximum(noised, 0.0)
        naive = (cut[0, : BINS // 2].sum() + cut[1, BINS // 2 :].sum()) / cut.sum()
        errors.append((found.accuracy.value - ACCURACY, naive - ACCURACY))

    ours, naive_error = np.sqrt(np.mean(np.square(errors), axis=0))
    assert ours < naive_error


def test_more_noise_gives_wider_intervals() -> None:
    counts = made_up(np.random.default_rng(4), 200)

    quiet, loud = figures(counts, noise=1.0), figures(counts, noise=10.0)

    assert quiet.auc is not None
    assert loud.auc is not None
    assert loud.auc.high - loud.auc.low > quiet.auc.high - quiet.auc.low


def test_equal_counts_give_equal_figures() -> None:
    counts = made_up(np.random.default_rng(5), 80)

    assert figures(counts, noise=3.0) == figures(counts.copy(), noise=3.0)


def test_no_auc_where_a_class_may_have_fewer_than_ten_patients() -> None:
    counts = made_up(np.random.default_rng(6), 60)
    counts[0] = [1.0, 0.0, 0.0, 0.0]

    found = figures(counts, noise=2.0)

    assert found.auc is None
    assert found.roc == ()
    assert found.accuracy is not None


def test_a_class_of_ten_under_noise_is_not_sure_to_be_large_enough() -> None:
    counts = made_up(np.random.default_rng(7), 60)
    counts[0] = [6.0, 3.0, 1.0, 0.0]

    assert figures(counts, noise=2.0).auc is None
    assert figures(counts * 4, noise=2.0).auc is not None


def test_nothing_is_reported_where_all_patients_together_may_be_few() -> None:
    assert figures(np.ones((2, BINS)), noise=3.0) == PrivateFigures(auc=None, accuracy=None)
    assert figures(np.full((2, BINS), -5.0), noise=3.0).accuracy is None


def test_figures_are_between_zero_and_one_and_inside_their_interval() -> None:
    generator = np.random.default_rng(8)
    for _ in range(50):
        found = figures(generator.normal(20, 15, size=(2, BINS)), noise=5.0)
        for estimate in (found.auc, found.accuracy):
            if estimate is not None:
                assert 0.0 <= estimate.low <= estimate.high <= 1.0
                assert estimate.low - 0.05 <= estimate.value <= estimate.high + 0.05


def test_the_curve_rises_from_corner_to_corner() -> None:
    found = figures(made_up(np.random.default_rng(9), 200), noise=2.0)

    points = np.array(found.roc)
    assert points[0].tolist() == [0.0, 0.0]
    assert points[-1].tolist() == [1.0, 1.0]
    assert (np.diff(points, axis=0) >= -1e-12).all()
    assert found.auc is not None
    assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(found.auc.value, abs=0.01)


def test_pooled_figures_carry_the_noise_of_every_site() -> None:
    release = BinnedScores(bins=BINS, noise_multiplier=3.0)
    generator = np.random.default_rng(10)
    counts = {site: made_up(generator, 60) for site in (NORTH, EAST)}

    found = evaluate(counts, release=release)

    assert found.pooled == figures(counts[NORTH] + counts[EAST], noise=3.0 * math.sqrt(2.0))
    assert found.per_site[NORTH] == figures(counts[NORTH], noise=3.0)


@pytest.mark.parametrize("counts", [np.zeros((2, 3)), np.zeros(8), np.full((2, BINS), np.nan)])
def test_counts_of_another_shape_or_not_finite_are_refused(counts: Numbers) -> None:
    release = BinnedScores(bins=BINS, noise_multiplier=3.0)

    with pytest.raises(ProtocolError, match="north"):
        evaluate({NORTH: counts}, release=release)
    with pytest.raises(ProtocolError, match="found none"):
        evaluate({}, release=release)


@pytest.mark.parametrize("bins", [2, 3, 20])
def test_every_allowed_number_of_bins_works(bins: int) -> None:
    assert figures(np.full((2, bins), 100.0 / bins), noise=1.0).auc is not None
