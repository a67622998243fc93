"""What every command of `fedward-server` has alike."""

from pathlib import Path
from typing import Annotated, Final

import typer

from fedward_common.errors import ConfigError

DEFAULT_CONFIG: Final = Path("/etc/fedward/coordinator.toml")
Config = Annotated[Path, typer.Option("--config", help="The coordinator's settings file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
StartWeightsFile = Annotated[
    Path | None,
    typer.Option(
        "--start-weights",
        help="The safetensors file that the study's model.start names by its digest.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Print a traceback with an error.")]


def read_bytes(path: Path, what: str) -> bytes:
    """The bytes of a file that a person named. Raises ConfigError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: expected {what}, found {error.strerror}") from error
