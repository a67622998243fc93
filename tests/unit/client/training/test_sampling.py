"""Poisson sampling over patients, and at most k records of each."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from fedward_client.training.patient_dp.sampling import chunks, draw_patients, draw_records
from fedward_common.privacy.randomness import Csprng
from tests.support.naive_dp import Scripted

PATIENTS, DRAWS = 200, 1000


@pytest.mark.parametrize("probability", [0.02, 0.3, 0.9])
def test_the_number_drawn_has_the_mean_and_variance_of_a_poisson_draw(probability: float) -> None:
    counts = np.array(
        [
            len(draw_patients(Csprng(), patients=PATIENTS, probability=probability))
            for _ in range(DRAWS)
        ]
    )

    variance = PATIENTS * probability * (1 - probability)
    assert abs(counts.mean() - PATIENTS * probability) < 5 * math.sqrt(variance / DRAWS)
    assert abs(counts.var() / variance - 1) < 5.5 * math.sqrt(2 / DRAWS)


def test_each_patient_enters_equally_often_and_independently_of_the_next() -> None:
    entered = np.zeros((DRAWS, PATIENTS))
    for draw in entered:
        draw[draw_patients(Csprng(), patients=PATIENTS, probability=0.3)] = 1

    standard_error = math.sqrt(0.3 * 0.7 / DRAWS)
    assert np.abs(entered.mean(axis=0) - 0.3).max() < 6 * standard_error
    together = (entered[:, 1:] * entered[:, :-1]).mean()
    assert abs(together - 0.09) < 6 * math.sqrt(0.09 / (DRAWS * PATIENTS))


def test_a_patient_enters_when_the_uniform_is_below_the_probability() -> None:
    chosen = draw_patients(Scripted([0.3, 0.29, 0.0, 0.99]), patients=4, probability=0.3)

    assert chosen.tolist() == [1, 2]


def test_everybody_enters_at_probability_1_and_an_empty_draw_is_possible() -> None:
    top = 1 - 2.0**-53

    assert draw_patients(Scripted([top] * 3), patients=3, probability=1.0).tolist() == [0, 1, 2]
    assert draw_patients(Scripted([top] * 3), patients=3, probability=0.99).tolist() == []


def test_every_subset_of_k_records_is_equally_likely() -> None:
    starts = np.array([0, 2, 6, 7])
    subsets = dict.fromkeys(itertools.combinations(range(2, 6), 2), 0)
    for _ in range(3000):
        draw = draw_records(Csprng(), starts=starts, chosen=np.array([0, 1, 2]), limit=2)
        subsets[tuple(draw.rows[2:4].tolist())] += 1

    assert stats.chisquare(list(subsets.values())).pvalue > 1e-6


def test_a_patient_with_k_records_or_fewer_takes_part_with_all() -> None:
    draw = draw_records(
        Scripted([0.9, 0.1, 0.5, 0.4, 0.6, 0.2]),
        starts=np.array([0, 2, 5, 9]),
        chosen=np.array([0, 2]),
        limit=3,
    )

    assert draw.rows.tolist() == [0, 1, 5, 6, 8]
    assert draw.sizes.tolist() == [2, 3]


def test_a_patient_with_more_records_than_a_chunk_is_a_chunk_alone() -> None:
    draw = draw_records(
        Scripted([0.0] * 10), starts=np.array([0, 1, 8, 10]), chosen=np.arange(3), limit=9
    )

    pieces = [piece.sizes.tolist() for piece in chunks(draw, max_records=2)]

    assert pieces == [[1], [7], [2]]
