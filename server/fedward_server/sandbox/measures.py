"""Figures of scores and overlaps under many weightings at once: the plain one, and bootstrap draws.

The first row of every weighting counts each patient once; the others draw patients with
replacement, as many as there are (Efron 1979), so that an interval holds the chance of which
patients were held out. Patients are drawn, never records.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fedward_server.evaluation import INTERVAL

Numbers = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

DRAWS: Final = 400
SEED: Final = 20261126
THRESHOLD: Final = 0.5
CALIBRATION_BINS: Final = 10
SMALLEST_CLASS: Final = 10
_DUST: Final = 1e-300


def bootstrap_weights(patient: npt.NDArray[np.integer], *, draws: int = DRAWS) -> Numbers:
    """Weights [1 + draws, records]: a patient's weight is shared by the records.

    Deterministic in the arguments.
    """
    _, position, size = np.unique(patient, return_inverse=True, return_counts=True)
    generator = np.random.default_rng(SEED)
    people = len(size)
    drawn = generator.multinomial(people, np.full(people, 1.0 / people), size=draws)
    weights: Numbers = (np.concatenate([np.ones((1, people)), drawn]) / size)[:, position]
    return weights


def class_measures(scores: Numbers, positive: Flags, weights: Numbers) -> dict[str, Numbers]:
    """Figures [rows] of one class by its scores [records] in [0, 1]; empty below 10 patients.

    `auc`; `sensitivity`, `specificity` and `f1` where a score above 0.5 says yes;
    `calibration_error`: the mean gap between score and frequency in ten bins (Guo et al. 2017).
    """
    with_it, without = weights * positive, weights * ~positive
    if min(with_it[0].sum(), without[0].sum()) < SMALLEST_CLASS - 1e-9:
        return {}
    yes = scores > THRESHOLD
    hit, miss = with_it[:, yes].sum(1), with_it[:, ~yes].sum(1)
    alarm, right = without[:, yes].sum(1), without[:, ~yes].sum(1)
    return {
        "auc": _auc(scores, with_it, without),
        "sensitivity": hit / np.maximum(hit + miss, _DUST),
        "specificity": right / np.maximum(right + alarm, _DUST),
        "f1": 2.0 * hit / np.maximum(2.0 * hit + alarm + miss, _DUST),
        "calibration_error": _calibration_error(scores, with_it, weights),
    }


def mean_measure(values: Numbers, weights: Numbers) -> Numbers:
    """The weighted mean [rows] of one value a record; infinite values leave it infinite."""
    if not np.isfinite(values).all():
        return np.full(len(weights), np.inf)
    mean: Numbers = (weights @ values) / weights.sum(1)
    return mean


def intervals(measures: Mapping[str, Numbers]) -> dict[str, tuple[float, float]]:
    """The middle 95 % of the bootstrap draws of each figure; none where one is not finite."""
    found = {}
    for name, rows in measures.items():
        if np.isfinite(rows).all() and len(rows) > 1:
            low, high = np.quantile(rows[1:], INTERVAL)
            found[name] = (float(low), float(high))
    return found


def _auc(scores: Numbers, with_it: Numbers, without: Numbers) -> Numbers:
    """The chance that a positive outranks a negative, ties as half (Bamber 1975)."""
    order = np.argsort(scores, kind="stable")
    _, starts = np.unique(scores[order], return_index=True)
    up, down = (np.add.reduceat(part[:, order], starts, axis=1) for part in (with_it, without))
    below = np.cumsum(down, axis=1) - down
    pairs = np.maximum(up.sum(1) * down.sum(1), _DUST)
    area: Numbers = (up * (below + 0.5 * down)).sum(1) / pairs
    return area


def _calibration_error(scores: Numbers, with_it: Numbers, weights: Numbers) -> Numbers:
    places = np.minimum((scores * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.zeros(len(weights))
    for place in range(CALIBRATION_BINS):
        there = places == place
        gaps += np.abs(with_it[:, there].sum(1) - weights[:, there] @ scores[there])
    gap: Numbers = gaps / weights.sum(1)
    return gap


def rounds_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """How the rounds of a run went, and its validations where it had any."""
    found = {"committed": facts["committed_rounds"], "abandoned": facts["abandoned_rounds"]}
    if facts.get("validations"):
        found |= {name: facts[name] for name in ("stopped_after", "validations")}
    return found
