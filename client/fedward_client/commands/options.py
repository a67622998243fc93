"""What every command of `fedward-client` has alike."""

from pathlib import Path
from typing import Annotated, Final

import typer

from fedward_client.settings import SiteSettings, load_site_settings
from fedward_common.errors import ConfigError
from fedward_common.log.setup import configure_logging

Config = Annotated[
    Path, typer.Option("--config", help="The site's settings file.", show_default=True)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
Debug = Annotated[bool, typer.Option("--debug", help="Print a traceback with an error.")]
DEFAULT_CONFIG: Final = Path("/etc/fedward/site.toml")


def load(config: Path, *, process: str = "site") -> SiteSettings:
    """The site's settings, with logging set up for `process`."""
    configure_logging(process=process)
    return load_site_settings(config)


def read_study(path: Path) -> bytes:
    """The bytes of a signed study file. Raises ConfigError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: expected a signed study, found {error.strerror}") from error
