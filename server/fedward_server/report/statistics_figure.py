"""True against released statistics in one drawing: sandbox only, whose parent has every table."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedward_server.report.statistics import require_format
from fedward_server.statistics import INTERVAL_SD

RELEASED: Final = "#0b6e99"
TRUE: Final = "#b4540a"
_COLUMNS: Final = 2
_WIDTH: Final = 9.0
_HEIGHT: Final = 2.9


def statistics_svg(released: Mapping[str, Any], exact: Mapping[str, Any]) -> str:
    """An SVG of `released` beside `exact`, two results of the same study: means, then histograms.

    Bars are 95 % intervals of the noise. It holds exact figures, so it is never made at a hospital.

    Raises:
        ConfigError: one of them is not of format fedward-statistics/1.
    """
    for result in (released, exact):
        require_format(result)
    pairs = [
        (one, other)
        for first, second in zip(released["releases"], exact["releases"], strict=True)
        for one, other in zip(first["columns"], second["columns"], strict=False)
    ]
    means = [pair for pair in pairs if "mean" in pair[0]]
    histograms = [pair for pair in pairs if "histogram" in pair[0]]
    panels = bool(means) + len(histograms)
    rows = max(1, -(-panels // _COLUMNS))
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "fedward", "font.size": 9})
        figure = Figure(figsize=(_WIDTH, _HEIGHT * rows), layout="constrained")
        axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel().tolist()
        if means:
            _means(axes.pop(0), means)
        for pair in histograms:
            _histogram(axes.pop(0), *pair)
        for unused in axes:
            unused.set_axis_off()
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None})
    return target.getvalue()


def _means(axes: Axes, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
    """Each column on its own public scale from low (0) to high (1)."""
    for place, (one, other) in enumerate(pairs):
        low, high = one["schema"]["low"], one["schema"]["high"]
        exact = (other["mean"]["value"] - low) / (high - low)
        axes.plot([exact], [place], "|", color=TRUE, markersize=16, markeredgewidth=2)
        if one["mean"]["value"] is not None:
            axes.errorbar(
                [(one["mean"]["value"] - low) / (high - low)],
                [place],
                xerr=[INTERVAL_SD * one["mean"]["standard_error"] / (high - low)],
                fmt="o",
                color=RELEASED,
                capsize=3,
            )
    axes.set_yticks(range(len(pairs)), [one["name"] for one, _ in pairs])
    axes.set_xlim(0, 1)
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    axes.set_title("means, from low (0) to high (1)")


def _histogram(axes: Axes, one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    places = range(len(one["histogram"]))
    axes.bar(
        places,
        [cell["value"] for cell in other["histogram"]],
        width=0.8,
        color="none",
        edgecolor=TRUE,
        linewidth=1.6,
        label="true",
    )
    shown = [(n, cell) for n, cell in enumerate(one["histogram"]) if cell["value"] is not None]
    axes.errorbar(
        [n for n, _ in shown],
        [cell["value"] for _, cell in shown],
        yerr=[INTERVAL_SD * cell["standard_error"] for _, cell in shown],
        fmt="o",
        color=RELEASED,
        capsize=3,
        label="released",
    )
    for n, cell in enumerate(one["histogram"]):
        if cell["withheld_by"]:
            axes.annotate(f"-{cell['withheld_by']}", (n, 0), ha="center", va="bottom", fontsize=7)
    turned = 20 if one["schema"]["type"] == "number" else 0
    axes.set_xticks(places, [c["cell"] for c in one["histogram"]], rotation=turned, fontsize=7)
    axes.set_title(f"patients by {one['name']} (-k: k sites kept the cell back)")
    axes.legend(frameon=False, fontsize=7)
