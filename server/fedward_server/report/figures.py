"""How each kind of figure of a run is written, and the rows that compare the models.

Page, model card and terminal take their words from here, so that no epsilon can be printed without
its delta and its unit, a missing AUC is a dash everywhere, and rounding never flatters.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from typing import Final

from fedward_server.report.result import RunFigures

DASH: Final = "—"
"""Stands for a figure that does not exist (an AUC without enough patients of both classes)."""

UNITS: Final = {"patient": "per patient of one site", "family": "per family of one site"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonRow:
    """One model in the comparison; `private` tells noised bins from the parent's exact figures.

    `note` is what the result itself says about the figure, without the word exact or private.
    """

    name: str
    auc: float | None
    accuracy: float | None
    site_mean: float | None = None
    auc_interval: tuple[float, float] | None = None
    accuracy_interval: tuple[float, float] | None = None
    private: bool = False
    note: str = ""


def comparison(run: RunFigures) -> tuple[ComparisonRow, ...]:
    """The rows every reader sees: this run, its private estimate, and the baselines beside it."""
    auc, accuracy = run.auc, run.accuracy

    def note(name: str) -> str:
        keys = (f"auc.{name}", f"accuracy.{name}", name)
        label = next((run.labels[key] for key in keys if key in run.labels), "")
        return re.sub(r"^(exact|private)\W*", "", label)

    return (
        ComparisonRow(
            name="federated (this run)",
            auc=auc.federated,
            accuracy=accuracy.federated,
            site_mean=accuracy.federated_site_mean,
            auc_interval=auc.federated_interval,
            accuracy_interval=accuracy.federated_interval,
            note=note("federated"),
        ),
        ComparisonRow(
            name="federated, from noised bins (what the coordinator knows)",
            auc=auc.federated_private,
            accuracy=accuracy.federated_private,
            auc_interval=auc.federated_private_interval,
            accuracy_interval=accuracy.federated_private_interval,
            private=True,
            note=note("federated_private"),
        ),
        ComparisonRow(
            name="each site alone, same privacy (mean)",
            auc=auc.alone_mean,
            accuracy=accuracy.alone_mean,
            site_mean=accuracy.alone_site_mean,
            note=note("alone_mean"),
        ),
        ComparisonRow(
            name="each site alone, without privacy (mean)",
            auc=auc.alone_no_privacy_mean,
            accuracy=accuracy.alone_no_privacy_mean,
            site_mean=accuracy.alone_no_privacy_site_mean,
            note=note("alone_no_privacy_mean"),
        ),
        ComparisonRow(
            name="pooled without privacy",
            auc=auc.pooled_no_privacy,
            accuracy=accuracy.pooled_no_privacy,
            site_mean=accuracy.pooled_no_privacy_site_mean,
            note=note("pooled_no_privacy"),
        ),
        ComparisonRow(
            name="majority class",
            auc=None,
            accuracy=accuracy.majority,
            note=note("majority"),
        ),
    )


FIGURE_NAMES: Final = {
    "c_index": "C-index",
    "rmse": "root mean squared error",
    "reconstruction_error": "reconstruction error",
    "explained": "variance explained",
    "mae": "mean absolute error",
    "told_apart": "AUC of telling synthetic from real (0.5: not told apart)",
    "pearson": "Pearson correlation",
    "r2": "R² (share of the variance explained)",
    "entity_f1": "entity F1 (exact spans)",
    "entity_precision": "entity precision",
    "entity_recall": "entity recall",
    "relation_f1_micro": "relation F1, all relations together",
    "relation_f1_macro": "relation F1, mean over relations",
    "auc": "AUC",
    "f1": "F1",
    "calibration_error": "calibration error",
    "dice": "Dice",
    "iou": "IoU",
    "hausdorff95_mm": "95 % Hausdorff distance, mm",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnFigure:
    """A figure that only this kind of task has, of the compared models; exact but for `private`.

    `interval`: from drawing held-out patients again and again; `private`: from noised bins.
    """

    name: str
    federated: float | None
    interval: tuple[float, float] | None
    private: float | None
    private_interval: tuple[float, float] | None
    alone: float | None
    alone_no_privacy: float | None
    pooled_no_privacy: float | None


def figure_name(name: str) -> str:
    """A figure's name for people; "dice: head" is that of one class or structure."""
    figure, sign, what = name.partition(": ")
    return FIGURE_NAMES.get(figure, figure) + sign + what


def own_figures(run: RunFigures) -> tuple[OwnFigure, ...]:
    """The rows of figures that only this kind of task has, such as a C-index."""
    return tuple(
        OwnFigure(
            name=figure_name(name),
            federated=found.federated,
            interval=found.federated_interval,
            private=found.federated_private,
            private_interval=found.federated_private_interval,
            alone=found.alone_mean,
            alone_no_privacy=found.alone_no_privacy_mean,
            pooled_no_privacy=found.pooled_no_privacy,
        )
        for name, found in run.figures.items()
    )


def score_text(value: float | None) -> str:
    """An AUC or accuracy with three digits; a dash where there is none.

    What only rounding would make perfect stays below: 0.9996 is ">0.999", not "1.000".
    """
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:.3f}"
    if text == "1.000" and value < 1:
        return ">0.999"
    return text


def interval_text(interval: tuple[float, float] | None) -> str:
    """An interval as "low to high"; empty where there is none."""
    if interval is None:
        return ""
    return f"{score_text(interval[0])} to {score_text(interval[1])}"


def epsilon_number(value: float | None) -> str:
    """An epsilon with three decimals, rounded up: no guarantee is printed smaller than it is."""
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞"
    # Ten digits first, so that the last bit of a float does not push 2.0 to 2.001.
    return str(Decimal(f"{value:.10g}").quantize(Decimal("0.001"), rounding=ROUND_CEILING))


def delta_text(delta: float) -> str:
    """A delta as 2e-4, rounded up to three digits."""
    rounded = Context(prec=3, rounding=ROUND_CEILING).create_decimal(f"{delta:.10g}")
    mantissa, exponent = f"{rounded:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def unit_text(unit: str) -> str:
    """The privacy unit in words (rules 10)."""
    return UNITS.get(unit, f"per {unit}; NOT per patient")


def epsilon_text(value: float | None, *, delta: float, per: str) -> str:
    """An epsilon that stands by itself: "ε = 1.998 at δ = 2e-4 per patient of one site"."""
    return f"ε = {epsilon_number(value)} at δ = {delta_text(delta)} {per}"


def run_cost(run: RunFigures, value: float | None) -> str:
    """`value` as an epsilon of this run, with its delta and unit."""
    return epsilon_text(value, delta=run.delta, per=unit_text(run.unit))


def bytes_text(count: int | None) -> str:
    """A number of bytes in decimal units."""
    if count is None:
        return DASH
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    digits = 0 if units[0] == "B" or size >= 100 else 1 if size >= 10 else 2
    return f"{size:.{digits}f} {units[0]}"


def seconds_text(seconds: float) -> str:
    """A duration for people."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def describe(value: object) -> str:
    """A name, or a table as "name (key value, ...)", from the study."""
    if not isinstance(value, Mapping):
        return str(value)
    rest = dict(value)
    name = rest.pop("name", None) or rest.pop("kind", "")
    parts = [f"{key.replace('_', ' ')} {_plain(item)}" for key, item in rest.items()]
    return f"{name} ({', '.join(parts)})" if parts else str(name)


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return " x ".join(str(item) for item in value) or "none"
    return str(value)
