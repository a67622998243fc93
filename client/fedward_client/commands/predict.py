"""What a model of a finished study says of a new image, or of patients."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedward_client.commands.options import DEFAULT_CONFIG, Config, Debug, Json, load
from fedward_common.errors import ConfigError

if TYPE_CHECKING:
    from fedward_client.models import OpenedModel
    from fedward_client.predict.package import Predictor
    from fedward_client.settings import SiteSettings

app = typer.Typer()
Study = Annotated[Path | None, typer.Option("--study", help="The signed study, if not inside.")]
Key = Annotated[
    str | None, typer.Option(help="The lead's public key instead of this site's approvals.")
]


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A model package.")],
    subject: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="A DICOM file, or a folder with one series; for patients a TOML file of their "
            "data entries, as in site.toml.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder for the answer.")] = Path("answer"),
    config: Config = DEFAULT_CONFIG,
    key: Key = None,
    study: Study = None,
    explain: Annotated[
        str | None, typer.Option(help="grad-cam or integrated-gradients: PNG and capture.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="Store to this DICOMweb address.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="A bearer token for it.")] = None,
    ca_file: Annotated[Path | None, typer.Option(help="The root of its certificate.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer with a model: a DICOM report and capture, a DICOM SEG, or a table of patients' scores;
    not for clinical use.
    """
    del debug
    from fedward_client.pacs.files import private_umask
    from fedward_client.pacs.web import WebPacs
    from fedward_client.predict.answer import answer
    from fedward_client.predict.package import Predictor
    from fedward_common.study.imaging import Pictures

    private_umask()
    opened = _proven(model, config=config, key=key, study=study)
    if not isinstance(opened.study.data, Pictures):
        if explain is not None or store is not None:
            raise ConfigError("predict: expected --explain and --store with a study of images only")
        _patients(opened, load(config), subject, out=out, as_json=as_json)
        return
    found = answer(Predictor.of(opened), subject, out=out, explain=explain)
    if store is not None:
        WebPacs(store, token_file=token_file, ca_file=ca_file).store(found.objects)
    if as_json:
        typer.echo(json.dumps({**found.facts, "stored": store is not None}))
        return
    typer.echo(found.text)


def _patients(
    opened: "OpenedModel", settings: "SiteSettings", patients: Path, *, out: Path, as_json: bool
) -> None:
    from fedward_client.predict.patients import answer_patients

    found = answer_patients(opened, settings, patients=patients, out=out)
    typer.echo(json.dumps(found.facts) if as_json else found.text)


def export_onnx(
    model: Annotated[Path, typer.Argument(help="A model package.")],
    target: Annotated[Path, typer.Argument(help="The ONNX file to write.")],
    config: Config = DEFAULT_CONFIG,
    key: Key = None,
    study: Study = None,
    debug: Debug = False,
) -> None:
    """Export a model as ONNX, checked against torch to 1e-4."""
    del debug
    from fedward_client.predict.export import export_onnx as export

    worst = export(_open(model, config=config, key=key, study=study), target)
    typer.echo(f"{target}: differs from torch by {worst:.1e} at most")


def _open(model: Path, *, config: Path, key: str | None, study: Path | None) -> "Predictor":
    from fedward_client.predict.package import Predictor

    return Predictor.of(_proven(model, config=config, key=key, study=study))


def _proven(model: Path, *, config: Path, key: str | None, study: Path | None) -> "OpenedModel":
    from fedward_client.models import approved_studies, open_model
    from fedward_common.log.setup import configure_logging

    configure_logging(process="site")
    approved = approved_studies(load(config)) if key is None else None
    return open_model(model, approved=approved, public_key=key, study_file=study)
