"""Who takes part in a step, with which records, and how the work is cut: no torch, no state."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fedward_client.training.patient_dp.plan import Int64Array
from fedward_common.privacy.randomness import RandomSource


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Draw:
    """The records of one step: `rows` grouped by patient, `sizes[i]` of them for the i-th."""

    rows: Int64Array
    sizes: Int64Array


def draw_patients(source: RandomSource, *, patients: int, probability: float) -> Int64Array:
    """The patients of one step, ascending: each one enters independently with `probability`.

    The draw may be empty or everybody. The chance is exact to 2**-53, the grid of the uniforms.
    """
    return np.flatnonzero(source.uniform(patients) < probability).astype(np.int64)


def draw_records(
    source: RandomSource, *, starts: Int64Array, chosen: Int64Array, limit: int
) -> Draw:
    """At most `limit` records of each chosen patient, every subset of that size equally likely.

    A record gets a random key; the `limit` smallest keys of a patient stay. Which records of one
    patient stay does not depend on any other patient.
    """
    counts = starts[chosen + 1] - starts[chosen]
    owner = np.repeat(np.arange(len(chosen)), counts)
    rank_in_file = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.repeat(starts[chosen], counts) + rank_in_file
    # Sorting by (owner, key) keeps each patient's block where it is and shuffles inside it, so
    # the position within the block is the rank of the key.
    shuffled = np.lexsort((source.uniform(len(rows)), owner))
    kept = np.sort(shuffled[rank_in_file < limit])
    return Draw(rows=rows[kept].astype(np.int64), sizes=np.minimum(counts, limit).astype(np.int64))


def chunks(draw: Draw, *, max_records: int) -> Iterator[Draw]:
    """`draw` in consecutive pieces of at most `max_records` records.

    A patient is never split: one with more records than that is a piece alone.
    """
    ends = np.cumsum(draw.sizes)
    first, first_row = 0, 0
    while first < len(draw.sizes):
        last = max(int(np.searchsorted(ends, first_row + max_records, side="right")), first + 1)
        last_row = int(ends[last - 1])
        yield Draw(rows=draw.rows[first_row:last_row], sizes=draw.sizes[first:last])
        first, first_row = last, last_row
