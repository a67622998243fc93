"""The evaluation for clinicians as a part of the report: tables, calibration, decision curve."""

from dataclasses import dataclass
from typing import Final

from fedward_server.report.curves import (
    FIRST,
    MUTED,
    SECOND,
    Chart,
    Key,
    chart_axes,
    chart_svg,
)
from fedward_server.report.figures import DASH, interval_text, score_text
from fedward_server.report.result import ClinicalEvaluation, GroupRow, RunFigures

COLUMNS: Final = {
    "patients": "Patients (noised)",
    "share_positive": "Share positive",
    "auc": "AUC",
    "average_precision": "Average precision",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "calibration_slope": "Calibration slope",
    "calibration_intercept": "Calibration intercept",
    "brier": "Brier score",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A figure and its interval in words; a dash and nothing where it is withheld."""

    value: str
    interval: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRow:
    """One group of patients with its figures in the order of `COLUMNS`."""

    by: str
    group: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How far apart groups are at most, by one of Fairlearn's definitions."""

    by: str
    name: str
    cell: Cell


def group_rows(run: RunFigures) -> tuple[TableRow, ...]:
    """Everybody, then each group; empty where the study counted no groups."""
    found = run.clinical
    if found is None:
        return ()
    return tuple(_row(row) for row in (found.everybody, *found.groups))


def differences(run: RunFigures) -> tuple[Difference, ...]:
    """The differences between groups; empty where the study counted no groups."""
    found = run.clinical
    rows = () if found is None else found.fairness
    return tuple(
        Difference(
            by=by,
            name=name,
            cell=Cell(value=score_text(value), interval=interval_text((low, high))),
        )
        for by, name, value, low, high in rows
    )


def clinical_charts(run: RunFigures) -> tuple[Chart, ...]:
    """Calibration and decision curve; what the counts do not say is left out."""
    if run.clinical is None:
        return ()
    drawn = (_calibration(run.clinical), _decision(run.clinical))
    return tuple(chart for chart in drawn if chart is not None)


def _row(row: GroupRow) -> TableRow:
    def cell(name: str) -> Cell:
        if row.figures is None or name not in row.figures:
            return Cell(value=DASH)
        value, low, high = row.figures[name]
        if name == "patients":
            return Cell(value=f"{value:.0f}", interval=f"{low:.0f} to {high:.0f}")
        return Cell(value=score_text(value), interval=interval_text((low, high)))

    return TableRow(by=row.by, group=row.group, cells=tuple(cell(name) for name in COLUMNS))


def _calibration(found: ClinicalEvaluation) -> Chart | None:
    if len(found.calibration) < 2:
        return None
    predicted, observed, low, high = zip(*found.calibration, strict=True)
    with chart_axes() as (figure, axes):
        axes.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1.2)
        axes.fill_between(predicted, low, high, color=FIRST, alpha=0.2, linewidth=0)
        axes.plot(predicted, observed, color=FIRST)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.set_xlabel("predicted chance")
        axes.set_ylabel("observed frequency")
        svg = chart_svg(figure, name="calibration")
    figures = found.everybody.figures or {}
    slope, intercept = figures.get("calibration_slope"), figures.get("calibration_intercept")
    return Chart(
        name="calibration",
        title="Calibration, from the noised bins",
        summary="Slope "
        f"{score_text(slope[0] if slope else None)} (1 is right), intercept "
        f"{score_text(intercept[0] if intercept else None)} (0 is right). The band is the 95 % "
        "interval; drawn where patients are.",
        svg=svg,
        keys=(Key(label="this run", look="first solid"), Key(label="right", look="muted dotted")),
        columns=("Predicted", "Observed", "Low", "High"),
        rows=tuple(tuple(map(score_text, point)) for point in found.calibration[::2]),
    )


def _decision(found: ClinicalEvaluation) -> Chart | None:
    if not found.decision:
        return None
    threshold, benefit, low, high, everybody = zip(*found.decision, strict=True)
    with chart_axes() as (figure, axes):
        axes.fill_between(threshold, low, high, color=FIRST, alpha=0.2, linewidth=0)
        axes.plot(threshold, benefit, color=FIRST)
        axes.plot(threshold, everybody, color=SECOND, linestyle="--")
        axes.axhline(0.0, color=MUTED, linestyle=":", linewidth=1.2)
        top = max((*benefit, *everybody, 0.01))
        axes.set(xlim=(0.0, 1.0), ylim=(-0.25 * top, 1.15 * top))
        axes.set_xlabel("threshold")
        axes.set_ylabel("net benefit per patient")
        svg = chart_svg(figure, name="decision")
    return Chart(
        name="decision",
        title="Decision curve, from the noised bins",
        summary="Net benefit of acting on the model above each threshold, beside acting for "
        "everybody and for nobody (Vickers and Elkin 2006). The band is the 95 % interval.",
        svg=svg,
        keys=(
            Key(label="act on the model", look="first solid"),
            Key(label="act for everybody", look="second dashed"),
            Key(label="act for nobody", look="muted dotted"),
        ),
        columns=("Threshold", "Net benefit", "Low", "High", "For everybody"),
        rows=tuple(tuple(map(score_text, point)) for point in found.decision[::2]),
    )
