"""What the operators of a federation type: who belongs to it."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedward_server.commands.options import DEFAULT_CONFIG, Config, Debug, Json

site = typer.Typer(no_args_is_help=True, help="Hospitals: invite, grant, revoke.")
operator = typer.Typer(no_args_is_help=True, help="The people who grant and revoke.")

OperatorName = Annotated[
    str, typer.Option("--operator", help="Your name among the operators of coordinator.toml.")
]
OperatorKey = Annotated[Path, typer.Option("--key", help="The file of your key.")]
IssuingPassphrase = Annotated[
    Path | None,
    typer.Option(help="The issuing key's passphrase, if coordinator.toml's file is not yours."),
]
SiteName = Annotated[str, typer.Argument(help="The hospital's name in the federation.")]


@operator.command("new")
def operator_new(
    name: Annotated[str, typer.Argument(help="A person's name.")],
    key: Annotated[Path, typer.Option(help="Where the private key is written (0600).")],
    debug: Debug = False,
) -> None:
    """Make an operator's key and print the lines for coordinator.toml."""
    del debug
    from fedward_server.operators import new_operator

    typer.echo(new_operator(name, key), nl=False)


@site.command("invite")
def site_invite(
    name: SiteName,
    out: Annotated[Path | None, typer.Option(help="Write it to a file (0600) instead.")] = None,
    config: Config = DEFAULT_CONFIG,
    debug: Debug = False,
) -> None:
    """Invite a hospital: one line, a secret, good for 24 hours and one request."""
    del debug
    from fedward_server.settings import load_coordinator_settings
    from fedward_server.site_commands import invite_site

    text = invite_site(load_coordinator_settings(config), name, out=out)
    typer.echo(text if out is None else f"invite written to {out}")


@site.command("review")
def site_review(
    name: SiteName, config: Config = DEFAULT_CONFIG, as_json: Json = False, debug: Debug = False
) -> None:
    """Show the request of a hospital: compare the words over the telephone."""
    del debug
    from fedward_server.settings import load_coordinator_settings
    from fedward_server.site_commands import review_site

    found = review_site(load_coordinator_settings(config), name)
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(f"{name} of {found['federation']}, asked {found['submitted_at']}\n{found['words']}")
    by = ", ".join(found["granted_by"]) or "nobody"
    typer.echo(f"granted by {by}; {found['operators_needed']} operators are needed")


@site.command("grant")
def site_grant(
    name: SiteName,
    operator_name: OperatorName,
    key: OperatorKey,
    heard: Annotated[str, typer.Option("--words", help="The words that the hospital reads out.")],
    passphrase_file: IssuingPassphrase = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Grant a hospital's request with your signature; the last one needed makes it a member."""
    del debug
    from fedward_server.settings import load_coordinator_settings
    from fedward_server.site_commands import Operator, grant_site

    who = Operator(name=operator_name, key_file=key, passphrase_file=passphrase_file)
    found = grant_site(load_coordinator_settings(config), name, who, compared=heard)
    typer.echo(json.dumps(found) if as_json else f"{name}: {found['status']}")


@site.command("deny")
def site_deny(
    name: SiteName,
    operator_name: OperatorName,
    key: OperatorKey,
    config: Config = DEFAULT_CONFIG,
    debug: Debug = False,
) -> None:
    """Deny a hospital's request; one operator is enough."""
    del debug
    from fedward_server.settings import load_coordinator_settings
    from fedward_server.site_commands import Operator, deny_site

    deny_site(load_coordinator_settings(config), name, Operator(name=operator_name, key_file=key))
    typer.echo(f"{name}: denied")


@site.command("revoke")
def site_revoke(
    name: SiteName,
    operator_name: OperatorName,
    key: OperatorKey,
    config: Config = DEFAULT_CONFIG,
    debug: Debug = False,
) -> None:
    """End a hospital's membership: its next call is refused. One operator is enough."""
    del debug
    from fedward_server.settings import load_coordinator_settings
    from fedward_server.site_commands import Operator, revoke_site

    revoke_site(load_coordinator_settings(config), name, Operator(name=operator_name, key_file=key))
    typer.echo(f"{name}: revoked")


@site.command("import")
def site_import(
    file: Annotated[Path, typer.Argument(help="A request that a site wrote with --offline.")],
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Take a carried request; show it as `review` does."""
    del debug
    from fedward_server.settings import load_coordinator_settings
    from fedward_server.site_commands import import_request

    found = import_request(load_coordinator_settings(config), file)
    typer.echo(json.dumps(found) if as_json else f"{found['site']}\n{found['words']}")


@site.command("export")
def site_export(
    name: SiteName,
    out: Annotated[Path, typer.Argument(help="The file to carry to the site.")],
    config: Config = DEFAULT_CONFIG,
    debug: Debug = False,
) -> None:
    """Write the grant of a hospital to a file, to be carried to it."""
    del debug
    from fedward_server.settings import load_coordinator_settings
    from fedward_server.site_commands import export_grant

    export_grant(load_coordinator_settings(config), name, out)
    typer.echo(f"grant written to {out}")


@site.command("list")
def site_list(
    config: Config = DEFAULT_CONFIG,
    keys: Annotated[
        bool, typer.Option("--keys", help="Print the keys document that `study` reads.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List members, former members, waiting requests and open invites."""
    del debug
    from fedward_server.settings import load_coordinator_settings
    from fedward_server.site_commands import list_sites
    from fedward_server.study_files import registry_keys

    settings = load_coordinator_settings(config)
    if keys:
        typer.echo(json.dumps(registry_keys(settings).model_dump(mode="json")))
        return
    found = list_sites(settings)
    if as_json:
        typer.echo(json.dumps(found))
        return
    for entry in found:
        ends = f", certificate until {entry['not_after']}" if entry.get("not_after") else ""
        typer.echo(f"{entry['site']}: {entry['status']}{ends}")


@site.command("forget-ledger")
def site_forget_ledger(
    name: SiteName, config: Config = DEFAULT_CONFIG, debug: Debug = False
) -> None:
    """Let a site's budget ledger begin anew, after its hospital said why an older one is there."""
    del debug
    from fedward_common.ids import parse_site_id
    from fedward_server.adapters.ledger_heads import HeadsFile
    from fedward_server.settings import load_coordinator_settings

    HeadsFile(load_coordinator_settings(config).state).forget(parse_site_id(name))
    typer.echo(f"site {name}: its next ledger head is taken as it comes")
