"""What the site engineer does with images: index them, see what was set aside."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fedward_client.commands.options import Debug, Json
from fedward_common.log.setup import configure_logging

images = typer.Typer(no_args_is_help=True, help="The DICOM images of this hospital.")


@images.command("index")
def images_index(
    folder: Annotated[Path, typer.Argument(help="The folder with the images, or a DICOMDIR.")],
    index: Annotated[Path, typer.Option(help="The index file, made or brought up to date.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Index the images below a folder by their headers; set aside and count what is unusable."""
    del debug
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    from fedward_client.data.dicom.index import ImageIndex
    from fedward_client.data.dicom.scan import count_files, index_folder

    configure_logging(process="site")
    os.umask(0o077)
    dicomdir = folder if folder.is_file() else None
    root = folder.parent if dicomdir else folder
    bar = Progress(
        TextColumn("indexing"),
        BarColumn(),
        MofNCompleteColumn(),
        Remaining(),
        console=Console(stderr=True),
        disable=as_json,
    )
    with ImageIndex(index) as opened, bar:
        task = bar.add_task("index", total=count_files(root))
        report = index_folder(
            root, opened, dicomdir=dicomdir, progress=lambda done: bar.update(task, completed=done)
        )
    if as_json:
        typer.echo(json.dumps(asdict(report)))
        return
    typer.echo(
        f"{report.files} files ({report.read} read, {report.unchanged} unchanged, {report.gone} "
        f"gone): {report.images} images in {report.series} series, {report.studies} studies, "
        f"{report.patients} patients"
    )
    for reason, count in report.quarantined.items():
        typer.echo(f"  set aside: {count} {reason}")


@images.command("quarantine")
def images_quarantine(
    index: Annotated[Path, typer.Option(help="The index file.")],
    debug: Debug = False,
) -> None:
    """List the files that are set aside and why; for the site's own eyes."""
    del debug
    from fedward_client.data.dicom.index import ImageIndex

    with ImageIndex(index) as opened:
        for path, reason in opened.quarantined():
            typer.echo(f"{reason}\t{path!r}")
