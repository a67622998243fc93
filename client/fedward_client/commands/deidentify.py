"""What the site engineer does before images reach a study: take the patients out."""

import json
import os
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fedward_client.commands.options import Debug, Json
from fedward_common.log.setup import configure_logging

app = typer.Typer()


@app.command()
def deidentify(
    source: Annotated[Path, typer.Argument(help="The folder with the objects.")],
    target: Annotated[Path, typer.Argument(help="An empty folder for what may be used.")],
    key_file: Annotated[
        Path, typer.Option(help="The site's pseudonym key (0600); made where it is absent.")
    ],
    report: Annotated[Path | None, typer.Option(help="Write the counts here as JSON.")] = None,
    modified_dates: Annotated[
        bool, typer.Option(help="Keep dates, moved by a secret number of days per patient.")
    ] = False,
    patient_characteristics: Annotated[
        bool, typer.Option(help="Keep sex, age in bands up to 90, weight and size rounded.")
    ] = False,
    device_identity: Annotated[bool, typer.Option(help="Keep what names the scanner.")] = False,
    clean_descriptors: Annotated[
        bool, typer.Option(help="Keep known medical words of descriptions.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the objects of a folder without their patients; set aside and count the others."""
    del debug
    from rich.console import Console
    from rich.progress import Progress

    from fedward_client.data.dicom.scan import count_files
    from fedward_client.deidentify.objects import deidentify_folder
    from fedward_client.deidentify.options import Options
    from fedward_client.deidentify.pseudonyms import MIN_KEY_BYTES, Pseudonyms
    from fedward_common.trust.private_files import read_private, write_private

    configure_logging(process="site")
    os.umask(0o077)
    if not key_file.exists():
        write_private(key_file, secrets.token_bytes(MIN_KEY_BYTES))
    pseudonyms = Pseudonyms(read_private(key_file, what="pseudonym key"))
    with Progress(console=Console(stderr=True), disable=as_json) as bar:
        task = bar.add_task("de-identifying", total=count_files(source))
        counts = deidentify_folder(
            source,
            target,
            pseudonyms=pseudonyms,
            options=Options(
                modified_dates=modified_dates,
                patient_characteristics=patient_characteristics,
                device_identity=device_identity,
                clean_descriptors=clean_descriptors,
            ),
            progress=lambda done: bar.update(task, completed=done),
        )
    text = json.dumps(asdict(counts), indent=2)
    if report is not None:
        write_private(report, text.encode())
    if as_json:
        typer.echo(text)
        return
    typer.echo(f"{counts.objects} files: {counts.written} written")
    for reason, count in sorted(counts.set_aside.items()):
        typer.echo(f"  set aside: {count} {reason}")
    for element, count in sorted(counts.residual_elements.items()):
        typer.echo(f"    an identifier of the patient was left in: {element} ({count})")
