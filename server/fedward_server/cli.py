"""`fedward-server`: what the operator of a coordinator and the study lead type."""

import typer

from fedward_common.entry import run_program
from fedward_server.commands import coordinator, released, sites, studies, study

app = typer.Typer(
    name="fedward-server",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The coordinator of a Fedward federation.",
)
for group in (coordinator.app, studies.app, released.app):
    app.add_typer(group)
app.add_typer(sites.site, name="site")
app.add_typer(sites.operator, name="operator")
app.add_typer(study.study, name="study")
app.add_typer(study.lead, name="lead")
app.add_typer(studies.runs, name="runs")
app.add_typer(studies.studies, name="studies")
studies.model.command("start-weights")(released.start_weights)
studies.model.command("bert-weights")(released.bert_weights)
app.add_typer(studies.model, name="model")


def main() -> None:
    """The program: exit codes and one-line errors as `run_program` says."""
    run_program(app, name="fedward-server")
