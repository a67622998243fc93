"""What the site engineer asks: is everything well, what left."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from fedward_client.commands.options import DEFAULT_CONFIG, Config, Debug, Json, load
from fedward_common.log.setup import configure_logging

app = typer.Typer()
journal = typer.Typer(no_args_is_help=True, help="What left this hospital.")

Since = Annotated[
    str | None, typer.Option("--since", help="Only from this date or time on (ISO 8601, UTC).")
]


@app.command()
def enrol(
    invite: Annotated[str | None, typer.Argument(hidden=True)] = None,
    invite_file: Annotated[
        str | None, typer.Option("--invite-file", help="The invite's file; - for stdin.")
    ] = None,
    offline: Annotated[
        Path | None, typer.Option("--offline", help="Write the request here, to be carried.")
    ] = None,
    install: Annotated[
        Path | None, typer.Option("--install", help="The grant that was carried back.")
    ] = None,
    config: Config = DEFAULT_CONFIG,
    state: Annotated[
        Path | None, typer.Option(help="For what this site keeps, keys included.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="For sockets; best in memory.")] = None,
    proxy: Annotated[str | None, typer.Option(help="http://host:port, to the coordinator.")] = None,
    proxy_auth_file: Annotated[
        Path | None, typer.Option(help="Private file: user:password for the proxy.")
    ] = None,
    passphrase_file: Annotated[
        Path | None, typer.Option(help="Private file: encrypt the keys under its one line.")
    ] = None,
    wait_hours: Annotated[float, typer.Option(min=0, help="How long to wait for a grant.")] = 24.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make this hospital a member: its keys, a request, the grant, a site.toml."""
    del debug
    from fedward_client import enrol as steps

    if invite is not None:
        steps.refuse_argument()
    configure_logging(process="site")
    os.umask(0o077)
    options = steps.SiteOptions(
        proxy=proxy,
        proxy_auth_file=proxy_auth_file,
        passphrase_file=passphrase_file,
        state=state,
        run=run,
    )
    places = steps.Places.of(config, options)
    say = steps.teller(quiet=as_json)
    if install is not None:
        made = steps.install_grant(install, places, options)
    elif invite_file is None:
        steps.refuse_nothing()
    elif offline is not None:
        asked = steps.write_request(
            steps.read_invite(invite_file), places, options, out=offline, say=say
        )
        typer.echo(steps.carried_text(asked, offline, as_json=as_json))
        return
    else:
        made = steps.enrol(
            steps.read_invite(invite_file),
            places,
            options,
            say=say,
            wait_seconds=wait_hours * 3600,
        )
    typer.echo(steps.enrolled_text(made, as_json=as_json))


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
    config: Config = DEFAULT_CONFIG,
    since: Since = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Verify the journal's chain and print what left, by kind: objects and bytes."""
    del debug
    from fedward_client.journal_report import journal_report, parse_since
    from fedward_client.journal_text import totals_text

    report = journal_report(load(config), since=parse_since(since) if since else None)
    typer.echo(json.dumps(report) if as_json else totals_text(report))


@journal.command("list")
def journal_list(
    config: Config = DEFAULT_CONFIG,
    since: Since = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print every object that came in or left, one per line."""
    del debug
    from fedward_client.journal_report import journal_objects, parse_since
    from fedward_client.journal_text import objects_text

    report = journal_objects(load(config), since=parse_since(since) if since else None)
    typer.echo(json.dumps(report) if as_json else objects_text(report))


@journal.command("month")
def journal_month_command(
    month: Annotated[str, typer.Argument(help="YYYY-MM, in UTC.")],
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Sum up one month: what left for which study, what was held back."""
    del debug
    from fedward_client.journal_report import journal_month
    from fedward_client.journal_text import month_text

    report = journal_month(load(config), month)
    typer.echo(json.dumps(report) if as_json else month_text(report))


@journal.command("compare")
def journal_compare(
    coordinator_log: Annotated[Path, typer.Argument(help="The coordinator's edge log (JSONL).")],
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare the journal with the coordinator's log, object by object. Exit code 1: not equal."""
    del debug
    from fedward_client.journal_report import compare_logs
    from fedward_client.journal_text import comparison_text

    settings = load(config)
    report = compare_logs(settings.audit_path, coordinator_log, site=settings.site)
    typer.echo(json.dumps(report) if as_json else comparison_text(report))
    if not report["agree"]:
        raise typer.Exit(1)
