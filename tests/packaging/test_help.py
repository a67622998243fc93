"""What `--help` says of every command of both programs, as a person sees it."""

import re
from collections.abc import Iterator

import pytest
import typer
from click import Argument, Command, Context, Group
from typer.testing import CliRunner

from fedward_client.cli import app as client
from fedward_server.cli import app as server

WIDE = {"COLUMNS": "1000", "TERM": "dumb"}


def commands(app: typer.Typer) -> Iterator[tuple[typer.Typer, list[str], Command]]:
    """Every command with the words that call it."""

    def below(command: Command, words: list[str]) -> Iterator[tuple[list[str], Command]]:
        if isinstance(command, Group):
            for name in command.list_commands(Context(command)):
                found = command.get_command(Context(command), name)
                if found is not None and not found.hidden:
                    yield from below(found, [*words, name])
        else:
            yield words, command

    for words, command in below(typer.main.get_command(app), []):
        yield app, words, command


EVERY = [*commands(client), *commands(server)]


@pytest.mark.parametrize(
    ("app", "words", "command"), EVERY, ids=["-".join(words) for _, words, _ in EVERY]
)
def test_help_says_what_each_command_and_argument_is(
    app: typer.Typer, words: list[str], command: Command
) -> None:
    shown = CliRunner().invoke(app, [*words, "--help"], env=WIDE).stdout
    text = re.sub(r"\s+", " ", shown)

    # Whole, brackets too: what looks like markup would be taken out.
    assert command.help
    assert " ".join(command.help.split("\n\n")[0].split()) in text
    for parameter in command.params:
        if isinstance(parameter, Argument) and not getattr(parameter, "hidden", False):
            said = getattr(parameter, "help", None)
            assert said, f"{parameter.name}: expected words of help"
            assert " ".join(said.split()) in text
