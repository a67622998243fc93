"""What a worker hands its guard in a study with secure sums: one whole number for each of the sum.

Nothing here leaves the site as it is: the guard saturates, adds the site's noise and the masks.
"""

import numpy as np
import numpy.typing as npt

from fedward_client.held_out import HeldOut
from fedward_client.training.trainer import ExecutedPlan, LocalTrainer
from fedward_common.arrays import Tensors
from fedward_common.ids import SiteId
from fedward_common.privacy.statistics import StatisticsRow, exact_sums
from fedward_common.secagg.sums import SumPlan, flat, is_distributed
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.spec import StudySpec
from fedward_common.study.statistics import StatisticsRelease

LARGEST = 2.0**62


def training_numbers(
    study: StudySpec,
    site: SiteId,
    trainer: LocalTrainer,
    *,
    weights: Tensors,
    records: PatientRecords,
    plan: SumPlan,
    round_number: int,
    correction: Tensors,
) -> tuple[bytes, ExecutedPlan, Tensors]:
    """The site's clipped patient sum (distributed noise), or its noised, weighted update (local).

    With it goes the update itself, noised, which only a site that keeps something has a use for.

    The update is (model after - model before) times the site's public weight; what did not run as
    planned is for the caller to find in the executed plan.
    """
    if is_distributed(study):
        found = trainer.integer_sum(weights, records, grid=plan.grid)
        return _bytes(found.vector), found.executed, {}
    update = trainer.train(weights, records, round_number=round_number, correction=correction)
    moved = flat(study, update.tensors) - flat(study, weights)
    scaled = np.rint(moved * study.weight(site) * plan.grid.scale)
    numbers = _bytes(np.clip(scaled, -LARGEST, LARGEST).astype(np.int64))
    return numbers, update.executed, update.tensors


def evaluation_numbers(held_out: HeldOut, *, plan: SumPlan) -> bytes:
    """How many held-out patients are counted where, in units of the sum's grid."""
    return _bytes(held_out.units(scale=plan.grid.scale).reshape(-1))


def statistics_numbers(
    study: StudySpec, release: StatisticsRelease, rows: list[StatisticsRow], *, plan: SumPlan
) -> bytes:
    """The sums of a release over the site's patients, in units of the sum's grid."""
    exact = exact_sums(release, study.data, rows, scale=plan.grid.scale)
    return _bytes(np.rint(exact * plan.grid.scale).astype(np.int64))


def _bytes(values: npt.NDArray[np.int64]) -> bytes:
    return values.astype("<i8").tobytes()
