"""The report of a run: one HTML page that needs nothing but a browser."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedward_common.trust.private_files import write_atomically
from fedward_server.report import clinical, disclosure, figures
from fedward_server.report.curves import charts
from fedward_server.report.result import parse_result


def write_report(result: Mapping[str, Any], path: Path) -> None:
    """Writes the page of `result` to `path`, completely or not at all.

    Guarantees:
        The page makes no request: style and drawings are inline, there is no script, and its
        content policy forbids both. Every text from the study is escaped.
        Every epsilon stands with its delta and unit; a figure that does not exist is a dash.

    Raises:
        ConfigError: `result` is not of format fedward-result/1.
    """
    write_atomically(path, render_report(result).encode("utf-8"))


def render_report(result: Mapping[str, Any]) -> str:
    """The page of `result` as text. Raises ConfigError like `write_report`."""
    run = parse_result(result)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            rows=figures.comparison(run),
            own_rows=figures.own_figures(run),
            charts=charts(run),
            groups=clinical.group_rows(run),
            group_columns=tuple(clinical.COLUMNS.values()),
            differences=clinical.differences(run),
            clinical_charts=clinical.clinical_charts(run),
            study_facts=disclosure.facts_of_study(run),
            left=disclosure.what_left(run),
            cost=disclosure.what_it_cost(run),
            uncovered=disclosure.what_is_not_covered(),
            accesses=disclosure.data_accesses(run),
            sheet=disclosure.disclosure_sheet(run),
            delta=figures.delta_text(run.delta),
            unit=figures.unit_text(run.unit),
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("fedward_server", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        score=figures.score_text,
        interval=figures.interval_text,
        epsilon=figures.epsilon_number,
        size=figures.bytes_text,
        duration=figures.seconds_text,
        prose=_prose,
    )
    return environment


def _prose(text: str) -> Markup:
    """`text`, escaped, with "δ = 2e-4" kept on one line (browsers break at the hyphen)."""
    parts = re.split(r"([εδ] = [^\s,;)]+)", text)
    kept = Markup('<span class="nb">{}</span>')
    return Markup("").join(kept.format(part) if i % 2 else part for i, part in enumerate(parts))
