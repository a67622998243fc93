"""What a study lead types for one study, from its file to its signed model."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedward_server.commands.options import DEFAULT_CONFIG, Config, Debug, Json, StartWeightsFile

study = typer.Typer(no_args_is_help=True, help="A study from its file to its signed model.")
lead = typer.Typer(no_args_is_help=True, help="The study lead's own key.")

StudyFile = Annotated[Path, typer.Argument(help="A study.toml.")]
LeadKey = Annotated[Path, typer.Option("--key", help="The study lead's key file (0600).")]
KeysOption = Annotated[
    Path | None,
    typer.Option(
        "--keys", help="The sites' keys as all parties confirmed them; left out, the registry's."
    ),
]
RunName = Annotated[str, typer.Argument(help="A run, as `study status` names it.")]


@lead.command("new")
def lead_new(
    key: Annotated[Path, typer.Option("--key", help="Where the new private key is written.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make the study lead's signing key; print its public half, also as words."""
    del debug
    from fedward_common.trust.signing import key_sha256
    from fedward_common.trust.words import words
    from fedward_server.study_files import new_lead

    public = new_lead(key)
    facts = {
        "key": str(key),
        "public_key": public,
        "key_sha256": key_sha256(public),
        "words": words(key_sha256(public)),
    }
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        typer.echo(f"public key {public}\nwords      {facts['words']}\nprivate key in {key}")


@study.command("init")
def study_init(
    path: Annotated[Path, typer.Argument(help="Where the study.toml is written.")],
    task: Annotated[str, typer.Option(help="The kind of task.")] = "tabular-classification",
    name: Annotated[str, typer.Option(help="The study's id.")] = "my-study",
    debug: Debug = False,
) -> None:
    """Write a commented study.toml to start from."""
    del debug
    from fedward_server.study_files import init_study

    init_study(path, kind=task, study_id=name)
    typer.echo(f"{path}: go through every value, then `fedward-server study validate {path}`")


@study.command("validate")
def study_validate(
    file: StudyFile,
    keys: Annotated[
        Path | None, typer.Option("--keys", help="The sites' keys as all parties confirmed them.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", help="The lead's key file: then the digest is final.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print one line per problem, or what the study asks, releases and costs."""
    del debug
    from fedward_common.trust.signing import key_sha256
    from fedward_server.study_files import KeysFile, Problems, check_study, read_lead_key
    from fedward_server.study_summary import summary, summary_text

    lead_key = None if key is None else key_sha256(read_lead_key(key).public_hex)
    checked = check_study(
        file,
        keys=None if keys is None else KeysFile.read(keys).site_keys,
        lead_key_sha256=lead_key,
    )
    if isinstance(checked, Problems):
        typer.echo(
            json.dumps({"problems": list(checked.lines)}) if as_json else "\n".join(checked.lines),
            err=not as_json,
        )
        raise typer.Exit(2)
    facts = summary(checked, final=keys is not None and lead_key is not None)
    typer.echo(json.dumps(facts) if as_json else summary_text(facts))


@study.command("submit")
def study_submit(
    file: StudyFile,
    key: LeadKey,
    config: Config = DEFAULT_CONFIG,
    keys: KeysOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the file for the hospitals is written.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="The words of the keys were confirmed: do not ask.")
    ] = False,
    start: Annotated[
        bool, typer.Option(help="Start a run at once, without approvals yet.")
    ] = False,
    start_weights: StartWeightsFile = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Sign a study with its lead's key and keep it on the coordinator; hospitals approve next."""
    del debug
    from fedward_server.runs import start_run
    from fedward_server.settings import load_coordinator_settings
    from fedward_server.study_files import read_lead_key
    from fedward_server.study_submit import Submission
    from fedward_server.study_summary import summary, summary_text

    settings = load_coordinator_settings(config)
    lead_key = read_lead_key(key)
    submission = Submission.prepare(settings, file, keys_file=keys)
    spec = submission.spec(lead_key)
    facts = summary(spec, final=True)
    if not as_json:
        typer.echo(summary_text(facts))
    if keys is None and not yes:
        # The registry is the coordinator's word; what counts is what the hospitals said (rules 12).
        if not sys.stdin.isatty():
            typer.echo("confirm each site's words by telephone, then repeat with --yes", err=True)
            raise typer.Exit(2)
        typer.confirm("Did every hospital confirm the words of its keys?", abort=True)
    submitted = submission.sign(spec, lead_key, out=out, start_weights=start_weights)
    run = start_run(settings, submitted.signed.canonical)[0] if start else None
    if as_json:
        typer.echo(json.dumps({**facts, "file": str(submitted.file), "run": run}))
        return
    typer.echo(f"signed: {submitted.file}: hospitals read and approve this file")
    typer.echo(f"run {run}" if run else f"then: fedward-server runs start {submitted.file}")


@study.command("status")
def study_status(
    which: Annotated[
        str | None, typer.Argument(help="A run, a study's id or the first digits of its digest.")
    ] = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show where runs stand: state, round, sites, refusals by their words."""
    del debug
    from fedward_server.settings import load_coordinator_settings
    from fedward_server.study_status import print_statuses, statuses, statuses_json

    found = statuses(load_coordinator_settings(config), which)
    if as_json:
        typer.echo(json.dumps(statuses_json(found)))
    else:
        print_statuses(found, Console())


@study.command("watch")
def study_watch(run: RunName, config: Config = DEFAULT_CONFIG, debug: Debug = False) -> None:
    """Follow a run to its end, live; exits with the class of what failed it."""
    del debug
    from fedward_server.runs import require_finished
    from fedward_server.settings import load_coordinator_settings
    from fedward_server.study_status import watch

    settings = load_coordinator_settings(config)
    watch(settings, run, Console())
    require_finished(settings, run)


@study.command("cancel")
def study_cancel(
    run: RunName, config: Config = DEFAULT_CONFIG, as_json: Json = False, debug: Debug = False
) -> None:
    """End a run for good. Rounds that were charged stay charged."""
    del debug
    from fedward_server.runs import cancel_run
    from fedward_server.settings import load_coordinator_settings

    cancel_run(load_coordinator_settings(config), run)
    typer.echo(
        json.dumps({"run": run, "status": "cancelled"})
        if as_json
        else f"run {run} cancelled; rounds that were charged stay charged"
    )


@study.command("sign-model")
def study_sign_model(
    run: RunName,
    key: LeadKey,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Sign the model of a finished run: from then on its hospitals may fetch it."""
    del debug
    from fedward_server.models import package_path
    from fedward_server.settings import load_coordinator_settings
    from fedward_server.sign_model import sign_model
    from fedward_server.study_files import read_lead_key

    settings = load_coordinator_settings(config)
    manifest = sign_model(settings.state, run, key=read_lead_key(key))
    folder = package_path(settings.state, run)
    typer.echo(
        json.dumps({"run": run, "folder": str(folder), "manifest": manifest})
        if as_json
        else f"model {manifest['model_sha256'][:12]} signed: {folder}"
    )
