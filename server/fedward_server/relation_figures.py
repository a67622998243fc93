"""F1 over the relations of marked pairs, from counts of what was right and what a model said.

Class 0 is no relation: it counts only where it was said wrongly, or another wrongly for it.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from fedward_server.evaluation import INTERVAL, ONE_SIDED, SMALLEST_CLASS, Estimate

Numbers = npt.NDArray[np.float64]

DRAWS: Final = 2000
_DUST: Final = 1e-300


def relation_f1(counts: Numbers) -> dict[str, Numbers]:
    """`relation_f1_micro`, `relation_f1_macro` [...] of counts [..., true class, said class]."""
    right = np.diagonal(counts, axis1=-2, axis2=-1)[..., 1:]
    there, said = counts.sum(axis=-1)[..., 1:], counts.sum(axis=-2)[..., 1:]
    each = 2.0 * right / np.maximum(there + said, _DUST)
    micro = 2.0 * right.sum(axis=-1) / np.maximum((there + said).sum(axis=-1), _DUST)
    return {"relation_f1_micro": micro, "relation_f1_macro": each.mean(axis=-1)}


def relation_estimates(counts: Numbers, *, noise: float) -> dict[str, Estimate]:
    """The figures from noised counts [true class, said class] of patients.

    No micro F1 where there may be fewer than 10 with a relation, no macro F1 where of one of them.
    """
    enough = [
        rows.sum() - ONE_SIDED * noise * np.sqrt(rows.size) >= SMALLEST_CLASS
        for rows in (counts[1:], *counts[1:])
    ]
    # What other patients and other noise would have given: a normal around each count.
    spread = np.sqrt(np.maximum(counts, 0.0) + noise**2)
    others = np.random.default_rng(0).standard_normal((DRAWS, *counts.shape))
    draws = np.maximum(np.concatenate([counts[None], counts + spread * others]), 0.0)
    shown = {"relation_f1_micro": enough[0], "relation_f1_macro": all(enough)}
    found = {}
    for name, values in relation_f1(draws).items():
        if shown[name]:
            low, high = np.quantile(values[1:], INTERVAL)
            found[name] = Estimate(value=float(values[0]), low=float(low), high=float(high))
    return found
