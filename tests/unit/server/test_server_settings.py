"""coordinator.toml: paths lie beside the file, and a mistake is named with what was expected."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedward_common.errors import ConfigError, StartError
from fedward_server.settings import CoordinatorSettings, load_coordinator_settings

SMALLEST = """
federation = "north"
[tls]
certificate = "tls/edge.pem"
key = "tls/edge.key"
ca = "tls/root.pem"
"""


def load(folder: Path, text: str) -> CoordinatorSettings:
    (folder / "coordinator.toml").write_text(text)
    return load_coordinator_settings(folder / "coordinator.toml")


def test_the_smallest_file_has_defaults_beside_it(tmp_path: Path) -> None:
    settings = load(tmp_path, SMALLEST)

    assert settings.state == tmp_path / "state"
    assert settings.database == f"sqlite:///{tmp_path}/state/registry.sqlite"
    assert settings.kick_socket == tmp_path / "run" / "edge.sock"
    assert settings.tls.key == tmp_path / "tls" / "edge.key"
    assert (settings.listen_host, settings.listen_port) == ("0.0.0.0", 9443)
    assert settings.probe_host == "127.0.0.1"


def test_what_is_written_is_what_holds(tmp_path: Path) -> None:
    text = 'listen = "[::1]:7000"\nstate = "/var/lib/x"\ndatabase = "postgresql+pg8000://db/f"\n'

    settings = load(tmp_path, text + SMALLEST + "[limits]\npoll_seconds = 5\n")

    assert (settings.listen_host, settings.listen_port) == ("::1", 7000)
    assert settings.state == Path("/var/lib/x")
    assert settings.database == "postgresql+pg8000://db/f"
    assert settings.limits.poll_seconds == 5


OPERATOR = '[[operators]]\nname = "{name}"\npublic_key = "{key}"\n'


def test_without_a_table_sites_enrol_by_carried_files_and_two_operators_grant(
    tmp_path: Path,
) -> None:
    settings = load(tmp_path, SMALLEST)

    assert settings.enrolment.listen is None
    assert settings.enrolment.operators_needed == 2
    assert settings.operators == ()
    assert settings.authority.passphrase_file is None
    assert settings.desk_log == tmp_path / "state" / "audit" / "desk.jsonl"


def test_enrolment_and_operators_are_read(tmp_path: Path) -> None:
    text = (
        SMALLEST
        + '[enrolment]\nlisten = "127.0.0.1:9444"\naddress = "hub:9444"\noperators_needed = 1\n'
        + '[authority]\npassphrase_file = "/run/credentials/edge/issuing"\n'
        + OPERATOR.format(name="Ada", key="a" * 64)
    )

    settings = load(tmp_path, text)

    assert settings.enrolment.listen == "127.0.0.1:9444"
    assert settings.enrolment.operators_needed == 1
    assert settings.operators[0].name == "Ada"
    assert settings.authority.passphrase_file == Path("/run/credentials/edge/issuing")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (SMALLEST + '[enrolment]\nlisten = "127.0.0.1:9444"\n', "enrolment"),
        (SMALLEST + "[enrolment]\noperators_needed = 0\n", "enrolment.operators_needed"),
        (SMALLEST + OPERATOR.format(name="Ada", key="A" * 64), "operators[#1].public_key"),
        (
            SMALLEST
            + OPERATOR.format(name="Ada", key="a" * 64)
            + OPERATOR.format(name="Ben", key="a" * 64),
            "different public_key",
        ),
        (
            SMALLEST
            + OPERATOR.format(name="Ada", key="a" * 64)
            + OPERATOR.format(name="Ada", key="b" * 64),
            "different name",
        ),
        ('colour = "red"\n' + SMALLEST, "colour"),
        ('listen = "9443"\n' + SMALLEST, "listen"),
        ('listen = "127.0.0.1:70000"\n' + SMALLEST, "listen"),
        ('listen = "127.0.0.1:9470"\n' + SMALLEST, "superlink_port"),
        ('superlink_port = "9470"\n' + SMALLEST, "superlink_port"),
        ('state = ""\n' + SMALLEST, "state"),
        (f'run = "{"x" * 120}"\n' + SMALLEST, "run"),
        (SMALLEST.replace("north", "The North"), "federation"),
        (SMALLEST.replace('ca = "tls/root.pem"\n', ""), "tls.ca"),
        (SMALLEST + "[limits]\npoll_seconds = 29\n", "limits.poll_seconds"),
    ],
)
def test_a_mistake_names_its_key(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)

    assert key in str(caught.value)
    assert "expected" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"coordinator\.toml"):
        load_coordinator_settings(tmp_path / "coordinator.toml")


def test_a_second_coordinator_on_one_state_is_refused(tmp_path: Path) -> None:
    from fedward_server.serve import only_one

    settings: Any = SimpleNamespace(state=tmp_path)
    with (
        only_one(settings),
        pytest.raises(StartError, match="found another `serve`"),
        only_one(settings),
    ):
        pass

    with only_one(settings):
        assert (tmp_path / "serve.lock").stat().st_mode & 0o077 == 0
