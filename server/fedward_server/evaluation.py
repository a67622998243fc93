"""From noised binned counts to AUC and accuracy with intervals: post-processing of releases.

Counts of a few dozen patients under noise of the same size cannot be read off directly: cutting
negative counts at zero alone biases accuracy by several points. So the scores of each class are
modelled as normal on the logit scale, the classical model for binned ratings, and three numbers per
class (patients, mean, spread) get their posterior given the noised counts. Its mean is reported,
and as interval the middle 95 %, which holds both kinds of chance: which patients were held out, and
the noise.

Sources: Dorfman and Alf 1969 (binormal ROC from rating data); the grid posterior is direct.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri  # type: ignore[import-untyped]

from fedward_common.errors import ProtocolError
from fedward_common.ids import SiteId
from fedward_common.study.evaluation import EvaluationRelease

Numbers = npt.NDArray[np.float64]

SMALLEST_CLASS: Final = 10
"""Classes under 10 patients are not reported alone (rules 7)."""
ONE_SIDED: Final = 1.645
"""A class counts as large enough when even the lower 95 % bound of its noised size is."""
INTERVAL: Final = (0.025, 0.975)

_POINTS: Final = 25
"""Grid points on each of the three axes: patients, mean, logarithm of the spread."""
_MEANS: Final = (-6.0, 6.0)
_LOG_SPREADS: Final = (math.log(0.15), math.log(4.0))
_ENOUGH: Final = 200.0
"""Grid points that must share the probability: about six on each axis."""
_STAGES: Final = 12
_DRAWS: Final = 4000
_GOLDEN: Final = (math.sqrt(5.0) - 1.0) / 2.0
_ROC_POINTS: Final = 101
_CALIBRATION_BINS: Final = 10

_MEAN_SPREAD: Final = 3.0
_TYPICAL_SPREAD: Final = 1.2
_SPREAD_RANGE: Final = 0.6
"""The prior: class means within a few logits of 1/2, spreads from about 0.4 to 4. Wide on purpose;
with a noise of zero it is forgotten after some ten patients."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivateFigures:
    """What noised counts say; None where a class (or all patients) may be too few to report.

    `roc`: points (false positive rate, true positive rate) of the fitted model; empty without AUC.
    `more`: sensitivity, specificity, f1 (a score above 1/2 says yes) and calibration_error.
    """

    auc: Estimate | None
    accuracy: Estimate | None
    more: Mapping[str, Estimate] = field(default_factory=dict)
    roc: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivateEvaluation:
    """The pooled figures and each site's own."""

    pooled: PrivateFigures
    per_site: dict[SiteId, PrivateFigures]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PooledCounts:
    """Noised counts [2, bins] over the `sites` of a secret sum; `noise` is their deviation."""

    counts: Numbers
    sites: tuple[SiteId, ...]
    noise: float

    @property
    def figures(self) -> PrivateFigures:
        """What the counts say about all sites together; nothing is known of one alone."""
        return figures(self.counts, noise=self.noise)

    def as_json(self) -> dict[str, Any]:
        """The counts as a JSON value."""
        return {
            "counts": self.counts.tolist(),
            "sites": list(self.sites),
            "noise": self.noise,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The counts in what `as_json` gave."""
        return cls(
            counts=np.asarray(value["counts"], dtype=np.float64),
            sites=tuple(SiteId(site) for site in value["sites"]),
            noise=float(value["noise"]),
        )


def evaluate(counts: Mapping[SiteId, Numbers], *, release: EvaluationRelease) -> PrivateEvaluation:
    """The figures from every site's noised counts [2, bins] (negative class first).

    Deterministic: equal counts give equal figures.

    Raises:
        ProtocolError: no counts, or counts of another shape, or not finite.
    """
    if not counts:
        raise ProtocolError("evaluation: expected the noised counts of a site, found none")
    for site, found in counts.items():
        if found.shape != (2, release.bins) or not np.isfinite(found).all():
            raise ProtocolError(
                f"evaluation: expected finite counts of shape (2, {release.bins}) from site {site}"
            )
    total: Numbers = np.stack(list(counts.values())).sum(axis=0, dtype=np.float64)
    return PrivateEvaluation(
        pooled=figures(total, noise=release.noise_multiplier * math.sqrt(len(counts))),
        per_site={
            site: figures(found, noise=release.noise_multiplier) for site, found in counts.items()
        },
    )


def figures(counts: Numbers, *, noise: float) -> PrivateFigures:
    """The figures from counts [2, bins] whose entries carry Gaussian noise of deviation `noise`."""
    bins = counts.shape[1]
    sizes = counts.sum(axis=1)
    doubt = ONE_SIDED * noise * math.sqrt(bins)
    if sizes.sum() - math.sqrt(2.0) * doubt < SMALLEST_CLASS:
        return PrivateFigures(auc=None, accuracy=None)
    negative, positive = (_posterior(row, noise=noise) for row in counts)
    # Two coordinates that fill the unit square evenly pair the two classes without a random draw.
    first = (np.arange(_DRAWS) + 0.5) / _DRAWS
    n0, m0, s0 = negative.at(first)
    n1, m1, s1 = positive.at(np.mod(np.arange(_DRAWS) * _GOLDEN, 1.0))
    right = n0 * ndtr(-m0 / s0) + n1 * ndtr(m1 / s1)
    accuracy = _estimate(right / (n0 + n1))
    if sizes.min() - doubt < SMALLEST_CLASS:
        return PrivateFigures(auc=None, accuracy=accuracy)
    auc = _estimate(ndtr((m1 - m0) / np.hypot(s0, s1)))
    hit, right_no = ndtr(m1 / s1), ndtr(-m0 / s0)
    more = {
        "sensitivity": _estimate(hit),
        "specificity": _estimate(right_no),
        "f1": _estimate(2.0 * n1 * hit / (n1 * (1.0 + hit) + n0 * (1.0 - right_no))),
        "calibration_error": _estimate(_gap((n0, m0, s0), (n1, m1, s1))),
    }
    return PrivateFigures(auc=auc, accuracy=accuracy, roc=_roc(m0, s0, m1, s1), more=more)


def _gap(negative: tuple[Numbers, Numbers, Numbers], positive: tuple[Numbers, ...]) -> Numbers:
    """The mean gap between score and frequency over ten bins, for each draw of both classes."""
    edges = np.arange(1, _CALIBRATION_BINS) / _CALIBRATION_BINS
    logits = np.log(edges / (1.0 - edges))
    middles = (np.arange(_CALIBRATION_BINS) + 0.5) / _CALIBRATION_BINS
    below = [
        np.pad(ndtr((logits - mean[:, None]) / spread[:, None]), ((0, 0), (1, 1)))
        for _, mean, spread in (negative, positive)
    ]
    for one in below:
        one[:, -1] = 1.0
    without, with_it = (
        size[:, None] * np.diff(one, axis=1)
        for (size, _, _), one in zip((negative, positive), below, strict=True)
    )
    everyone = without + with_it
    gap: Numbers = np.abs(with_it - everyone * middles).sum(axis=1) / everyone.sum(axis=1)
    return gap


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassDraws:
    """Draws of one class: patients, and mean and spread of their scores on the logit scale."""

    size: Numbers
    mean: Numbers
    spread: Numbers


def class_draws(
    counts: Numbers, *, noise: float, draws: int, shift: float = 0.0
) -> tuple[ClassDraws, ClassDraws] | None:
    """Draws of both classes given counts [2, bins]; None where a class may be under 10 patients.

    Deterministic. Another `shift` in [0, 1) pairs them otherwise, as independent counts need.
    """
    doubt = ONE_SIDED * noise * math.sqrt(counts.shape[1])
    if counts.sum(axis=1).min() - doubt < SMALLEST_CLASS:
        return None
    first = np.mod((np.arange(draws) + 0.5) / draws + shift, 1.0)
    second = np.mod(np.arange(draws) * _GOLDEN + shift * _GOLDEN, 1.0)
    found = []
    for row, quantiles in zip(counts, (first, second), strict=True):
        size, mean, spread = _posterior(row, noise=noise).at(quantiles)
        found.append(ClassDraws(size=size, mean=mean, spread=spread))
    return found[0], found[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Posterior:
    """Probabilities over a grid of (patients, mean, log spread), as a running sum."""

    axes: tuple[Numbers, Numbers, Numbers]
    running: Numbers

    def at(self, quantiles: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """The grid points (patients, mean, spread) at these quantiles of the running sum."""
        place = np.minimum(np.searchsorted(self.running, quantiles), len(self.running) - 1)
        size, mean, spread = np.unravel_index(place, (_POINTS, _POINTS, _POINTS))
        sizes, means, spreads = self.axes
        return sizes[size], means[mean], np.exp(spreads[spread])


def _posterior(counts: Numbers, *, noise: float) -> _Posterior:
    """The posterior on a grid that closes in until it is fine enough for the data.

    Many patients leave one point of a coarse grid and a wrong one: then the grid shrinks to where
    a flattened version of the posterior lies, and again, until many points share the probability.
    """
    most = max(float(counts.sum()) + 4.0 * noise * math.sqrt(len(counts)), 20.0)
    axes = (
        np.linspace(most / _POINTS, most, _POINTS),
        np.linspace(*_MEANS, _POINTS),
        np.linspace(*_LOG_SPREADS, _POINTS),
    )
    for _ in range(_STAGES):
        logarithm = _log_posterior(counts, axes, noise=noise)
        power = 1.0
        while _sharing(_weights(logarithm * power)) < _ENOUGH:
            power /= 2.0
        if power == 1.0:
            break
        axes = _closer(axes, _weights(logarithm * power))
    running = np.cumsum(_weights(_log_posterior(counts, axes, noise=noise)).ravel())
    return _Posterior(axes=axes, running=running / running[-1])


def _log_posterior(
    counts: Numbers, axes: tuple[Numbers, Numbers, Numbers], *, noise: float
) -> Numbers:
    """Each bin is normal around its expected count; its variance is the noise plus that count."""
    sizes, means, log_spreads = axes
    edges = np.arange(1, len(counts)) / len(counts)
    logits = np.log(edges / (1.0 - edges))
    z = (logits - means[:, None, None]) / np.exp(log_spreads)[None, :, None]
    below = np.pad(ndtr(z), ((0, 0), (0, 0), (1, 1)))
    below[..., -1] = 1.0
    expected = sizes[:, None, None, None] * np.diff(below, axis=-1)[None]
    variance = noise**2 + expected
    fit = -0.5 * ((counts - expected) ** 2 / variance + np.log(variance)).sum(axis=-1)
    mean = -0.5 * (means / _MEAN_SPREAD) ** 2
    spread = -0.5 * ((log_spreads - math.log(_TYPICAL_SPREAD)) / _SPREAD_RANGE) ** 2
    posterior: Numbers = fit + mean[None, :, None] + spread[None, None, :]
    return posterior


def _weights(logarithm: Numbers) -> Numbers:
    weights: Numbers = np.exp(logarithm - logarithm.max())
    weights /= weights.sum()
    return weights


def _sharing(weights: Numbers) -> float:
    """How many grid points effectively share the probability."""
    return 1.0 / float(np.square(weights).sum())


def _closer(
    axes: tuple[Numbers, Numbers, Numbers], weights: Numbers
) -> tuple[Numbers, Numbers, Numbers]:
    """The same number of points over the part of each axis that has probability, one step wider."""
    closer = []
    for number, axis in enumerate(axes):
        share = weights.sum(axis=tuple({0, 1, 2} - {number}))
        held = np.flatnonzero(share > 1e-4 * share.max())
        first, last = max(held[0] - 1, 0), min(held[-1] + 1, _POINTS - 1)
        closer.append(np.linspace(axis[first], axis[last], _POINTS))
    return closer[0], closer[1], closer[2]


def _estimate(values: Numbers) -> Estimate:
    low, high = np.quantile(values, INTERVAL)
    return Estimate(value=float(values.mean()), low=float(low), high=float(high))


def _roc(m0: Numbers, s0: Numbers, m1: Numbers, s1: Numbers) -> tuple[tuple[float, float], ...]:
    """The posterior mean of the true positive rate at evenly spaced false positive rates."""
    rates = np.linspace(0.0, 1.0, _ROC_POINTS)
    z = ndtri(rates[1:-1])
    true = ndtr((m1[:, None] - m0[:, None] + s0[:, None] * z) / s1[:, None]).mean(axis=0)
    curve = [0.0, *true.tolist(), 1.0]
    return tuple(zip(rates.tolist(), curve, strict=True))
