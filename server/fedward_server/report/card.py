"""The model card of a run: Markdown that travels with the model."""

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedward_server.report import disclosure, figures
from fedward_server.report.result import parse_result

# The last three keep an address or an e-mail address from becoming a link by itself.
_MARKDOWN = re.compile(r"([\\`*_\[\]#|~!<>&]|:(?=//)|(?<=www)\.|@)", re.IGNORECASE)


def model_card(result: Mapping[str, Any]) -> str:
    """The card of `result`: use, data, training, privacy, figures and limits of the model.

    Guarantees:
        Text from the study can make no link, image, heading, table cell or HTML element.
        Every epsilon stands with its delta and unit; a figure that does not exist is a dash.

    Raises:
        ConfigError: `result` is not of format fedward-result/1.
    """
    run = parse_result(result)
    return (
        _environment()
        .get_template("card.md.j2")
        .render(
            run=run,
            rows=figures.comparison(run),
            own_rows=figures.own_figures(run),
            task=figures.describe(run.study.task),
            study_facts=disclosure.facts_of_study(run),
            left=disclosure.what_left(run),
            cost=disclosure.what_it_cost(run),
            uncovered=disclosure.what_is_not_covered(),
            sheet=disclosure.disclosure_sheet(run),
            delta=figures.delta_text(run.delta),
            unit=figures.unit_text(run.unit),
        )
    )


def markdown_text(value: object) -> str:
    """`value` as one line of Markdown that shows exactly its characters."""
    line = " ".join(str(value).split())
    return _MARKDOWN.sub(r"\\\1", line)


@cache
def _environment() -> Environment:
    environment = Environment(  # noqa: S701 - Markdown; markdown_text escapes what the study says
        loader=PackageLoader("fedward_server", "report/templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        md=markdown_text,
        # A JSON string is a YAML string too, whatever it holds.
        yaml=json.dumps,
        score=figures.score_text,
        interval=figures.interval_text,
        epsilon=figures.epsilon_number,
    )
    return environment
