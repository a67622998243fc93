"""Precision, recall and F1 of entities from the noised counts of an `entity-scores` release."""

from typing import Final

import numpy as np
import numpy.typing as npt

from fedward_server.evaluation import INTERVAL, ONE_SIDED, SMALLEST_CLASS, Estimate

DRAWS: Final = 2000


def entity_estimates(counts: npt.NDArray[np.float64], *, noise: float) -> dict[str, Estimate]:
    """The figures from counts [3, bins] of texts by entities right, wrong and missed.

    A text in the last bin counts with that number: those with more are understated. Empty where
    there may be fewer than 10 texts, or hardly an entity.
    """
    bins = counts.shape[1]
    if counts[0].sum() - ONE_SIDED * noise * np.sqrt(bins) < SMALLEST_CLASS:
        return {}
    numbers = np.arange(bins)
    # What other texts and other noise would have given: a normal around each count.
    spread = np.sqrt(np.maximum(counts, 0.0) + noise**2)
    others = np.random.default_rng(0).standard_normal((DRAWS, *counts.shape))
    draws = np.concatenate([counts[None], counts + spread * others])
    right, wrong, missed = np.maximum((draws * numbers).sum(axis=2), 0.0).T
    if right[0] + missed[0] < SMALLEST_CLASS:
        return {}
    figures = {
        "entity_f1": 2.0 * right / np.maximum(2.0 * right + wrong + missed, 1.0),
        "entity_precision": right / np.maximum(right + wrong, 1.0),
        "entity_recall": right / np.maximum(right + missed, 1.0),
    }
    found = {}
    for name, values in figures.items():
        low, high = np.quantile(values[1:], INTERVAL)
        found[name] = Estimate(value=float(values[0]), low=float(low), high=float(high))
    return found
