"""The charts of a report as inline SVG: drawn by matplotlib, coloured and set by the page.

Colours leave matplotlib as marks and enter the page as CSS variables, text stays text in the page's
font: one drawing serves light, dark and print. No chart holds a word from the study file.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedward_server.report.figures import score_text
from fedward_server.report.result import CurvePoint, RunFigures

Point = TypeVar("Point")

# Any colours do that nothing else in a drawing uses; `chart_svg` replaces them.
INK: Final = "#0a0b01"
MUTED: Final = "#0a0b02"
RULE: Final = "#0a0b03"
FIRST: Final = "#0a0b04"
SECOND: Final = "#0a0b05"
_VARIABLES: Final = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    FIRST: "--series-1",
    SECOND: "--series-2",
}
_INCHES: Final = (4.0, 3.2)
_MAX_TABLE_ROWS: Final = 12
_SETTINGS: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedward",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One line of a chart's legend, which the page sets; `look` are the page's class names."""

    label: str
    look: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A drawing with what a reader who cannot see it needs: a summary and its numbers."""

    name: str
    title: str
    summary: str
    svg: str
    keys: tuple[Key, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def charts(run: RunFigures) -> tuple[Chart, ...]:
    """AUC per round, accuracy per round and the ROC curve; what the result lacks is left out."""
    drawn = (_by_round(run, "auc"), _by_round(run, "accuracy"), _roc(run))
    return tuple(chart for chart in drawn if chart is not None)


def _by_round(run: RunFigures, metric: Literal["auc", "accuracy"]) -> Chart | None:
    points = [(p.round, value) for p in run.curve if (value := _score(p, metric)) is not None]
    if not points:
        return None
    label = {"auc": "AUC", "accuracy": "Accuracy"}[metric]
    scores = run.auc if metric == "auc" else run.accuracy
    references = [("pooled without privacy", scores.pooled_no_privacy, "dashed")]
    if metric == "accuracy":
        references.append(("majority class", run.accuracy.majority, "dotted"))
    known = [(name, value, style) for name, value, style in references if value is not None]
    with chart_axes() as (figure, axes):
        rounds, values = zip(*points, strict=True)
        axes.plot(rounds, values, color=FIRST, **_markers(len(points)))
        for _, value, style in known:
            axes.axhline(value, color=SECOND, linestyle=style, linewidth=1.4)
        axes.set_ylim(*_limits([*values, *(value for _, value, _ in known)]))
        axes.set_xlabel("round")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        svg = chart_svg(figure, name=metric)
    first, last = points[0], points[-1]
    beside = "".join(f", {name} {score_text(value)}" for name, value, _ in known)
    return Chart(
        name=metric,
        title=f"{label} after each round",
        summary=f"{label} of the global model: {score_text(first[1])} after round {first[0]}, "
        f"{score_text(last[1])} after round {last[0]}{beside}.",
        svg=svg,
        keys=(
            Key(label="this run", look="first solid"),
            *(Key(label=name, look=f"second {style}") for name, _, style in known),
        ),
        columns=("Round", label),
        rows=tuple((str(n), score_text(value)) for n, value in _thinned(points)),
    )


def _roc(run: RunFigures) -> Chart | None:
    exact, private = run.roc.exact, run.roc.private
    if not exact and not private:
        return None
    with chart_axes() as (figure, axes):
        axes.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1.2)
        if exact:
            axes.plot(*zip(*exact, strict=True), color=FIRST)
        if private:
            axes.plot(
                *zip(*private, strict=True),
                color=SECOND,
                linestyle="--",
                marker="o",
                markersize=3.5,
            )
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        svg = chart_svg(figure, name="roc")
    keys = [Key(label="exact, from the parent's copy", look="first solid")] if exact else []
    keys += [Key(label="private, from the noised bins", look="second dashed")] if private else []
    shown = [("exact", *point) for point in _thinned(exact)]
    shown += [("private", *point) for point in _thinned(private)]
    return Chart(
        name="roc",
        title="ROC curve of the final model",
        summary=f"Area under the curve: exact {score_text(run.auc.federated)}, "
        f"from the noised bins {score_text(run.auc.federated_private)}.",
        svg=svg,
        keys=(*keys, Key(label="chance", look="muted dotted")),
        columns=("Curve", "False positive rate", "True positive rate"),
        rows=tuple((kind, score_text(x), score_text(y)) for kind, x, y in shown),
    )


def _score(point: CurvePoint, metric: Literal["auc", "accuracy"]) -> float | None:
    return point.auc if metric == "auc" else point.accuracy


def _markers(count: int) -> dict[str, Any]:
    # One point has no line, and few points should be seen as the separate rounds they are.
    return {"marker": "o", "markersize": 3.5} if count <= 25 else {}


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """An axis that ends at 1 and starts a little below the lowest value, on a multiple of 0.1."""
    lowest = int((min(values) - 0.02) * 10) / 10
    return max(0.0, lowest), 1.005


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most 12 of the points, evenly spread, first and last among them."""
    if len(points) <= _MAX_TABLE_ROWS:
        return list(points)
    step = (len(points) - 1) / (_MAX_TABLE_ROWS - 1)
    return [points[round(index * step)] for index in range(_MAX_TABLE_ROWS)]


@contextmanager
def chart_axes() -> Iterator[tuple[Figure, Axes]]:
    """A figure outside pyplot's global list, with our settings and nobody's matplotlibrc."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        figure = Figure(figsize=_INCHES, layout="constrained", facecolor="none")
        axes = figure.add_subplot(facecolor="none")
        yield figure, axes


def chart_svg(figure: Figure, *, name: str) -> str:
    """The drawing as an `svg` element for a page: own ids, the page's colours and font, no address.

    The page has an element with id `{name}-caption` that says what is drawn.
    """
    target = io.StringIO()
    figure.savefig(
        target, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style).*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;]*; ", "", text)
    box = _attribute(text, "viewBox")
    head = f'<svg viewBox="{box}" role="img" aria-labelledby="{name}-caption">'
    body = text[text.index(">") + 1 :]
    # Ids must be unique in the page, and matplotlib counts from 1 in every drawing.
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(xlink:)?href="#', f'href="#{name}-', body)
    body = body.replace("url(#", f"url(#{name}-")
    for mark, variable in _VARIABLES.items():
        body = body.replace(mark, f"var({variable})")
    return head + body.strip()


def _attribute(text: str, name: str) -> str:
    found = re.search(rf'{name}="([^"]*)"', text)
    if found is None:
        raise RuntimeError(f"matplotlib: expected an svg element with {name}, found none")
    return found.group(1)
