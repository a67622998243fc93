"""From sums about genotypes to allele frequencies, tests of loci and components: post-processing.

Every sum carries noise of a known standard deviation. What it does to a figure is taken in to
first order (delta method), beside chance among people: a test without it calls noise a finding.

Source: as `study/variant_statistics`; Wigner 1958 for the eigenvalues of noise alone.
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
CLEAR: Final = 3.0
"""A variance has to be so many standard deviations of its own noise for a test."""


def variant_figures(
    release: VariantRelease, data: Genotypes, values: Sequence[float], *, deviation: float
) -> dict[str, Any]:
    """What the sums of a release say, as a JSON value; None for what they do not say.

    `deviation`: the standard deviation of the noise in each of `values`, 0 where there is none.
    """
    sums = np.asarray(values, dtype=np.float64)
    match release:
        case AlleleFrequencies():
            return {"loci": _frequencies(release, data, sums, deviation)}
        case VariantScores():
            test = _linear if release.model == "linear" else _logistic
            return {"loci": test(data, sums, deviation)}
        case GenotypeCovariance():
            return _components(release, data, sums, deviation)
    return {}


def _frequencies(
    release: AlleleFrequencies, data: Genotypes, sums: Vector, deviation: float
) -> list[dict[str, Any]]:
    """The share of `alt` with its error from the noise; None where either allele is rare."""
    found = []
    for locus, count, half in zip(data.loci, *np.split(sums, 2), strict=True):
        rarer = 2.0 * min(half, count - half)
        shown = count > 0 and rarer >= max(
            release.min_cell_size, 2.0 * count * release.min_frequency
        )
        share = float(half / count) if shown else None
        error = None if share is None else deviation * math.hypot(1.0, share) / float(count)
        found.append(
            {"id": locus.id, "alt": locus.alt, "frequency": share, "standard_error": error}
        )
    return found


def _linear(data: Genotypes, sums: Vector, deviation: float) -> list[dict[str, Any]]:
    """Ordinary least squares of the label on each locus and z: beta and its error, of chance and
    noise, in the label's unit per copy of `alt`, the t statistic and its two-sided p value.

    With W = sum z z', g = W^-1 sum z y and h = W^-1 sum x z the noise of slope - beta spread is, to
    first order, that of x y - beta x^2 - (g - 2 beta h)' x z - h' z y + h' W (g - beta h).
    """
    width = covariates(data)
    head = (width + 1) * (width + 2) // 2
    whole = square(sums[:head])
    each = sums[head:].reshape(len(data.loci), width + 2)
    inverse = np.linalg.pinv(whole[:width, :width], hermitian=True)
    by_y, people = whole[:width, width], whole[0, 0]
    g = inverse @ by_y
    left = whole[width, width] - by_y @ g
    label = data.label
    unit = (label.high - label.low) / 2.0 if isinstance(label, NumberLabel) else 1.0
    found = []
    for locus, row in zip(data.loci, each, strict=True):
        by_z, x_y, x_x = row[:width], row[width], row[width + 1]
        h = inverse @ by_z
        slope = x_y - by_z @ g
        spread = x_x - by_z @ h
        freedom = people - width - 1
        clear = spread > max(ENOUGH * max(x_x, 1.0), CLEAR * deviation * _spread_noise(h))
        rest = left - slope**2 / spread if clear else -1.0
        if rest <= 0 or freedom <= 0:
            found.append(_nothing(locus.id, locus.alt))
            continue
        beta = slope / spread
        shaken = 1.0 + beta**2 + _square(g - 2.0 * beta * h) + _square(h)
        shaken += _quadratic(h, g - beta * h)
        error = math.sqrt(rest / freedom / spread + deviation**2 * shaken / spread**2)
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


def _logistic(data: Genotypes, sums: Vector, deviation: float) -> list[dict[str, Any]]:
    """The score test of each locus about the null model: z and its two-sided p value, of chance and
    noise; beta is one step of Newton's method from 0.
    """
    width = covariates(data)
    head = width + width * (width + 1) // 2
    score, weighted = sums[:width], square(sums[width:head]) / 4.0
    each = sums[head:].reshape(len(data.loci), width + 2)
    inverse = np.linalg.pinv(weighted, hermitian=True)
    g = inverse @ score
    quarter = deviation / 4.0  # the noise of the sums with the weight w = 4 p (1 - p)
    found = []
    for locus, row in zip(data.loci, each, strict=True):
        left, by_z, x_x = row[0], row[1 : width + 1] / 4.0, row[width + 1] / 4.0
        h = inverse @ by_z
        slope = left - by_z @ g
        spread = x_x - by_z @ h
        if spread <= max(ENOUGH * max(x_x, 1.0), CLEAR * quarter * _spread_noise(h)):
            found.append(_nothing(locus.id, locus.alt))
            continue
        variance = spread + deviation**2 * (1.0 + _square(h))
        variance += quarter**2 * (_square(g) + _quadratic(h, g))
        statistic = slope / math.sqrt(variance)
        found.append(
            {
                "id": locus.id,
                "alt": locus.alt,
                "beta": float(slope / spread),
                "standard_error": math.sqrt(variance) / float(spread),
                "statistic": float(statistic),
                "p": float(2.0 * stats.norm.sf(abs(statistic))),
            }
        )
    return found


def _square(vector: Vector) -> float:
    return float(vector @ vector)


def _quadratic(a: Vector, b: Vector) -> float:
    """The variance of a' E b, for E symmetric with independent entries of variance 1 in its upper
    triangle.
    """
    both = np.outer(a, b) + np.outer(b, a)
    return float(np.sum(np.triu(both, 1) ** 2) + np.sum(np.diag(both) ** 2) / 4.0)


def _spread_noise(h: Vector) -> float:
    """The standard deviation of the noise in x^2 - h' W h, over that of each sum."""
    return math.sqrt(1.0 + 4.0 * _square(h) + _quadratic(h, h))


def _nothing(name: str, alt: str) -> dict[str, Any]:
    told = dict.fromkeys(("beta", "standard_error", "statistic", "p"))
    return {"id": name, "alt": alt, **told}


def _components(
    release: GenotypeCovariance, data: Genotypes, sums: Vector, deviation: float
) -> dict[str, Any]:
    """The largest eigenvalues and their loadings, about the public frequencies and not the mean.

    Eigenvalues are on the scale of a relationship matrix (mean over loci), so that they are those
    of plink2 on the same frequencies; loadings have the length 1 and a positive largest entry.
    `largest_of_noise`: up to which noise alone has eigenvalues; what lies below shows nothing.
    """
    size = len(data.loci)
    moments = square(sums[1 + size :]) * release.norm**2 / size
    values, vectors = np.linalg.eigh(moments)
    order = np.argsort(values)[::-1][: release.components]
    chosen = vectors[:, order]
    signs = np.sign(chosen[np.abs(chosen).argmax(axis=0), np.arange(len(order))])
    return {
        "people": float(sums[0]),
        "largest_of_noise": 2.0 * deviation * release.norm**2 / math.sqrt(size),
        "eigenvalues": [float(value) for value in values[order]],
        "loadings": [
            {"id": locus.id, "alt": locus.alt, "components": [float(x) for x in row]}
            for locus, row in zip(data.loci, chosen * signs, strict=True)
        ],
    }
