"""What README.md tells a newcomer to type exists."""

import re
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from fedward_client.cli import app as client
from fedward_client.settings import SiteSettings
from fedward_server.cli import app as server

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
PROGRAMS = {"fedward-server": server, "fedward-client": client}


@pytest.mark.parametrize(
    ("program", "command"), sorted(set(re.findall(r"(fedward-(?:server|client)) ([a-z-]+)", TEXT)))
)
def test_every_command_that_is_named_exists(program: str, command: str) -> None:
    assert command in get_command(PROGRAMS[program]).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make ([a-z0-9-]+)", TEXT))))
def test_every_make_target_that_is_named_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_example_site_file_is_a_valid_one(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    filled = re.sub(r'"<[^"]*>"', f'"{"0" * 64}"', example)

    settings = SiteSettings.model_validate(tomllib.loads(filled), context={"folder": str(tmp_path)})

    assert settings.policy.max_epsilon_total == 6.0


def test_every_link_within_the_project_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)

    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
