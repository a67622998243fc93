"""The evaluation mechanism: per class, how many held-out patients score in each bin, plus noise.

The only way in which anything about held-out patients leaves a site (rules 7).
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from fedward_common.errors import ConfigError, DataError
from fedward_common.privacy.randomness import RandomSource

Counts = npt.NDArray[np.float64]
"""[rows, bins]; of a binary model first the negative class, then the positive one."""
Int64Array = npt.NDArray[np.int64]
NOWHERE: Final = -1
"""The place of a mark that is not made."""

GRID: Final = 1024.0
"""Noised counts are rounded to 1/1024: the low bits of a float64 sum would tell more than the
mechanism's analysis allows for (Mironov 2012)."""


def binned_counts(
    scores: npt.NDArray[np.floating],
    labels: npt.NDArray[np.floating],
    patient: npt.NDArray[np.integer],
    *,
    bins: int,
) -> Counts:
    """The exact counts [2, bins] over equal parts of [0, 1]; a score of 1 is in the last bin.

    `scores`, `labels` (0 or 1) and `patient` have one entry per record.

    Guarantees:
        A patient contributes a total weight of 1, an equal share with each record, so adding or
        removing one patient changes the counts by at most 1 in L2 (exactly 1 with one record).
        A patient with a non-finite score contributes exactly zero, as in training.
        No record at all gives zeros.

    These counts are private: only `noisy_counts` of them may leave.

    Raises:
        ConfigError: fewer than 2 bins.
        DataError: arrays of different lengths, a label other than 0 and 1, or a score outside
            [0, 1].
    """
    place, whole, share = _places(scores, labels, patient, bins=bins)
    counts = np.zeros((2, bins), dtype=np.float64)
    np.add.at(counts, place, np.where(whole, 1.0 / share, 0.0))
    return counts


def binned_units(
    scores: npt.NDArray[np.floating],
    labels: npt.NDArray[np.floating],
    patient: npt.NDArray[np.integer],
    *,
    bins: int,
    scale: float,
) -> npt.NDArray[np.int64]:
    """`binned_counts` in whole units of 1 / `scale`, each record's share rounded down.

    Guarantees: a patient contributes at most `scale` units in all, so at most that much in L2.
    """
    place, whole, share = _places(scores, labels, patient, bins=bins)
    counts = np.zeros((2, bins), dtype=np.int64)
    np.add.at(counts, place, np.where(whole, np.floor(scale / share), 0.0).astype(np.int64))
    return counts


def tallied(
    places: Int64Array, patient: npt.NDArray[np.integer], *, rows: int, bins: int
) -> Counts:
    """The exact counts [rows, bins] of the marks at `places` [records, marks].

    A place is row * bins + bin, or NOWHERE. Which rows a mark may be in is fixed by the release and
    no row takes two of them.

    Guarantees:
        A patient contributes a total weight of at most 1 to each mark, an equal share with each
        record, so adding or removing one changes the counts by at most sqrt(marks) in L2.

    These counts are private: only `noisy_counts` of them may leave.

    Raises:
        DataError: a place outside the counts, or not one row of places for each record.
    """
    counts = np.zeros(rows * bins, dtype=np.float64)
    marked, share = _marks(places, patient, cells=rows * bins)
    for mark in range(places.shape[1]):
        there = marked[:, mark]
        np.add.at(counts, places[there, mark], 1.0 / share[there])
    return counts.reshape(rows, bins)


def tallied_units(
    places: Int64Array, patient: npt.NDArray[np.integer], *, rows: int, bins: int, scale: float
) -> Int64Array:
    """`tallied` in whole units of 1 / `scale`, each record's share rounded down."""
    counts = np.zeros(rows * bins, dtype=np.int64)
    marked, share = _marks(places, patient, cells=rows * bins)
    units = np.floor(scale / share).astype(np.int64)
    for mark in range(places.shape[1]):
        there = marked[:, mark]
        np.add.at(counts, places[there, mark], units[there])
    return counts.reshape(rows, bins)


def _marks(
    places: Int64Array, patient: npt.NDArray[np.integer], *, cells: int
) -> tuple[npt.NDArray[np.bool_], Counts]:
    """Which marks are made, and how many records each record's patient has."""
    if places.ndim != 2 or places.shape[0] != len(patient):
        raise DataError("evaluation: expected one row of places for each record")
    if places.size and (places.min() < NOWHERE or places.max() >= cells):
        raise DataError("evaluation: expected places among the release's counts, found others")
    _, group, records = np.unique(patient, return_inverse=True, return_counts=True)
    return places != NOWHERE, records[group].astype(np.float64)


def _places(
    scores: npt.NDArray[np.floating],
    labels: npt.NDArray[np.floating],
    patient: npt.NDArray[np.integer],
    *,
    bins: int,
) -> tuple[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]], npt.NDArray[np.bool_], Counts]:
    """For each record: its cell, whether its patient's scores are all finite, and how many records
    its patient has.

    Raises:
        ConfigError, DataError: as `binned_counts`.
    """
    if bins < 2:
        raise ConfigError(f"releases.bins: expected at least 2, found {bins}")
    if not scores.shape == labels.shape == patient.shape or scores.ndim != 1:
        raise DataError("evaluation: expected one score, label and patient per record")
    if not len(scores):
        nothing = np.zeros(0, dtype=np.int64)
        return (nothing, nothing), np.zeros(0, dtype=bool), np.zeros(0)
    if not np.isin(labels, (0, 1)).all():
        raise DataError("evaluation: expected labels 0 or 1, found others")
    finite = np.isfinite(scores)
    if ((scores < 0) | (scores > 1))[finite].any():
        raise DataError("evaluation: expected scores between 0 and 1, found others")
    _, group, records = np.unique(patient, return_inverse=True, return_counts=True)
    whole = np.ones(len(records), dtype=bool)
    np.logical_and.at(whole, group, finite)
    place = np.minimum(np.where(finite, scores, 0.0) * bins, bins - 1).astype(np.int64)
    return (labels.astype(np.int64), place), whole[group], records[group].astype(np.float64)


def noisy_counts(counts: Counts, *, noise_multiplier: float, noise: RandomSource) -> Counts:
    """`counts` plus independent Gaussian noise of standard deviation `noise_multiplier`.

    The sensitivity of `binned_counts` is 1, so the multiplier is the standard deviation; for more
    marks than one the caller gives the multiplier times the sensitivity. Results
    may be negative and are not corrected: the coordinator knows the noise and accounts for it.

    Raises:
        ConfigError: `noise_multiplier` is not a positive finite number.
    """
    if not (np.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise ConfigError(
            f"releases.noise_multiplier: expected a number above 0, found {noise_multiplier}"
        )
    drawn = noise.normal(counts.size).reshape(counts.shape)
    noised: Counts = np.round((counts + noise_multiplier * drawn) * GRID) / GRID
    return noised
