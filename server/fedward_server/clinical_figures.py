"""What a clinician asks of a model, from noised counts alone: post-processing of one release.

Everything comes from the posterior of the binormal model of `evaluation`: average precision,
sensitivity and specificity at the stated threshold, calibration, net benefit, and the same within
groups of patients. An interval is the middle 95 % of the posterior draws: it holds both which
patients were held out and the noise, as a bootstrap of noised counts could not.

Sources: Vickers and Elkin 2006 (decision curve); Cox 1958 (calibration slope and intercept);
Hardt et al. 2016 and Fairlearn (differences between groups); Riley et al. 2021 for which to report.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, ndtr  # type: ignore[import-untyped]

from fedward_common.ids import SiteId
from fedward_common.study.grouped_scores import GroupedScores
from fedward_server.evaluation import ONE_SIDED, SMALLEST_CLASS, ClassDraws, class_draws

Numbers = npt.NDArray[np.float64]

DRAWS: Final = 1000
INTERVAL: Final = (2.5, 97.5)
THRESHOLDS: Final = tuple(round(0.05 * step, 2) for step in range(1, 20))
_GRID: Final = 161
_REACH: Final = 12.0
"""Logits on either side: beyond, no score of a model counts for a figure here."""
_NEWTON: Final = 12
_MOST_SLOPE: Final = 20.0
SITES: Final = "site"
EVERYBODY: Final = "everybody"


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupFigures:
    """One row of the table: figure name -> (value, low, high); None where a class is under 10."""

    by: str
    group: str
    figures: Mapping[str, tuple[float, float, float]] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ClinicalFigures:
    """Everything that the counts of a study say. `calibration`: (predicted, observed, low, high);
    `decision`: (threshold, net benefit, low, high, that of saying yes to everybody).
    """

    threshold: float
    everybody: GroupFigures
    groups: Sequence[GroupFigures]
    fairness: Sequence[tuple[str, str, float, float, float]]
    calibration: Sequence[tuple[float, float, float, float]]
    decision: Sequence[tuple[float, float, float, float, float]]

    def as_json(self) -> dict[str, Any]:
        """The figures as a JSON value."""

        def row(found: GroupFigures) -> dict[str, Any]:
            figures = found.figures
            return {
                "by": found.by,
                "group": found.group,
                "figures": None if figures is None else {n: list(v) for n, v in figures.items()},
            }

        return {
            "threshold": self.threshold,
            "everybody": row(self.everybody),
            "groups": [row(one) for one in self.groups],
            "fairness": [list(one) for one in self.fairness],
            "calibration": [list(one) for one in self.calibration],
            "decision": [list(one) for one in self.decision],
        }


def clinical_figures(
    release: GroupedScores, counts: Numbers, *, noise: float, sites: Mapping[SiteId, Numbers]
) -> ClinicalFigures:
    """The figures from counts [rows, bins] over all sites, whose entries carry `noise`.

    `sites`: each site's own counts where the coordinator has them; empty after a secret sum.
    Deterministic.
    """
    everybody = class_draws(counts[:2], noise=noise, draws=DRAWS)
    tables: list[tuple[str, str, Numbers, float]] = []
    row = 2
    for grouping in release.groupings:
        for group in grouping.names:
            tables.append((grouping.by, group, counts[row : row + 2], noise))
            row += 2
    tables += [(SITES, str(site), own[:2], release.noise_std) for site, own in sites.items()]
    groups, by_group = [], dict[str, list[tuple[ClassDraws, ClassDraws]]]()
    for number, (by, group, own, deviation) in enumerate(tables, start=1):
        # Groups share nothing but the model, so their draws are paired at random.
        found = class_draws(own, noise=deviation, draws=DRAWS, shift=math.modf(number * 0.37)[0])
        groups.append(_row(by, group, found, threshold=release.threshold))
        if found is not None:
            by_group.setdefault(by, []).append(found)
    return ClinicalFigures(
        threshold=release.threshold,
        everybody=_row(EVERYBODY, EVERYBODY, everybody, threshold=release.threshold),
        groups=groups,
        fairness=[
            one
            for by, found in by_group.items()
            if len(found) > 1
            for one in _differences(by, found, threshold=release.threshold)
        ],
        calibration=[] if everybody is None else _calibration_curve(*everybody),
        decision=[] if everybody is None else _decision_curve(*everybody),
    )


def _row(
    by: str, group: str, draws: tuple[ClassDraws, ClassDraws] | None, *, threshold: float
) -> GroupFigures:
    if draws is None:
        return GroupFigures(by=by, group=group, figures=None)
    negative, positive = draws
    slope, intercept = _calibration(negative, positive)
    hit, false = (_above(one, threshold) for one in (positive, negative))
    everyone = negative.size + positive.size
    values = {
        "patients": everyone,
        "share_positive": positive.size / everyone,
        "auc": ndtr((positive.mean - negative.mean) / np.hypot(negative.spread, positive.spread)),
        "average_precision": _average_precision(negative, positive),
        "sensitivity": hit,
        "specificity": 1.0 - false,
        "says_yes": (positive.size * hit + negative.size * false) / everyone,
        "calibration_slope": slope,
        "calibration_intercept": intercept,
        "brier": _brier(negative, positive),
    }
    return GroupFigures(
        by=by, group=group, figures={name: _estimate(found) for name, found in values.items()}
    )


def _differences(
    by: str, groups: Sequence[tuple[ClassDraws, ClassDraws]], *, threshold: float
) -> list[tuple[str, str, float, float, float]]:
    """Fairlearn's differences between the groups that are large enough to be shown."""
    hit = np.stack([_above(positive, threshold) for _, positive in groups])
    false = np.stack([_above(negative, threshold) for negative, _ in groups])
    yes = np.stack(
        [
            (p.size * _above(p, threshold) + n.size * _above(n, threshold)) / (p.size + n.size)
            for n, p in groups
        ]
    )
    gaps = {
        "demographic parity": np.ptp(yes, axis=0),
        "equal opportunity": np.ptp(hit, axis=0),
        "equalized odds": np.maximum(np.ptp(hit, axis=0), np.ptp(false, axis=0)),
    }
    return [(by, name, *_estimate(found)) for name, found in gaps.items()]


def _above(draws: ClassDraws, threshold: float) -> Numbers:
    """The share of the class that scores above a threshold."""
    share: Numbers = ndtr((draws.mean - logit(threshold)) / draws.spread)
    return share


def _average_precision(negative: ClassDraws, positive: ClassDraws) -> Numbers:
    """The mean of the precision over the recall, from the highest score down."""
    places = np.linspace(_REACH, -_REACH, _GRID)
    hit, false = (
        ndtr((one.mean[:, None] - places) / one.spread[:, None]) for one in (positive, negative)
    )
    true, wrong = positive.size[:, None] * hit, negative.size[:, None] * false
    precision = true / np.maximum(true + wrong, 1e-12)
    between = 0.5 * (precision[:, 1:] + precision[:, :-1])
    area: Numbers = (np.diff(hit, axis=1) * between).sum(axis=1) + hit[:, 0] * precision[:, 0]
    return area


def _weights(negative: ClassDraws, positive: ClassDraws) -> tuple[Numbers, Numbers, Numbers]:
    """Places on the logit scale and the patients of both classes there, [draws, places]."""
    places = np.linspace(-_REACH, _REACH, _GRID)
    step = places[1] - places[0]
    edges = np.append(places - step / 2, places[-1] + step / 2)
    parts = [
        one.size[:, None] * np.diff(ndtr((edges - one.mean[:, None]) / one.spread[:, None]), axis=1)
        for one in (negative, positive)
    ]
    return places, parts[0], parts[1]


def _calibration(negative: ClassDraws, positive: ClassDraws) -> tuple[Numbers, Numbers]:
    """Slope and intercept of the logistic regression of the class on the score's logit (Cox)."""
    places, without, with_it = _weights(negative, positive)
    total = without + with_it
    slope, intercept = np.ones(len(total)), np.zeros(len(total))
    for _ in range(_NEWTON):
        chance = expit(intercept[:, None] + slope[:, None] * places)
        left = with_it - total * chance
        curve = total * chance * (1.0 - chance)
        a, b, c = curve.sum(axis=1), (curve * places).sum(axis=1), (curve * places**2).sum(axis=1)
        first, second = left.sum(axis=1), (left * places).sum(axis=1)
        scale = np.maximum(a * c - b**2, 1e-12)
        # Short steps: with classes far apart the slope runs away before it is bounded.
        intercept = intercept + np.clip((c * first - b * second) / scale, -2.0, 2.0)
        slope = np.clip(
            slope + np.clip((a * second - b * first) / scale, -1.0, 1.0), -_MOST_SLOPE, _MOST_SLOPE
        )
    return slope, intercept


def _brier(negative: ClassDraws, positive: ClassDraws) -> Numbers:
    places, without, with_it = _weights(negative, positive)
    score = expit(places)
    squared = without * score**2 + with_it * (1.0 - score) ** 2
    mean: Numbers = squared.sum(axis=1) / (without + with_it).sum(axis=1)
    return mean


def _calibration_curve(
    negative: ClassDraws, positive: ClassDraws
) -> list[tuple[float, float, float, float]]:
    """How many of those with a predicted chance have it, where at least 2 % of all patients are."""
    curve = []
    everyone = (negative.size + positive.size).mean()
    for chance in np.arange(0.05, 1.0, 0.05):
        place = float(logit(chance))
        low, high = logit(max(chance - 0.05, 1e-3)), logit(min(chance + 0.05, 1 - 1e-3))
        near = sum(
            (
                one.size
                * (ndtr((high - one.mean) / one.spread) - ndtr((low - one.mean) / one.spread))
            )
            for one in (negative, positive)
        )
        if near.mean() < max(0.02 * everyone, 5.0):
            continue
        density = [
            one.size * np.exp(-0.5 * ((place - one.mean) / one.spread) ** 2) / one.spread
            for one in (negative, positive)
        ]
        observed = density[1] / np.maximum(density[0] + density[1], 1e-300)
        curve.append((round(float(chance), 2), *_estimate(observed)))
    return curve


def _decision_curve(
    negative: ClassDraws, positive: ClassDraws
) -> list[tuple[float, float, float, float, float]]:
    """Net benefit per patient of acting above each threshold, and of acting for everybody."""
    everyone = negative.size + positive.size
    curve = []
    for threshold in THRESHOLDS:
        odds = threshold / (1.0 - threshold)
        hits, wrong = (one.size * _above(one, threshold) for one in (positive, negative))
        value, low, high = _estimate((hits - wrong * odds) / everyone)
        everybody = float(((positive.size - negative.size * odds) / everyone).mean())
        curve.append((threshold, value, low, high, everybody))
    return curve


def value_figures(
    counts: Numbers, *, noise: float, low: float, high: float
) -> dict[str, tuple[float, float, float]]:
    """`rmse`, `mae` (in the label's unit), `r2`, `pearson` and `c_index` from counts [measured,
    predicted] of a label in [low, high], each with its interval; empty where there may be fewer
    than 10 patients.

    Values count as the middles of their bins: below a bin's width nothing is known.
    """
    bins = len(counts)
    if counts.sum() - ONE_SIDED * noise * bins < SMALLEST_CLASS:
        return {}
    middles = (np.arange(bins) + 0.5) / bins * (high - low)
    gap = middles[None, :] - middles[:, None]
    # What other patients and other noise would have given: a normal around each count.
    spread = np.sqrt(np.maximum(counts, 0.0) + noise**2)
    others = np.random.default_rng(0).standard_normal((DRAWS, bins, bins))
    draws = np.concatenate([counts[None], counts + spread * others])
    patients = np.maximum(draws.sum(axis=(1, 2)), 1.0)
    squared = np.maximum((draws * gap**2).sum(axis=(1, 2)) / patients, 0.0)
    absolute = np.maximum((draws * np.abs(gap)).sum(axis=(1, 2)) / patients, 0.0)
    measured = draws.sum(axis=2)
    mean = (measured * middles).sum(axis=1) / patients
    variance = (measured * middles**2).sum(axis=1) / patients - mean**2
    found = {
        "rmse": np.sqrt(squared),
        "mae": absolute,
        "r2": 1.0 - squared / np.maximum(variance, 1e-12),
        **_order(draws, middles),
    }
    shown = {}
    for name, values in found.items():
        below, above = np.percentile(values[1:], INTERVAL)
        shown[name] = (float(values[0]), float(below), float(above))
    return shown


def _order(draws: Numbers, middles: Numbers) -> dict[str, Numbers]:
    """`pearson`, and `c_index` over pairs in different bins of the measured value, of counts
    [draws, measured, predicted].
    """
    patients = np.maximum(draws.sum(axis=(1, 2)), 1.0)
    means, squares = [], []
    for axis in (2, 1):
        part = draws.sum(axis=axis) / patients[:, None]
        means.append(part @ middles)
        squares.append(np.maximum(part @ middles**2 - means[-1] ** 2, 0.0))
    both = np.einsum("dmp,m,p->d", draws, middles, middles) / patients - means[0] * means[1]
    higher = draws[:, ::-1].cumsum(axis=1)[:, ::-1] - draws  # with a higher measured value
    below = higher[:, :, ::-1].cumsum(axis=2)[:, :, ::-1] - higher  # and a higher prediction
    concordant = (draws * (below + 0.5 * higher)).sum(axis=(1, 2))
    comparable = (draws.sum(axis=2) * higher.sum(axis=2)).sum(axis=1)
    return {
        # Counts may be below zero; cut off there, many small ones would pull to the middle.
        "pearson": np.clip(both / np.maximum(np.sqrt(squares[0] * squares[1]), 1e-12), -1.0, 1.0),
        "c_index": np.clip(concordant / np.maximum(comparable, 1e-12), 0.0, 1.0),
    }


def _estimate(values: Numbers) -> tuple[float, float, float]:
    low, high = np.percentile(values, INTERVAL)
    return float(values.mean()), float(low), float(high)
