"""What a named person of the hospital decides: studies, bundles, plugins, pause and resume."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from fedward_client.commands.options import (
    DEFAULT_CONFIG,
    Config,
    Debug,
    Json,
    load,
    read_study,
)

app = typer.Typer()
studies = typer.Typer(no_args_is_help=True, help="Which studies may run at this hospital.")
approver = typer.Typer(no_args_is_help=True, help="The keys of the people who decide.")
plugin = typer.Typer(no_args_is_help=True, help="Which installed model plugins may run.")
bundle = typer.Typer(no_args_is_help=True, help="Which app bundles may reach SuperNode.")

Study = Annotated[
    str, typer.Argument(help="A signed study (JSON), or the beginning of a digest from `list`.")
]
Approver = Annotated[
    str, typer.Option("--approver", help="Your name among the approvers of site.toml.")
]
Key = Annotated[Path, typer.Option("--key", help="The file of your private key.")]
Passphrase = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="The passphrase of the key, in a private file."),
]


@studies.command("list")
def studies_list(
    config: Config = DEFAULT_CONFIG, as_json: Json = False, debug: Debug = False
) -> None:
    """Print the studies that were approved here or that wait for an approval."""
    del debug
    from fedward_client.studies import list_studies
    from fedward_client.study_text import list_text

    known = list_studies(load(config))
    typer.echo(json.dumps(known) if as_json else list_text(known))


@studies.command("show")
def studies_show(
    study: Study, config: Config = DEFAULT_CONFIG, as_json: Json = False, debug: Debug = False
) -> None:
    """Say what a study does here: what is read, what leaves, what it costs, who takes part."""
    del debug
    from fedward_client.studies import find_study, study_report
    from fedward_client.study_text import study_text

    settings = load(config)
    known = find_study(settings, study)
    report = study_report(settings, known.study, now=datetime.now(UTC))
    typer.echo(json.dumps(report) if as_json else study_text(report))


@studies.command("diff")
def studies_diff(
    study: Study, config: Config = DEFAULT_CONFIG, as_json: Json = False, debug: Debug = False
) -> None:
    """Print what changed since the version of the study that was approved before."""
    del debug
    from fedward_client.studies import find_study, study_diff
    from fedward_client.study_text import diff_text

    settings = load(config)
    diff = study_diff(settings, find_study(settings, study).study)
    typer.echo(json.dumps(diff) if as_json else diff_text(diff))


@studies.command("approve")
def studies_approve(
    study: Study,
    approver: Approver,
    key: Key,
    config: Config = DEFAULT_CONFIG,
    passphrase_file: Passphrase = None,
    debug: Debug = False,
) -> None:
    """Approve a study with your signature; it is in force at once."""
    del debug
    from fedward_client.decisions import Person, approve
    from fedward_client.studies import DECIDING_PREFIX, find_study

    settings = load(config)
    known = find_study(settings, study, least=DECIDING_PREFIX)
    person = Person(name=approver, key_file=key, passphrase_file=passphrase_file)
    said = approve(settings, known, person, now=datetime.now(UTC))
    typer.echo(f"{known.study.id} {known.study.digest} is approved by {approver} ({said[:16]})")


@studies.command("revoke")
def studies_revoke(
    study: Study,
    approver: Approver,
    key: Key,
    config: Config = DEFAULT_CONFIG,
    passphrase_file: Passphrase = None,
    debug: Debug = False,
) -> None:
    """Take an approval back with your signature; nothing more of the study leaves."""
    del debug
    from fedward_client.decisions import Person, revoke
    from fedward_client.studies import find_named

    settings = load(config)
    digest, study_id = find_named(settings, study)
    person = Person(name=approver, key_file=key, passphrase_file=passphrase_file)
    said = revoke(settings, digest, study_id, person, now=datetime.now(UTC))
    typer.echo(f"{study_id} {digest} is revoked by {approver} ({said[:16]})")


@studies.command("disclosure")
def studies_disclosure(
    signed_study: Annotated[Path, typer.Argument(help="A signed study (JSON).")],
    config: Config = DEFAULT_CONFIG,
    debug: Debug = False,
) -> None:
    """Print what the study's claim of privacy discloses, as JSON (NIST SP 800-226, DP registry)."""
    del debug
    from fedward_client.disclosure import study_disclosure

    typer.echo(json.dumps(study_disclosure(load(config), read_study(signed_study)), indent=1))


@app.command()
def pause(
    approver: Approver,
    key: Key,
    config: Config = DEFAULT_CONFIG,
    passphrase_file: Passphrase = None,
    debug: Debug = False,
) -> None:
    """Stop everything at once: until `resume` nothing but refusals leaves this hospital."""
    del debug
    from fedward_client.decisions import Person
    from fedward_client.decisions import pause as pause_site

    settings = load(config)
    person = Person(name=approver, key_file=key, passphrase_file=passphrase_file)
    said = pause_site(settings, person, now=datetime.now(UTC))
    typer.echo(f"{settings.site} is paused by {approver} ({said[:16]})")


@app.command()
def resume(
    approver: Approver,
    key: Key,
    config: Config = DEFAULT_CONFIG,
    passphrase_file: Passphrase = None,
    debug: Debug = False,
) -> None:
    """End a pause with your signature."""
    del debug
    from fedward_client.decisions import Person
    from fedward_client.decisions import resume as resume_site

    settings = load(config)
    person = Person(name=approver, key_file=key, passphrase_file=passphrase_file)
    said = resume_site(settings, person, now=datetime.now(UTC))
    typer.echo(f"{settings.site} goes on, says {approver} ({said[:16]})")


@approver.command("new")
def approver_new(
    name: Annotated[str, typer.Argument(help="The person's name.")],
    key: Key,
    passphrase_file: Passphrase = None,
    debug: Debug = False,
) -> None:
    """Make a person's key and print the lines for site.toml. Keep the key off this machine."""
    del debug
    from fedward_client.decisions import new_approver

    typer.echo(new_approver(name, key, passphrase_file=passphrase_file), nl=False)


@bundle.command("approve")
def bundle_approve(
    sha256: Annotated[str, typer.Argument(help="The bundle's SHA-256, as the release names it.")],
    approver: Approver,
    key: Key,
    config: Config = DEFAULT_CONFIG,
    passphrase_file: Passphrase = None,
    debug: Debug = False,
) -> None:
    """Let an app bundle reach SuperNode. It must be free of code all the same."""
    del debug
    from fedward_client.decisions import Person, approve_bundle

    person = Person(name=approver, key_file=key, passphrase_file=passphrase_file)
    said = approve_bundle(load(config), sha256, person, now=datetime.now(UTC))
    typer.echo(f"bundle {sha256} is approved by {approver} ({said[:16]})")


@bundle.command("revoke")
def bundle_revoke(
    sha256: Annotated[str, typer.Argument(help="The bundle's SHA-256.")],
    approver: Approver,
    key: Key,
    config: Config = DEFAULT_CONFIG,
    passphrase_file: Passphrase = None,
    debug: Debug = False,
) -> None:
    """Keep an app bundle out again."""
    del debug
    from fedward_client.decisions import Person, revoke_bundle

    person = Person(name=approver, key_file=key, passphrase_file=passphrase_file)
    said = revoke_bundle(load(config), sha256, person, now=datetime.now(UTC))
    typer.echo(f"bundle {sha256} is revoked by {approver} ({said[:16]})")


@plugin.command("show")
def plugin_show(
    model: Annotated[str, typer.Argument(help="The model's name, as studies have it.")],
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print the installed plugin for a model, the digest of its files, and whether it may run."""
    del debug
    from fedward_client.studies import plugin_report
    from fedward_client.study_text import plugin_text

    report = plugin_report(load(config), model)
    typer.echo(json.dumps(report) if as_json else plugin_text(report))


@plugin.command("approve")
def plugin_approve(
    model: Annotated[str, typer.Argument(help="The model's name, as studies have it.")],
    approver: Approver,
    key: Key,
    config: Config = DEFAULT_CONFIG,
    passphrase_file: Passphrase = None,
    debug: Debug = False,
) -> None:
    """Let the installed plugin for a model run with its present files. It sees patients' data."""
    del debug
    from fedward_client.decisions import Person, approve_plugin

    person = Person(name=approver, key_file=key, passphrase_file=passphrase_file)
    approved = approve_plugin(load(config), model, person, now=datetime.now(UTC))
    typer.echo(
        f"{approved.package} {approved.version} {approved.sha256} is approved for {model} by "
        f"{approver}. Its code runs in the worker, with the patients of every study that names it"
    )


@plugin.command("revoke")
def plugin_revoke(
    model: Annotated[str, typer.Argument(help="The model's name, as studies have it.")],
    approver: Approver,
    key: Key,
    config: Config = DEFAULT_CONFIG,
    passphrase_file: Passphrase = None,
    debug: Debug = False,
) -> None:
    """Take every approval of a model's plugin back."""
    del debug
    from fedward_client.decisions import Person, revoke_plugin

    person = Person(name=approver, key_file=key, passphrase_file=passphrase_file)
    revoke_plugin(load(config), model, person, now=datetime.now(UTC))
    typer.echo(f"No plugin is approved for {model} any more, says {approver}")
