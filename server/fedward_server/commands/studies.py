"""What a study lead types: plan, studies, runs, models, and a whole federation on one machine."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedward_server.commands.options import (
    DEFAULT_CONFIG,
    Config,
    Debug,
    Json,
    StartWeightsFile,
    read_bytes,
)

app = typer.Typer()
runs = typer.Typer(no_args_is_help=True, help="Runs of signed studies.")
studies = typer.Typer(no_args_is_help=True, help="Study files and signed studies.")
model = typer.Typer(no_args_is_help=True, help="Model packages.")


@app.command()
def sandbox(
    study: Annotated[
        Path | None, typer.Argument(help="A study.toml; left out, the study that fits --data.")
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER: a site of the study and the folder of its patients.csv."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A folder of a known data set (fed_heart_disease).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("runs/demo"),
    kill: Annotated[
        list[str] | None,
        typer.Option(help="edge, SITE:gateway, ...: kill -9 this process in the second round."),
    ] = None,
    start_weights: StartWeightsFile = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a whole federation on this machine, as real processes, and report what it reached."""
    del debug
    from fedward_common.entry import end_in_order
    from fedward_server.sandbox.run import Inputs, run_sandbox

    end_in_order()
    inputs = Inputs.parse(study=study, sites=site or [], data=data, start_weights=start_weights)
    result = run_sandbox(inputs, out=out, quiet=as_json, kill=kill or ())
    if as_json:
        typer.echo(json.dumps(result))


@app.command("make-cohort")
def make_cohort(
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    sites: Annotated[int, typer.Option(help="Hospitals; the last one has no images.")] = 3,
    patients: Annotated[int, typer.Option(help="Made-up patients of each hospital.")] = 400,
    seed: Annotated[int, typer.Option(help="Equal arguments give equal bytes.")] = 1,
    families: Annotated[bool, typer.Option(help="Some are kin; a family is the unit.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make up hospitals with DICOM, FHIR and VCF folders, and a study for `sandbox --data`."""
    del debug
    from fedward_server.cohort.make import make_cohort as make

    made = make(out, sites=sites, patients=patients, seed=seed, families=families)
    if as_json:
        typer.echo(json.dumps(made))
        return
    typer.echo(
        f"{len(made['sites'])} made-up hospitals in {out}, no real person; "
        f"{made['without_images']} has no images\nthen: fedward-server sandbox --data {out}"
    )


@app.command()
def plan(
    study: Annotated[Path | None, typer.Argument(help="A study.toml; left out, numbers.")] = None,
    patients: Annotated[str | None, typer.Option(help="Patients per site: 200,170,30,85.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="Budget of the whole study.")] = None,
    delta: Annotated[float | None, typer.Option(help="At most 1 / (10 N).")] = None,
    steps: Annotated[list[str] | None, typer.Option(help="40, or rounds x steps: 8x5.")] = None,
    sampling: Annotated[list[float] | None, typer.Option(help="Sampling probability.")] = None,
    evaluation_noise: Annotated[float | None, typer.Option(help="Noise of the release.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a privacy budget buys: noise, sampling and steps, priced by both accountants."""
    del debug
    from fedward_server.plan_command import plan_from_arguments, plan_json, print_plan

    found = plan_from_arguments(
        study,
        patients=patients,
        epsilon=epsilon,
        delta=delta,
        steps=steps or (),
        sampling=sampling or (),
        evaluation_noise=evaluation_noise,
    )
    if as_json:
        typer.echo(json.dumps(plan_json(found)))
    else:
        print_plan(found)


@app.command()
def bundle(as_json: Json = False, debug: Debug = False) -> None:
    """Print the SHA-256 of this release's code-free app bundle, which every site approves once."""
    del debug
    from fedward_server.adapters.flower_control import build_bundle
    from fedward_server.bundle import bundle_folder

    sha256 = build_bundle(bundle_folder()).sha256
    typer.echo(json.dumps({"bundle_sha256": sha256}) if as_json else sha256)


@runs.command("start")
def runs_start(
    signed_study: Annotated[Path, typer.Argument(help="A signed study (JSON).")],
    config: Config = DEFAULT_CONFIG,
    start_weights: StartWeightsFile = None,
    wait: Annotated[bool, typer.Option(help="Follow the run to its end.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Start a run of a signed study on the running coordinator."""
    del debug
    from fedward_server.runs import follow, require_finished, start_run
    from fedward_server.settings import load_coordinator_settings

    settings = load_coordinator_settings(config)
    name, _ = start_run(
        settings, read_bytes(signed_study, "a signed study"), start_weights=start_weights
    )
    if wait:
        for event in follow(settings, name):
            if not as_json:
                typer.echo(json.dumps(event))
        require_finished(settings, name)
    typer.echo(json.dumps({"run": name}) if as_json else f"run {name}")


@studies.command("show")
def studies_show(
    signed_study: Annotated[Path, typer.Argument(help="A signed study (JSON).")],
    debug: Debug = False,
) -> None:
    """Verify a signed study and print its digest and what it asks of a site."""
    del debug
    from fedward_common.study.signed import SignedStudy

    spec = SignedStudy.parse(read_bytes(signed_study, "a signed study")).verify()
    Console().print_json(json.dumps({"digest": spec.digest, "study": spec.model_dump(mode="json")}))


@studies.command("constants")
def studies_constants(
    statistics: Annotated[Path, typer.Argument(help="The statistics.json of a finished study.")],
    debug: Debug = False,
) -> None:
    """Print low, high and fill of each column as lines for the data.columns of a next study."""
    del debug
    from fedward_server.report.statistics import constants_toml, read_statistics

    typer.echo(constants_toml(read_statistics(statistics)), nl=False)


@model.command("verify")
def model_verify(
    folder: Annotated[Path, typer.Argument(help="A model package.")],
    key: Annotated[
        str | None, typer.Option(help="The study lead's public key (hexadecimal) to insist on.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Verify a model package's signature and digests; reads nothing that could run."""
    del debug
    from fedward_server.adapters.model_package import verify_package

    manifest = verify_package(folder, public_key=key)
    if as_json:
        typer.echo(json.dumps(manifest))
    else:
        typer.echo(f"model {manifest['model_sha256'][:12]} of study {manifest['study']['id']}: ok")
