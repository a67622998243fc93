"""From sums about genotypes to allele frequencies, tests of loci and components: post-processing.

Source: as `study/variant_statistics`.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import stats  # type: ignore[import-untyped]

from fedward_common.privacy.variant_statistics import square
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.tabular import NumberLabel
from fedward_common.study.variant_statistics import (
    AlleleFrequencies,
    GenotypeCovariance,
    VariantRelease,
    VariantScores,
    covariates,
)

Vector = npt.NDArray[np.float64]
ENOUGH: Final = 1e-9
"""A variance that is a smaller part of its locus' own sum is none: nothing can be tested there."""


def variant_figures(
    release: VariantRelease, data: Genotypes, values: Sequence[float]
) -> dict[str, Any]:
    """What the sums of a release say, as a JSON value; None for what they do not say."""
    sums = np.asarray(values, dtype=np.float64)
    match release:
        case AlleleFrequencies():
            return {"loci": _frequencies(release, data, sums)}
        case VariantScores():
            linear = release.model == "linear"
            return {"loci": _linear(data, sums) if linear else _logistic(data, sums)}
        case GenotypeCovariance():
            return _components(release, data, sums)
    return {}


def _frequencies(release: AlleleFrequencies, data: Genotypes, sums: Vector) -> list[dict[str, Any]]:
    """The share of `alt`; None where either allele is rare."""
    found = []
    for locus, count, half in zip(data.loci, *np.split(sums, 2), strict=True):
        rarer = 2.0 * min(half, count - half)
        shown = count > 0 and rarer >= max(
            release.min_cell_size, 2.0 * count * release.min_frequency
        )
        frequency = float(half / count) if shown else None
        found.append({"id": locus.id, "alt": locus.alt, "frequency": frequency})
    return found


def _linear(data: Genotypes, sums: Vector) -> list[dict[str, Any]]:
    """Ordinary least squares of the label on each locus and z: beta and its error in the label's
    unit per copy of `alt`, the t statistic and its two-sided p value.
    """
    width = covariates(data)
    head = (width + 1) * (width + 2) // 2
    whole = square(sums[:head])
    each = sums[head:].reshape(len(data.loci), width + 2)
    inverse = np.linalg.pinv(whole[:width, :width], hermitian=True)
    by_y, people = whole[:width, width], whole[0, 0]
    left = whole[width, width] - by_y @ inverse @ by_y
    label = data.label
    unit = (label.high - label.low) / 2.0 if isinstance(label, NumberLabel) else 1.0
    found = []
    for locus, row in zip(data.loci, each, strict=True):
        by_z, x_y, x_x = row[:width], row[width], row[width + 1]
        slope = x_y - by_z @ inverse @ by_y
        spread = x_x - by_z @ inverse @ by_z
        freedom = people - width - 1
        rest = left - slope**2 / spread if spread > ENOUGH * max(x_x, 1.0) else -1.0
        if rest <= 0 or freedom <= 0:
            found.append(_nothing(locus.id, locus.alt))
            continue
        beta = slope / spread
        error = math.sqrt(rest / freedom / spread)
        found.append(
            {
                "id": locus.id,
                "alt": locus.alt,
                "beta": float(beta * unit),
                "standard_error": error * unit,
                "statistic": float(beta / error),
                "p": float(2.0 * stats.t.sf(abs(beta / error), freedom)),
            }
        )
    return found


def _logistic(data: Genotypes, sums: Vector) -> list[dict[str, Any]]:
    """The score test of each locus about the null model: z and its two-sided p value; beta is one
    step of Newton's method from 0.
    """
    width = covariates(data)
    head = width + width * (width + 1) // 2
    score, weighted = sums[:width], square(sums[width:head]) / 4.0
    each = sums[head:].reshape(len(data.loci), width + 2)
    inverse = np.linalg.pinv(weighted, hermitian=True)
    found = []
    for locus, row in zip(data.loci, each, strict=True):
        left, by_z, x_x = row[0], row[1 : width + 1] / 4.0, row[width + 1] / 4.0
        slope = left - by_z @ inverse @ score
        spread = x_x - by_z @ inverse @ by_z
        if spread <= ENOUGH * max(x_x, 1.0):
            found.append(_nothing(locus.id, locus.alt))
            continue
        statistic = slope / math.sqrt(spread)
        found.append(
            {
                "id": locus.id,
                "alt": locus.alt,
                "beta": float(slope / spread),
                "standard_error": 1.0 / math.sqrt(spread),
                "statistic": float(statistic),
                "p": float(2.0 * stats.norm.sf(abs(statistic))),
            }
        )
    return found


def _nothing(name: str, alt: str) -> dict[str, Any]:
    told = dict.fromkeys(("beta", "standard_error", "statistic", "p"))
    return {"id": name, "alt": alt, **told}


def _components(release: GenotypeCovariance, data: Genotypes, sums: Vector) -> dict[str, Any]:
    """The largest eigenvalues and their loadings, about the public frequencies and not the mean.

    Eigenvalues are on the scale of a relationship matrix (mean over loci), so that they are those
    of plink2 on the same frequencies; loadings have the length 1 and a positive largest entry.
    """
    size = len(data.loci)
    moments = square(sums[1 + size :]) * release.norm**2 / size
    values, vectors = np.linalg.eigh(moments)
    order = np.argsort(values)[::-1][: release.components]
    chosen = vectors[:, order]
    signs = np.sign(chosen[np.abs(chosen).argmax(axis=0), np.arange(len(order))])
    return {
        "people": float(sums[0]),
        "eigenvalues": [float(value) for value in values[order]],
        "loadings": [
            {"id": locus.id, "alt": locus.alt, "components": [float(x) for x in row]}
            for locus, row in zip(data.loci, chosen * signs, strict=True)
        ],
    }
