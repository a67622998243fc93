"""What the operator of a coordinator types: its processes and its health."""

import json
import os
from pathlib import Path
from typing import Annotated, Final

import typer

from fedward_common.log.setup import configure_logging
from fedward_server.commands.options import DEFAULT_CONFIG, Config, Debug, Json

STATE: Final = Path("state")
RUN: Final = Path("run")

app = typer.Typer()


@app.command()
def serve(config: Config = DEFAULT_CONFIG, debug: Debug = False) -> None:
    """Run the coordinator: SuperLink, ServerApp and edge, until stopped."""
    del debug
    from fedward_server.serve import serve as run_serve
    from fedward_server.settings import load_coordinator_settings

    configure_logging(process="coordinator")
    run_serve(load_coordinator_settings(config), settings_file=config)


@app.command(hidden=True)
def edge(config: Config) -> None:
    """The edge process (started by `serve`, or by its own service unit)."""
    os.umask(0o077)
    from fedward_server.edge.process import run_edge
    from fedward_server.settings import load_coordinator_settings

    configure_logging(process="edge")
    run_edge(load_coordinator_settings(config))


@app.command(hidden=True, name="keep-runs")
def keep_runs(config: Config) -> None:
    """The process that starts unfinished runs again (started by `serve`)."""
    os.umask(0o077)
    from fedward_server.keep_runs import keep_runs as run_keeper
    from fedward_server.settings import load_coordinator_settings

    configure_logging(process="runs")
    run_keeper(load_coordinator_settings(config))


@app.command()
def doctor(config: Config = DEFAULT_CONFIG, as_json: Json = False, debug: Debug = False) -> None:
    """Check the coordinator and say how to fix what is wrong. Exit code 0 ok, 1 fail, 2 warn."""
    del debug
    from fedward_server.doctor import examine_coordinator

    configure_logging(process="coordinator")
    examination = examine_coordinator(config)
    typer.echo(json.dumps(examination.as_json()) if as_json else examination.text())
    raise typer.Exit(examination.exit_code)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where coordinator.toml, keys and state go.")],
    federation: Annotated[str, typer.Option(help="A domain name, such as north.example.org.")],
    host: Annotated[str, typer.Option(help="The name by which sites reach this machine.")],
    root_folder: Annotated[
        Path, typer.Option(help="Where the root's encrypted key goes: a medium.")
    ],
    passphrase_file: Annotated[
        Path, typer.Option(help="A file (0600) with the root key's passphrase; - is stdin.")
    ],
    issuing_passphrase_file: Annotated[
        Path | None, typer.Option(help="Encrypts the issuing key; the coordinator reads it here.")
    ] = None,
    listen_host: Annotated[str, typer.Option(help="The address to listen on.")] = "0.0.0.0",  # noqa: S104
    port: Annotated[int, typer.Option(help="The edge's port.")] = 9443,
    enrolment_port: Annotated[int, typer.Option(help="The enrolment listener's port.")] = 9444,
    state: Annotated[Path, typer.Option(help="Relative to the folder, or absolute.")] = STATE,
    run: Annotated[Path, typer.Option(help="For sockets; a short path.")] = RUN,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a federation: offline root, issuing authority, edge certificate, coordinator.toml."""
    del debug
    os.umask(0o077)
    from datetime import UTC, datetime

    from fedward_server.adapters.secret_files import read_passphrase
    from fedward_server.init import NewFederation, init_federation

    issuing = None if issuing_passphrase_file is None else read_passphrase(issuing_passphrase_file)
    made = init_federation(
        NewFederation(
            folder=folder,
            federation=federation,
            host=host,
            root_folder=root_folder,
            root_passphrase=read_passphrase(passphrase_file),
            issuing_passphrase=issuing,
            issuing_passphrase_file=issuing_passphrase_file,
            listen_host=listen_host,
            port=port,
            enrolment_port=enrolment_port,
            state=state,
            run=run,
        ),
        now=datetime.now(UTC),
    )
    if as_json:
        typer.echo(json.dumps(made))
        return
    typer.echo(f"made {made['settings']}\nroot key {made['root_key']}: put it into a safe now")
    typer.echo(f"root {made['root_words']}")


@app.command(hidden=True, name="enrol-listener")
def enrol_listener(config: Config) -> None:
    """The enrolment listener's process (started by `serve`, or by its own service unit)."""
    os.umask(0o077)
    from fedward_server.enrolment.process import run_enrolment_listener
    from fedward_server.settings import load_coordinator_settings

    configure_logging(process="enrolment")
    run_enrolment_listener(load_coordinator_settings(config))


@app.command("renew-certificate")
def renew_certificate(config: Config = DEFAULT_CONFIG, debug: Debug = False) -> None:
    """Give the edge a new key and certificate (90 days); restart `serve` afterwards."""
    del debug
    os.umask(0o077)
    from datetime import UTC, datetime

    from fedward_server.init import renew_server_certificate
    from fedward_server.settings import load_coordinator_settings

    ends = renew_server_certificate(load_coordinator_settings(config), now=datetime.now(UTC))
    typer.echo(f"good until {ends.date()}; restart the coordinator")


@app.command("renew-authority")
def renew_authority(
    root_key: Annotated[Path, typer.Argument(help="root.p12 on its medium.")],
    passphrase_file: Annotated[
        Path, typer.Option(help="A file (0600) with the root key's passphrase; - is stdin.")
    ],
    config: Config = DEFAULT_CONFIG,
    debug: Debug = False,
) -> None:
    """Make the next issuing authority (two years) with the root's key."""
    del debug
    os.umask(0o077)
    from datetime import UTC, datetime

    from fedward_server.adapters.secret_files import read_passphrase
    from fedward_server.init import renew_issuing_authority
    from fedward_server.settings import load_coordinator_settings

    ends = renew_issuing_authority(
        load_coordinator_settings(config),
        root_file=root_key,
        root_passphrase=read_passphrase(passphrase_file),
        now=datetime.now(UTC),
    )
    typer.echo(f"good until {ends.date()}; restart the coordinator and take the medium away")
