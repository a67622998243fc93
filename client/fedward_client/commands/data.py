"""What the site engineer asks about the hospital's data before a study reads them."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedward_client.commands.options import DEFAULT_CONFIG, Config, Debug, Json, load

data = typer.Typer(no_args_is_help=True, help="This hospital's data, as a study would find them.")


@data.command("check")
def data_check(
    study: Annotated[str, typer.Argument(help="A signed study (JSON), or its digest.")],
    config: Config = DEFAULT_CONFIG,
    html: Annotated[
        Path | None, typer.Option(help="Also write the report with pictures; it stays here.")
    ] = None,
    summary: Annotated[
        Path | None, typer.Option(help="Also write a rounded summary that you may send.")
    ] = None,
    validate: Annotated[
        bool,
        typer.Option(help="Hold every FHIR resource against the R4 4.0.1 schema, not a sample."),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Count what a study would find here: patients, features, out of range, unmapped."""
    del debug
    from functools import partial

    from fedward_client.data.site import SiteSource
    from fedward_client.data_check import check_data, check_form, data_report, data_summary
    from fedward_client.data_check_page import report_page, report_text
    from fedward_client.exclusions import excluded_patients
    from fedward_client.studies import find_study
    from fedward_common.trust.private_files import write_private

    settings = load(config)
    spec = find_study(settings, study).study
    found = check_data(spec, SiteSource(settings, excluded=partial(excluded_patients, settings)))
    least = settings.policy.min_cell_size
    report = data_report(spec, settings.site, found, min_cell_size=least)
    report |= check_form(spec, settings, whole=validate, min_cell_size=least)
    if html is not None:
        write_private(html, report_page(report).encode())
    if summary is not None:
        values = data_summary(spec, settings.site, found, min_cell_size=least)
        write_private(summary, json.dumps(values, indent=1).encode() + b"\n")
    typer.echo(json.dumps(report) if as_json else report_text(report))


@data.command("synthetic")
def data_synthetic(
    study: Annotated[str, typer.Argument(help="A signed study (JSON), or its digest.")],
    table: Annotated[Path, typer.Argument(help="Synthetic rows, as `synthesize` writes them.")],
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Hold synthetic rows against this hospital's own patients; the report stays here."""
    del debug
    from functools import partial

    from fedward_client.data.site import SiteSource
    from fedward_client.exclusions import excluded_patients
    from fedward_client.studies import find_study
    from fedward_client.synthetic_check import check_json, check_synthetic, check_text

    settings = load(config)
    spec = find_study(settings, study).study
    source = SiteSource(settings, excluded=partial(excluded_patients, settings))
    found = check_synthetic(
        spec,
        table,
        training=source.records(spec, part="train"),
        held_out=source.records(spec, part="test"),
        least=settings.policy.min_cell_size,
    )
    typer.echo(json.dumps(check_json(found)) if as_json else check_text(found))
