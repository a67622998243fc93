"""The statistics mechanism: what one patient can move, that noise is there, what is withheld."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedward_common.privacy.accounting import epsilon_admission, epsilon_pld
from fedward_common.privacy.mechanism import decode_event, encode_event, release_event
from fedward_common.privacy.randomness import Csprng
from fedward_common.privacy.statistics import (
    SystemIntegers,
    discrete_laplace,
    exact_sums,
    noise_deviation,
    noised,
    withheld,
)
from fedward_common.study.statistics import COUNTS, ColumnStatistics, cells, weight
from tests.support.statistics import NoNoise, a_release, rows_of, statistics_study

STUDY = statistics_study()
ALL = ColumnStatistics.model_validate(a_release())
CELLS = st.text(alphabet="0123456789.-e?NA ", max_size=6) | st.sampled_from(
    ["1", "2", "3", "45", "1e300", "-1e300", "nan", "inf", "", "\u0661"]
)
PATIENT_ROWS = st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(others=st.lists(PATIENT_ROWS, max_size=4), one=PATIENT_ROWS)
def test_one_patient_moves_no_number_by_more_than_one_and_no_more_numbers_than_the_weight(
    others: list[list[tuple[str, str]]], one: list[tuple[str, str]]
) -> None:
    """The sensitivity that noise and accounting rest on, for any text in any cell."""
    rest = rows_of(*((f"p{n}", age, pain) for n, own in enumerate(others) for age, pain in own))
    own = rows_of(*(("x", age, pain) for age, pain in one))
    layout = cells(ALL, STUDY.data)

    moved = exact_sums(ALL, STUDY.data, rest + own) - exact_sums(ALL, STUDY.data, rest)

    assert np.abs(moved).max() <= 1 + 1e-9
    assert np.linalg.norm(moved) <= math.sqrt(weight(ALL, STUDY.data)) + 1e-9
    counts = moved[[cell.part in COUNTS for cell in layout]]
    assert set(np.unique(counts)) <= {0.0, 1.0}
    assert counts.sum() <= ALL.counts_weight


def test_a_patient_with_many_records_counts_once_with_the_mean_of_the_own_values() -> None:
    rows = rows_of(("a", "20", "1"), ("a", "100", "3"), ("a", "60", "3"), ("b", "?", ""))

    found = dict(
        zip(
            [(c.column, c.part, c.index) for c in cells(ALL, STUDY.data)],
            exact_sums(ALL, STUDY.data, rows),
            strict=True,
        )
    )

    assert found["age", "count", 0] == found["pain", "count", 0] == 1
    assert found["age", "missing", 0] == found["pain", "missing", 0] == 1
    assert found["age", "mean", 0] == pytest.approx(0.0)
    assert found["age", "histogram", 2] == 1
    assert found["pain", "histogram", 2] == 1


def test_a_value_beyond_the_public_limits_counts_as_the_limit() -> None:
    at_limit = exact_sums(ALL, STUDY.data, rows_of(("a", "100", "1"), ("b", "20", "1")))

    beyond = exact_sums(ALL, STUDY.data, rows_of(("a", "9999", "1"), ("b", "-3", "1")))

    assert (beyond == at_limit).all()


def test_a_row_without_a_patient_counts_for_nobody() -> None:
    assert not exact_sums(ALL, STUDY.data, rows_of(("", "50", "1"), (" ", "50", "1"))).any()


@pytest.mark.parametrize("multiplier", [0.5, 4.0])
def test_gaussian_noise_has_the_deviation_that_is_charged(multiplier: float) -> None:
    """20,000 draws: the sample deviation has an SD of 0.5 %, a tenth off is 20 of them."""
    release = ALL.model_copy(update={"noise_multiplier": multiplier})
    size = len(cells(release, STUDY.data))
    draws = [
        noised(release, STUDY.data, np.zeros(size), noise=Csprng(), integers=SystemIntegers())
        for _ in range(20_000 // size + 1)
    ]

    deviation = np.std(np.ravel(draws))

    expected = multiplier * math.sqrt(weight(release, STUDY.data))
    assert noise_deviation(release, STUDY.data) == expected
    assert deviation == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("parameter", [Fraction(1, 10), Fraction(2), Fraction(0.3)])
def test_discrete_laplace_noise_has_exactly_its_probabilities(parameter: Fraction) -> None:
    """Chi-squared over 20,000 draws; false alarm 1e-7. A scale that is 20 % off is found, too."""
    drawn = np.array(
        [discrete_laplace(parameter, integers=SystemIntegers()) for _ in range(20_000)]
    )

    assert _fits(drawn, float(parameter))
    assert not _fits(drawn, 1.2 * float(parameter))


def _fits(drawn: np.ndarray, parameter: float) -> bool:
    decay = math.exp(-parameter)
    reach = max(1, round(3 / parameter))
    inner = np.arange(-reach, reach + 1)
    shares = (1 - decay) / (1 + decay) * decay ** np.abs(inner)
    tail = (1 - shares.sum()) / 2
    observed = [
        (drawn < -reach).sum(),
        *((drawn == k).sum() for k in inner),
        (drawn > reach).sum(),
    ]
    expected = np.array([tail, *shares, tail]) * len(drawn)
    kept = expected > 5
    merged = [*np.array(observed)[kept], np.array(observed)[~kept].sum()]
    wanted = [*expected[kept], expected[~kept].sum()]
    if wanted[-1] == 0:
        merged, wanted = merged[:-1], wanted[:-1]
    return bool(stats.chisquare(merged, np.array(wanted) * sum(merged) / sum(wanted)).pvalue > 1e-7)


@pytest.mark.parametrize("columns", [["age"], ["age", "pain"]])
def test_the_cost_of_discrete_laplace_is_that_of_its_privacy_loss_written_out(
    columns: list[str],
) -> None:
    """An oracle without dp-accounting: the loss of w numbers is a times a binomial walk."""
    release = ColumnStatistics.model_validate(
        a_release(
            columns=columns,
            statistics=["count", "histogram"],
            mechanism="discrete-laplace",
            noise_multiplier=1.5,
        )
    )
    moved, delta = release.counts_weight, 1e-4
    a = 1 / (release.noise_multiplier * moved)
    up = 1 / (1 + math.exp(-a))

    def spent(epsilon: float) -> float:
        return sum(
            math.comb(moved, k)
            * up**k
            * (1 - up) ** (moved - k)
            * max(0.0, 1 - math.exp(epsilon - a * (2 * k - moved)))
            for k in range(moved + 1)
        )

    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > delta else (low, middle)
    event = release_event(release)

    assert epsilon_pld(event, delta=delta) == pytest.approx(high, abs=2e-3)
    assert epsilon_admission([event], delta=delta) >= high - 1e-6
    assert high <= 1 / release.noise_multiplier + 1e-9
    assert encode_event(decode_event(encode_event(event))) == encode_event(event)


def test_the_cost_of_gaussian_statistics_does_not_depend_on_how_much_is_asked() -> None:
    """More columns, more noise on each: the multiplier alone is the price."""
    few = ColumnStatistics.model_validate(a_release(columns=["age"], statistics=["count"]))

    assert encode_event(release_event(few)) == encode_event(release_event(ALL))
    assert noise_deviation(few, STUDY.data) < noise_deviation(ALL, STUDY.data)


def test_small_cells_are_withheld_by_their_noised_value_and_not_by_the_true_one() -> None:
    release = ColumnStatistics.model_validate(a_release(columns=["pain"], statistics=["histogram"]))
    true = np.array([9.0, 10.0, 30.0])

    shown = withheld(release, STUDY.data, (true + np.array([5.0, -5.0, 0.0])).tolist())

    assert shown == [14.0, None, 30.0]


def test_mean_and_variance_stay_where_their_count_does() -> None:
    release = ColumnStatistics.model_validate(
        a_release(columns=["age"], statistics=["count", "missing", "mean", "variance"])
    )

    assert withheld(release, STUDY.data, [9.9, 12.0, 3.0, 4.0]) == [None, 12.0, None, None]
    assert withheld(release, STUDY.data, [10.0, -2.0, -3.0, 4.0]) == [10.0, None, -3.0, 4.0]


def test_what_is_released_lies_on_a_grid() -> None:
    values = noised(
        ALL,
        STUDY.data,
        exact_sums(ALL, STUDY.data, rows_of(("a", "33.3", "1"))),
        noise=NoNoise(),
        integers=SystemIntegers(),
    )

    assert all(value * 1024 == int(value * 1024) for value in values)
