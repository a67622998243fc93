"""What the site engineer asks: is everything well, what left."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedward_client.commands.options import DEFAULT_CONFIG, Config, Debug, Json, load
from fedward_common.log.setup import configure_logging

app = typer.Typer()
journal = typer.Typer(no_args_is_help=True, help="What left this hospital.")


@app.command()
def doctor(
    config: Config = DEFAULT_CONFIG,
    study: Annotated[
        Path | None, typer.Option(help="A signed study (JSON) to check data and policy against.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check this site and say how to fix what is wrong. Exit code 0 ok, 1 fail, 2 warnings."""
    del debug
    from fedward_client.doctor import examine_site

    configure_logging(process="site")
    examination = examine_site(config, study=study)
    typer.echo(json.dumps(examination.as_json()) if as_json else examination.text())
    raise typer.Exit(examination.exit_code)


@journal.command("show")
def journal_show(
    config: Config = DEFAULT_CONFIG, as_json: Json = False, debug: Debug = False
) -> None:
    """Verify the journal's chain and print what left, by kind: objects and bytes."""
    del debug
    from fedward_client.journal_report import journal_report

    report = journal_report(load(config))
    if as_json:
        typer.echo(json.dumps(report))
        return
    console = Console()
    title = f"What left {report['site']} ({report['entries']} journal entries, chain intact)"
    table = Table(title=title)
    for column in ("direction", "kind", "objects", "bytes"):
        table.add_column(column)
    for row in report["totals"]:
        table.add_row(row["direction"], row["kind"], str(row["objects"]), f"{row['bytes']:,}")
    console.print(table)
