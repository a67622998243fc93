"""The figures of a finished run as tables for a terminal of 80 columns or more."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedward_server.report.figures import (
    DASH,
    ComparisonRow,
    bytes_text,
    comparison,
    delta_text,
    epsilon_number,
    interval_text,
    own_figures,
    score_text,
    seconds_text,
    unit_text,
)
from fedward_server.report.result import RunFigures, parse_result
from fedward_server.sandbox.board import clean


def print_result(result: Mapping[str, Any], console: Console) -> None:
    """Prints the comparison of models, then what each site got and paid.

    Raises:
        ConfigError: `result` is not of format fedward-result/1.
    """
    run = parse_result(result)
    console.print()
    console.print(Text(clean(run.study.title), style="bold"))
    console.print(Text(f"study {clean(run.study.id)}  digest {clean(run.study.digest[:12])}"))
    console.print(
        Text(
            f"{run.rounds.said}  {bytes_text(run.total_bytes_sent)} sent  "
            f"{seconds_text(run.seconds)}"
        )
    )
    console.print()
    console.print(_models(run))
    if run.figures:
        console.print(_own(run))
    for line in _notes_on_models(run):
        console.print(Text(line))
    console.print()
    console.print(_sites(run))
    for line in _notes_on_sites(run):
        console.print(Text(line))


def _models(run: RunFigures) -> Table:
    table = _table("Held-out patients of all sites")
    table.add_column("model", vertical="bottom")
    for name in ("AUC", "accuracy", "accuracy,\nsite mean"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("figure", no_wrap=True)
    for index, row in enumerate(comparison(run)):
        table.add_row(
            # Broken here, the name of the private row takes two lines like its intervals.
            Text(row.name.replace(" (what", "\n(what")),
            _score(row.auc, row.auc_interval),
            _score(row.accuracy, row.accuracy_interval),
            Text(score_text(row.site_mean)),
            _kind(row),
            style="bold" if index == 0 else "",
        )
    return table


def _own(run: RunFigures) -> Table:
    table = _table("Figures of this kind of task")
    table.add_column("figure")
    for name in (
        "federated",
        "private",
        "alone,\nsame privacy",
        "alone,\nno privacy",
        "pooled,\nno privacy",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in own_figures(run):
        values = (row.alone, row.alone_no_privacy, row.pooled_no_privacy)
        table.add_row(
            Text(clean(row.name)),
            _score(row.federated, row.interval),
            _score(row.private, row.private_interval),
            *map(score_text, values),
        )
    return table


def _sites(run: RunFigures) -> Table:
    delta = f"δ {delta_text(run.delta)}"
    table = _table("Each site")
    table.add_column("site", overflow="fold")
    for name in (
        "held\nout",
        "AUC",
        "accuracy",
        "alone:\nAUC",
        "alone:\naccuracy",
        f"ε adm.\n{delta}",
        f"ε PLD\n{delta}",
        "sent",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for name in run.site_ids:
        site = run.per_site.get(name)
        if site is None:
            table.add_row(Text(clean(name)), *[DASH] * 8)
            continue
        table.add_row(
            Text(clean(name)),
            str(site.held_out),
            score_text(site.auc),
            score_text(site.accuracy),
            score_text(site.alone_auc),
            score_text(site.alone_accuracy),
            epsilon_number(site.epsilon_admission),
            epsilon_number(site.epsilon_pld),
            bytes_text(site.bytes_sent),
        )
    return table


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def _score(value: float | None, interval: tuple[float, float] | None) -> Text:
    text = Text(score_text(value), justify="right")
    if interval is not None:
        text.append(f"\n{interval_text(interval).replace(' to ', '-')}", style="dim")
    return text


def _kind(row: ComparisonRow) -> Text:
    return Text("private", style="cyan") if row.private else Text("exact", style="yellow")


def _notes_on_models(run: RunFigures) -> list[str]:
    notes = [
        "exact: from the sandbox parent's own copy of the held-out rows; never in a federation.",
        "private: from the noised bins the sites sent.",
    ]
    if run.accuracy.standard_error is not None:
        error = score_text(run.accuracy.standard_error)
        notes.append(f"Standard error of the accuracy from the size of the test set: {error}.")
    return notes


def _notes_on_sites(run: RunFigures) -> list[str]:
    return [
        f"ε is {unit_text(run.unit)} at δ = {delta_text(run.delta)}, add or remove one {run.unit}; "
        "adm.: what the ledger admits against, PLD: tighter, same run.",
        "A patient of two sites is covered only up to two contributions. "
        "AUC and accuracy here are exact; —: too few patients of a class, or no figure.",
    ]
