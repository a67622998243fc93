"""What noised counts say about a model: figures of each class, answer or structure.

Post-processing of releases, as `evaluation`. Names are those of the sandbox's exact figures.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri  # type: ignore[import-untyped]

from fedward_common.study.evaluation import ClassScores, EvaluationRelease, OverlapScores
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.imaging import ImageData, ImageMasks
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.notes import EntityScores, NotesData
from fedward_common.study.reconstruction import ErrorScores
from fedward_common.study.spec import StudySpec
from fedward_server.entity_figures import entity_estimates
from fedward_server.evaluation import INTERVAL, ONE_SIDED, SMALLEST_CLASS, Estimate, figures
from fedward_server.relation_figures import relation_estimates

Numbers = npt.NDArray[np.float64]

_UPPER: Final = float(ndtri(INTERVAL[1]))


def private_measures(
    study: StudySpec, release: EvaluationRelease, counts: Numbers, *, noise: float
) -> dict[str, Estimate]:
    """Figures from counts [rows, bins] that carry Gaussian noise of deviation `noise`, by name.

    What may rest on fewer than 10 patients is left out.
    """
    data = study.data
    if isinstance(release, EntityScores):
        return entity_estimates(counts, noise=noise)
    if isinstance(release, ErrorScores):
        return _errors(release, counts, noise=noise)
    if isinstance(release, OverlapScores) and isinstance(data, ImageMasks):
        return _overlaps(data, release, counts, noise=noise)
    if isinstance(release, ClassScores) and isinstance(
        data, ImageData | LabelledRows | Genotypes | MultimodalData | NotesData
    ):
        return _classes(data, release, counts, noise=noise)
    return dict(figures(counts, noise=noise).more) if isinstance(data, ImageData) else {}


def _errors(release: ErrorScores, counts: Numbers, *, noise: float) -> dict[str, Estimate]:
    middles = (np.arange(release.bins) + 0.5) / release.bins
    mean, unit = _mean(middles, counts[0], noise=noise), release.largest
    if mean is None:
        return {}
    value = Estimate(value=unit * mean.value, low=unit * mean.low, high=unit * mean.high)
    return {"reconstruction_error": value}


def _classes(
    data: ImageData | LabelledRows | Genotypes | MultimodalData | NotesData,
    release: ClassScores,
    counts: Numbers,
    *,
    noise: float,
) -> dict[str, Estimate]:
    names = getattr(data.label, "names", ())
    found = {}
    for number, name in enumerate(names):
        one = figures(counts[2 * number : 2 * number + 2], noise=noise)
        if one.auc is not None:
            found[f"auc: {name}"] = one.auc
        found |= {f"{figure}: {name}": value for figure, value in one.more.items()}
    aucs = [found.get(f"auc: {name}") for name in names]
    known = [auc for auc in aucs if auc is not None]
    if known and len(known) == len(aucs):
        # Counts of different classes are noised independently.
        spread = math.hypot(*((one.high - one.low) / 2.0 for one in known)) / len(known)
        middle = sum(one.value for one in known) / len(known)
        found["auc"] = Estimate(
            value=middle, low=max(0.0, middle - spread), high=min(1.0, middle + spread)
        )
    if release.exclusive:
        answers = counts[2 * release.classes :, : release.classes]
        accuracy = _share(float(np.trace(answers)), answers, noise=noise)
        if accuracy is not None:
            found["accuracy"] = accuracy
        if isinstance(data, NotesData):
            found |= relation_estimates(answers, noise=noise)
    return found


def _share(part: float, counts: Numbers, *, noise: float) -> Estimate | None:
    """The share of patients in a part of `counts`, with noise and the chance of few patients."""
    total = float(counts.sum())
    spread = noise * math.sqrt(counts.size)
    if total - ONE_SIDED * spread < SMALLEST_CLASS:
        return None
    value = min(max(part / total, 0.0), 1.0)
    chance = value * (1.0 - value) / total
    # The part's own noise, and the whole's times the share (both are sums of the same noises).
    noised = (noise / total) ** 2 * (len(counts) * (1.0 - 2.0 * value) + counts.size * value**2)
    half = _UPPER * math.sqrt(chance + noised)
    return Estimate(value=value, low=max(0.0, value - half), high=min(1.0, value + half))


def _overlaps(
    data: ImageMasks, release: OverlapScores, counts: Numbers, *, noise: float
) -> dict[str, Estimate]:
    middles = (np.arange(release.bins) + 0.5) / release.bins
    found = {}
    for number, structure in enumerate(data.structures):
        rows = (("dice", 1.0, 2 * number), ("hausdorff95_mm", release.longest_mm, 2 * number + 1))
        for figure, unit, row in rows:
            mean = _mean(middles, counts[row], noise=noise)
            if mean is not None:
                found[f"{figure}: {structure}"] = Estimate(
                    value=unit * mean.value, low=unit * mean.low, high=unit * mean.high
                )
    dices = [found.get(f"dice: {one}") for one in data.structures]
    known = [one for one in dices if one is not None]
    if known and len(known) == len(dices):
        spread = math.hypot(*((one.high - one.low) / 2.0 for one in known)) / len(known)
        middle = sum(one.value for one in known) / len(known)
        found["dice"] = Estimate(
            value=middle, low=max(0.0, middle - spread), high=min(1.0, middle + spread)
        )
    return found


def _mean(middles: Numbers, counts: Numbers, *, noise: float) -> Estimate | None:
    """The mean position in [0, 1] of patients by bins; true to within half a bin."""
    total = float(counts.sum())
    if total - ONE_SIDED * noise * math.sqrt(len(counts)) < SMALLEST_CLASS:
        return None
    value = float(np.clip((middles @ counts) / total, middles[0], middles[-1]))
    # d(mean)/d(count) = (middle - mean) / total; counts vary by noise and as a Poisson sum.
    steps = np.square((middles - value) / total)
    half = _UPPER * math.sqrt(float(steps @ (noise**2 + np.maximum(counts, 0.0))))
    return Estimate(value=value, low=max(0.0, value - half), high=min(1.0, value + half))
