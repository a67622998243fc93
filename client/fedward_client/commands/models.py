"""What came of this hospital's studies."""

import json
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import Progress

from fedward_client.commands.options import DEFAULT_CONFIG, Config, Debug, Json, load

OUT: Final = Path("models")

model = typer.Typer(no_args_is_help=True, help="The models that came of this site's studies.")


@model.command("list")
def model_list(
    config: Config = DEFAULT_CONFIG, as_json: Json = False, debug: Debug = False
) -> None:
    """List the signed models of this site's studies on the coordinator."""
    del debug
    from fedward_client.model_command import list_models
    from fedward_client.models import approved_studies, offers_json, offers_text

    settings = load(config)
    offers, approved = list_models(settings), approved_studies(settings)
    typer.echo(
        json.dumps(offers_json(offers, approved=approved))
        if as_json
        else offers_text(offers, approved=approved)
    )


@model.command("fetch")
def model_fetch(
    which: Annotated[str, typer.Argument(help="A run of `model list`, or its study's id.")],
    config: Config = DEFAULT_CONFIG,
    out: Annotated[
        Path, typer.Option(help="The folder that the package's folder goes into.")
    ] = OUT,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fetch a model, going on where an earlier try broke off; kept only if it verifies."""
    del debug
    from fedward_client.model_command import fetch_model

    settings = load(config)
    with Progress(console=Console(stderr=True), disable=as_json, transient=True) as bar:
        task = bar.add_task("fetching", total=None)
        fetched = fetch_model(
            settings,
            which,
            out=out,
            progress=lambda done, size: bar.update(task, completed=done, total=size),
        )
    if as_json:
        typer.echo(
            json.dumps({"folder": str(fetched.folder), "new": fetched.new, **fetched.manifest})
        )
    else:
        typer.echo(f"{fetched.folder}: {'fetched and ' if fetched.new else ''}verified")


@model.command("verify")
def model_verify(
    folder: Annotated[Path, typer.Argument(help="A model package.")],
    config: Config = DEFAULT_CONFIG,
    key: Annotated[
        str | None,
        typer.Option(help="The lead's public key (hexadecimal) instead of this site's approvals."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Verify a model package: the lead of an approved study signed it, nothing was changed."""
    del debug
    from fedward_client.models import approved_studies, verify_model

    approved = approved_studies(load(config)) if key is None else None
    manifest = verify_model(folder, approved=approved, public_key=key)
    if as_json:
        typer.echo(json.dumps(manifest))
    else:
        typer.echo(f"model {manifest['model_sha256'][:12]} of study {manifest['study']['id']}: ok")
