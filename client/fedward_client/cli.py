"""`fedward-client`: what the site engineer and the privacy officer of a hospital type."""

import typer

from fedward_client.commands import (
    data,
    decide,
    deidentify,
    images,
    models,
    predict,
    privacy,
    processes,
    site,
)
from fedward_common.entry import run_program

app = typer.Typer(
    name="fedward-client",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The hospital's side of a Fedward federation.",
)
for group in (processes.app, site.app, decide.app, privacy.app, deidentify.app, predict.app):
    app.add_typer(group)
app.add_typer(data.data, name="data")
app.add_typer(decide.studies, name="studies")
app.add_typer(decide.approver, name="approver")
app.add_typer(decide.bundle, name="bundle")
app.add_typer(decide.plugin, name="plugin")
app.add_typer(images.images, name="images")
models.model.command("export-onnx")(predict.export_onnx)
app.add_typer(models.model, name="model")
app.add_typer(privacy.budget, name="budget")
app.add_typer(site.journal, name="journal")


def main() -> None:
    """The program: exit codes and one-line errors as `run_program` says."""
    run_program(app, name="fedward-client")
