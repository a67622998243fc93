"""`fedward-client`: what the site engineer and the privacy officer of a hospital type."""

import json
import os
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from fedward_client.settings import SiteSettings, load_site_settings
from fedward_common.entry import run_program
from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId
from fedward_common.log.setup import configure_logging

SETTINGS_VARIABLE: Final = "FEDWARD_SITE_SETTINGS"

app = typer.Typer(
    name="fedward-client",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The hospital's side of a Fedward federation.",
)
budget = typer.Typer(no_args_is_help=True, help="The privacy budget of this hospital's patients.")
journal = typer.Typer(no_args_is_help=True, help="What left this hospital.")
app.add_typer(budget, name="budget")
app.add_typer(journal, name="journal")

Config = Annotated[
    Path, typer.Option("--config", help="The site's settings file.", show_default=True)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
Debug = Annotated[bool, typer.Option("--debug", help="Print a traceback with an error.")]
DEFAULT_CONFIG: Final = Path("/etc/fedward/site.toml")


def _load(config: Path, *, process: str = "site") -> SiteSettings:
    configure_logging(process=process)
    return load_site_settings(config)


@app.command()
def run(config: Config = DEFAULT_CONFIG, debug: Debug = False) -> None:
    """Run this site: guard, gateway, SuperNode and worker, until stopped."""
    del debug
    from fedward_client.site_run import run_site

    settings = _load(config)
    run_site(settings, settings_file=config)


@app.command(hidden=True)
def guard(config: Config) -> None:
    """The guard process (started by `run`, or by its own service unit)."""
    os.umask(0o077)
    from fedward_client.adapters.flower_records import object_ids
    from fedward_client.guard.main import run_guard

    run_guard(_load(config, process="guard"), object_ids=object_ids)


@app.command(hidden=True)
def gateway(config: Config) -> None:
    """The gateway process (started by `run`, or by its own service unit)."""
    os.umask(0o077)
    from fedward_client.adapters.key_files import read_private
    from fedward_client.gateway.process import GatewayConfig, run_gateway
    from fedward_common.trust.certificates import NodeKey

    settings = _load(config, process="gateway")
    run_gateway(
        GatewayConfig(
            coordinator=settings.coordinator.address,
            server_name=settings.coordinator.server_name,
            certificate=settings.keys.tls_certificate,
            key=settings.keys.tls_key,
            ca=settings.keys.ca,
            port=settings.ports.gateway,
            loopback=settings.folders.state / "loopback",
            guard_socket=settings.gateway_socket,
            node_public_key=NodeKey.from_openssh(read_private(settings.keys.node_key)).header,
        )
    )


@app.command(hidden=True)
def worker(config: Config) -> None:
    """The worker process (started by `run`, or by its own service unit)."""
    os.umask(0o077)
    os.environ[SETTINGS_VARIABLE] = str(config.resolve())
    # Everything a task needs is imported here once: tasks are forks of this process.
    import fedward_client.flower_app  # noqa: F401
    from fedward_client.adapters.flower_worker import run_worker
    from fedward_client.training.warm_up import warm_up

    settings = _load(config, process="worker")
    warm_up(opacus=settings.backend == "opacus")
    run_worker(
        runtime_port=settings.ports.runtime,
        secret_file=settings.folders.state / "superexec.secret",
    )


@app.command()
def rehearse(
    signed_study: Annotated[Path, typer.Argument(help="A signed study (JSON).")],
    out: Annotated[Path, typer.Option(help="Where the models are written; they stay here.")],
    config: Config = DEFAULT_CONFIG,
    draws: Annotated[int, typer.Option(min=1, help="How many times, with fresh noise.")] = 1,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a study's plan on this site alone. Nothing leaves, nothing is charged."""
    del debug
    from fedward_client.data.tabular import CsvSource
    from fedward_client.rehearse import rehearse as run_rehearsal
    from fedward_client.rehearse import write_models
    from fedward_client.training.trainer import PerformanceFlags
    from fedward_common.study.signed import SignedStudy

    settings = _load(config)
    study = SignedStudy.parse(_read(signed_study)).verify()
    flags = PerformanceFlags(device=settings.device, backend=settings.backend)
    models = run_rehearsal(
        study, SiteId(settings.site), CsvSource(settings.data), flags=flags, draws=draws
    )
    paths = [str(path) for path in write_models(models, out)]
    typer.echo(
        json.dumps({"site": settings.site, "models": paths}) if as_json else "\n".join(paths)
    )


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


@app.command()
def audit(
    signed_study: Annotated[Path, typer.Argument(help="A signed study (JSON).")],
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Probe how this site would run a study, on made-up patients. Nothing is read or charged."""
    del debug
    from fedward_client.audit import audit_json, audit_study, audit_text
    from fedward_client.training.trainer import PerformanceFlags
    from fedward_common.study.signed import SignedStudy

    settings = _load(config)
    study = SignedStudy.parse(_read(signed_study)).verify()
    flags = PerformanceFlags(device=settings.device, backend=settings.backend)
    report = audit_study(study, SiteId(settings.site), flags=flags)
    typer.echo(json.dumps(audit_json(report)) if as_json else audit_text(report))
    if not report.passed:
        raise typer.Exit(1)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: expected a signed study, found {error.strerror}") from error


@budget.command("show")
def budget_show(
    config: Config = DEFAULT_CONFIG, as_json: Json = False, debug: Debug = False
) -> None:
    """Print what this hospital's patients have spent, per study and in total."""
    del debug
    from fedward_client.budget import budget_report, budget_text

    report = budget_report(_load(config))
    typer.echo(json.dumps(report) if as_json else budget_text(report))


@journal.command("show")
def journal_show(
    config: Config = DEFAULT_CONFIG, as_json: Json = False, debug: Debug = False
) -> None:
    """Verify the journal's chain and print what left, by kind: objects and bytes."""
    del debug
    from fedward_client.journal_report import journal_report

    report = journal_report(_load(config))
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


def main() -> None:
    """The program: exit codes and one-line errors as `run_program` says."""
    run_program(app, name="fedward-client")
