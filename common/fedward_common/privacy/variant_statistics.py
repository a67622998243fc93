"""What one patient adds to a release about genotypes, and the sums over a site's patients."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from fedward_common.errors import ConfigError
from fedward_common.genotypes.encoding import Person
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.registry import DataSpec
from fedward_common.study.variant_statistics import (
    AlleleFrequencies,
    GenotypeCovariance,
    VariantRelease,
    VariantScores,
    genotypes_of,
    variant_sums,
)

Vector = npt.NDArray[np.float64]


def exact_variant_sums(
    release: VariantRelease,
    data: DataSpec,
    people: Iterable[Person],
    *,
    scale: float | None = None,
) -> Vector:
    """The sums over all people, in the order of the release. Private.

    With `scale` every share is first rounded towards zero to a multiple of 1 / scale.

    Guarantees:
        A patient (of a study with families: a family, the mean of its members) adds one vector that
        depends on nobody else, with entries of at most 1 in size and a squared length of at most
        `release.weight(data)`.

    Raises:
        ConfigError: the release does not fit the data's schema.
    """
    schema = genotypes_of(data)
    sums = np.zeros(variant_sums(release, schema), dtype=np.float64)
    units: dict[str, list[Person]] = {}
    for person in people:
        units.setdefault(person.unit, []).append(person)
    for members in units.values():
        own = [share(release, schema, person) for person in members]
        mean = np.clip(own[0] if len(own) == 1 else np.mean(own, axis=0), -1.0, 1.0)
        sums += mean if scale is None else np.trunc(mean * scale) / scale
    return sums


def share(release: VariantRelease, schema: Genotypes, person: Person) -> Vector:
    """What one person by itself would add."""
    copies = person.copies.astype(np.float64)
    frequency = np.array([locus.frequency for locus in schema.loci])
    filled = np.where(np.isnan(copies), 2.0 * frequency, copies)
    match release:
        case AlleleFrequencies():
            return np.concatenate([~np.isnan(copies), np.nan_to_num(copies) / 2.0])
        case VariantScores():
            return _scores(release, filled - 1.0, np.array([1.0, *person.beside]), person.label)
        case GenotypeCovariance():
            return _covariance(release, filled, frequency)
    raise ConfigError(f"releases.kind: expected one about genotypes, found {release.kind!r}")


def _scores(release: VariantScores, x: Vector, z: Vector, y: float) -> Vector:
    if release.model == "linear":
        both = np.append(z, y)
        return np.concatenate([triangle(both), _each([*(x * one for one in both), x * x])])
    logit = float(np.dot(release.null, z))
    chance = 1.0 / (1.0 + math.exp(-max(-500.0, min(500.0, logit))))
    left, heavy = y - chance, 4.0 * chance * (1.0 - chance)
    own = [x * left, *(heavy * x * one for one in z), heavy * x * x]
    return np.concatenate([left * z, heavy * triangle(z), _each(own)])


def _covariance(release: GenotypeCovariance, copies: Vector, frequency: Vector) -> Vector:
    spread = np.sqrt(2.0 * frequency * (1.0 - frequency))
    u = (copies - 2.0 * frequency) / spread / release.norm
    length = float(np.sqrt(u @ u))
    if length > 1.0:
        u = u / (length * (1.0 + 1e-12))
    return np.concatenate([[1.0], u, triangle(u)])


def triangle(vector: Vector) -> Vector:
    """The upper triangle of vector vector', row by row."""
    rows, columns = np.triu_indices(len(vector))
    return np.asarray(vector[rows] * vector[columns], dtype=np.float64)


def square(numbers: Vector) -> Vector:
    """The symmetric matrix whose upper triangle, row by row, is `numbers`."""
    size = int((math.isqrt(8 * len(numbers) + 1) - 1) // 2)
    found = np.zeros((size, size))
    found[np.triu_indices(size)] = numbers
    return np.asarray(found + np.triu(found, 1).T, dtype=np.float64)


def _each(columns: Sequence[Vector]) -> Vector:
    """Locus by locus."""
    return np.stack(columns, axis=1).reshape(-1)
