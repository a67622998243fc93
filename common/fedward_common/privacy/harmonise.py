"""A site's own location and scale, from noised sums, and what they do to its records.

Everything after the noise is post-processing: constants that were drawn once are the site's for the
whole study, in training and in evaluation.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fedward_common.arrays import Array
from fedward_common.errors import ConfigError
from fedward_common.privacy.randomness import RandomSource
from fedward_common.privacy.statistics import SystemIntegers, exact_sums, noised
from fedward_common.study.encoding import PatientRecords, Row, hash_part
from fedward_common.study.harmonisation import LOCATION, SCALE, SiteHarmonisation
from fedward_common.study.tabular import HashSplit, NumberColumn, TabularData

Float64Array = npt.NDArray[np.float64]
Constants = Mapping[str, Array]


def site_constants(
    release: SiteHarmonisation,
    data: TabularData,
    rows: Iterable[Row],
    *,
    noise: RandomSource | None,
) -> dict[str, Array]:
    """The constants of a site with these rows: `LOCATION` and `SCALE`, float32 [columns], finite.

    Of training patients only. Without `noise` they are exact and private: for the sandbox's parent.
    Where the noised count or variance says nothing, the federation's own stand in.
    """
    mechanism = release.statistics
    training = [row for row in rows if _is_training(data, row)]
    sums = exact_sums(mechanism, data, training)
    values = np.asarray(
        sums
        if noise is None
        else noised(mechanism, data, sums, noise=noise, integers=SystemIntegers()),
        dtype=np.float64,
    ).reshape(len(release.columns), 3)
    location, scale = _of_federation(release, data)
    for number, (count, total, squares) in enumerate(values):
        if count < 2.0:
            continue
        mean = float(np.clip(total / count, -1.0, 1.0))
        spread = squares / count - mean * mean
        location[number] = mean
        if spread > 0:
            most = release.most
            scale[number] = np.clip(np.sqrt(spread), scale[number] / most, scale[number] * most)
    return {LOCATION: location.astype(np.float32), SCALE: scale.astype(np.float32)}


def harmonised(
    records: PatientRecords,
    release: SiteHarmonisation,
    data: TabularData,
    constants: Constants,
) -> PatientRecords:
    """`records` with their columns on the federation's location and scale, still in [-1, 1].

    Each record by itself: given the constants, no patient moves another's numbers.
    """
    location, scale = _of_federation(release, data)
    own_location, own_scale = constants[LOCATION], constants[SCALE]
    features = records.features.copy()
    for number, place in enumerate(_places(release, data)):
        ratio = np.float32(scale[number] / own_scale[number])
        moved = (features[:, place] - own_location[number]) * ratio + np.float32(location[number])
        features[:, place] = np.clip(moved, -1.0, 1.0)
    return replace(records, features=features)


def _of_federation(
    release: SiteHarmonisation, data: TabularData
) -> tuple[Float64Array, Float64Array]:
    """Location and scale of the federation, float64 [columns], in inputs."""
    known = {column.name: column for column in data.columns}
    location, scale = np.zeros(len(release.columns)), np.zeros(len(release.columns))
    for number, name in enumerate(release.columns):
        column = known[name]
        if not isinstance(column, NumberColumn):
            raise ConfigError(f"harmonisation: expected a number column, found {name!r}")
        span = column.high - column.low
        location[number] = 2.0 * (release.locations[number] - column.low) / span - 1.0
        scale[number] = 2.0 * release.scales[number] / span
    return location, scale


def _places(release: SiteHarmonisation, data: TabularData) -> list[int]:
    """The inputs of the columns, in the order of the release."""
    place, starts = 0, {}
    for column in data.columns:
        starts[column.name] = place
        place += 1 if isinstance(column, NumberColumn) else len(column.values) - 1
    return [starts[name] for name in release.columns]


def _is_training(data: TabularData, row: Row) -> bool:
    split = data.split
    if isinstance(split, HashSplit):
        patient = (row.get(data.patient_key) or "").strip()
        return bool(patient) and hash_part(split, patient) == "train"
    return (row.get(split.column) or "").strip() == "train"
