"""What the privacy officer asks: what a study does, what it costs, what it would reach alone."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedward_client.commands.options import DEFAULT_CONFIG, Config, Debug, Json, load, read_study
from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId

app = typer.Typer()
budget = typer.Typer(no_args_is_help=True, help="The privacy budget of this hospital's patients.")


@app.command()
def rehearse(
    signed_study: Annotated[Path, typer.Argument(help="A signed study (JSON).")],
    out: Annotated[Path, typer.Option(help="Where the models are written; they stay here.")],
    config: Config = DEFAULT_CONFIG,
    draws: Annotated[int, typer.Option(min=1, help="How many times, with fresh noise.")] = 1,
    start_weights: Annotated[
        Path | None, typer.Option(help="The safetensors file that the study begins with.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a study's plan on this site alone. Nothing leaves, nothing is charged."""
    del debug
    from functools import partial

    from fedward_client.data.site import SiteSource
    from fedward_client.exclusions import excluded_patients
    from fedward_client.rehearse import rehearse as run_rehearsal
    from fedward_client.rehearse import write_models
    from fedward_client.training.trainer import PerformanceFlags
    from fedward_common.study.signed import SignedStudy

    settings = load(config)
    study = SignedStudy.parse(read_study(signed_study)).verify()
    flags = PerformanceFlags(
        device=settings.device,
        backend=settings.backend,
        precision=settings.precision,
        replicas=settings.replicas,
    )
    models = run_rehearsal(
        study,
        SiteId(settings.site),
        SiteSource(settings, excluded=partial(excluded_patients, settings)),
        flags=flags,
        draws=draws,
        start_weights=None if start_weights is None else read_study(start_weights),
    )
    paths = [str(path) for path in write_models(models, out)]
    typer.echo(
        json.dumps({"site": settings.site, "models": paths}) if as_json else "\n".join(paths)
    )


@app.command()
def audit(
    what: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL-OR-STUDY", help="A model package (folder) or a signed study (JSON)."
        ),
    ],
    config: Config = DEFAULT_CONFIG,
    study: Annotated[
        Path | None, typer.Option(help="The signed study, where the package brings none.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="The lead's public key (hexadecimal) instead of this site's approvals."),
    ] = None,
    canaries: Annotated[
        bool, typer.Option(help="Also one whole run with canaries, and gradient inversion.")
    ] = True,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Probe how this site would run a study, on made-up patients. Nothing is read or charged.

    Of a model package, everything starts from its weights, as one more round would.
    """
    del debug
    from fedward_client.audit import ReleasedModel, audit_json, audit_study, audit_text
    from fedward_client.models import approved_studies, open_model
    from fedward_client.training.trainer import PerformanceFlags
    from fedward_common.study.signed import SignedStudy

    settings = load(config)
    model = None
    if what.is_dir():
        approved = approved_studies(settings) if key is None else None
        opened = open_model(what, approved=approved, public_key=key, study_file=study)
        model, spec = ReleasedModel(weights=opened.weights, sha256=opened.sha256), opened.study
    elif study is None and key is None:
        spec = SignedStudy.parse(read_study(what)).verify()
    else:
        raise ConfigError(
            f"{what}: expected a model package (a folder) with --study or --key, found none"
        )
    flags = PerformanceFlags(
        device=settings.device,
        backend=settings.backend,
        precision=settings.precision,
        replicas=settings.replicas,
    )
    report = audit_study(spec, SiteId(settings.site), flags=flags, canaries=canaries, model=model)
    typer.echo(json.dumps(audit_json(report)) if as_json else audit_text(report))
    if not report.passed:
        raise typer.Exit(1)


@budget.command("show")
def budget_show(
    config: Config = DEFAULT_CONFIG,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw epsilon over time to this SVG file.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print what this hospital's patients have spent, per study and in total."""
    del debug
    from fedward_client.budget import budget_report, budget_text

    settings = load(config)
    if plot is not None:
        from fedward_client.budget_plot import write_budget_plot

        write_budget_plot(settings, plot)
    report = budget_report(settings)
    typer.echo(json.dumps(report) if as_json else budget_text(report))


@budget.command("explain")
def budget_explain(
    config: Config = DEFAULT_CONFIG,
    study: Annotated[
        Path | None, typer.Option(help="A signed study (JSON) to price as one more.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say in words what the budget is made of, what one more study costs, what is not covered."""
    del debug
    from fedward_client.budget_explain import explain_report, explain_text
    from fedward_common.study.signed import SignedStudy

    settings = load(config)
    more = None if study is None else SignedStudy.parse(read_study(study)).verify()
    report = explain_report(settings, study=more)
    typer.echo(json.dumps(report) if as_json else explain_text(report))


@budget.command("verify")
def budget_verify(
    config: Config = DEFAULT_CONFIG, as_json: Json = False, debug: Debug = False
) -> None:
    """Re-check ledger, mark and journal offline and recompute every figure. Exit code 0 or 10."""
    del debug
    from fedward_client.budget_verify import verify_budget

    found = verify_budget(load(config))
    typer.echo(json.dumps(found.as_json()) if as_json else found.text())
    raise typer.Exit(found.exit_code)
