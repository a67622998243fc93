"""What the site engineer does with images: index them, see what was set aside."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedward_client.commands.options import Debug, Json
from fedward_common.log.setup import configure_logging

if TYPE_CHECKING:
    from fedward_client.pacs.dimse import Peer

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

    with ImageIndex(index, create=False) as opened:
        for path, reason in opened.quarantined():
            typer.echo(f"{reason}\t{path!r}")


@images.command("pack")
def images_pack(
    folder: Annotated[Path, typer.Argument(help="The folder with images.csv.")],
    target: Annotated[Path, typer.Argument(help="The .npz file to write.")],
    study: Annotated[Path, typer.Option(help="The study file: what size, which columns.")],
    debug: Debug = False,
) -> None:
    """Decode a folder of images once, into a .npz set that a study reads as it reads the folder."""
    del debug
    from fedward_client.data.image_pack import pack

    configure_logging(process="site")
    os.umask(0o077)
    typer.echo(f"{target}: {pack(folder, study, target)} images")


@images.command("pull")
def images_pull(
    target: Annotated[Path, typer.Argument(help="The folder for the objects.")],
    url: Annotated[
        str | None, typer.Option(help="A PACS over DICOMweb, such as https://pacs/dicom-web.")
    ] = None,
    dimse: Annotated[
        str | None, typer.Option(help="A PACS over DIMSE: CALLING-AE@CALLED-AE:HOST:PORT.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Attribute=value of the studies, such as StudyDate=20260101-20261231."),
    ] = None,
    by: Annotated[str, typer.Option(help="DIMSE: get or move.")] = "get",
    listen_port: Annotated[int, typer.Option(help="C-MOVE: where the PACS connects back.")] = 11112,
    token_file: Annotated[Path | None, typer.Option(help="DICOMweb: a bearer token.")] = None,
    ca_file: Annotated[Path | None, typer.Option(help="DICOMweb: the PACS's root.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Pull studies from a PACS into a folder, for `images index` and `deidentify`."""
    del debug
    from fedward_client.pacs.dimse import DimsePacs
    from fedward_client.pacs.files import private_umask
    from fedward_client.pacs.web import WebPacs
    from fedward_common.errors import ConfigError

    configure_logging(process="site")
    private_umask()
    filters = dict(_attribute(text) for text in where or ())
    if (url is None) == (dimse is None) or by not in ("get", "move"):
        raise ConfigError("images pull: expected --url or --dimse, and --by get or move")
    if url is not None:
        web = WebPacs(url, token_file=token_file, ca_file=ca_file)
        pulled = web.pull([found.study_uid for found in web.find(filters)], into=target)
    else:
        pacs = DimsePacs(_peer(dimse or ""), listen_port=listen_port)
        studies = [found.study_uid for found in pacs.find(filters)]
        pulled = pacs.pull(studies, into=target, by="move" if by == "move" else "get")
    if as_json:
        typer.echo(json.dumps(asdict(pulled)))
        return
    typer.echo(f"{pulled.objects} objects of {pulled.studies} studies, {pulled.failed} failed")


def _attribute(text: str) -> tuple[str, str]:
    from fedward_common.errors import ConfigError

    name, sign, value = text.partition("=")
    if not sign or not name.isalnum():
        raise ConfigError("--where: expected Attribute=value, found something else")
    return name, value


def _peer(text: str) -> "Peer":
    from fedward_client.pacs.dimse import Peer
    from fedward_common.errors import ConfigError

    calling, sign, rest = text.partition("@")
    parts = rest.split(":")
    if not sign or len(parts) != 3 or not parts[2].isdecimal():
        raise ConfigError("--dimse: expected CALLING-AE@CALLED-AE:HOST:PORT, found something else")
    return Peer(calling=calling, called=parts[0], host=parts[1], port=int(parts[2]))
