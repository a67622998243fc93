"""site.toml: every mistake names its key, what was expected and what was found."""

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedward_client.settings import load_site_settings
from fedward_common.errors import ConfigError
from tests.support.guard_site import a_study, site_values


def written(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "site.toml"
    path.write_text(tomli_w.dumps(values))
    return path


def put(values: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    """`values` with the dotted `key` set, or removed when `value` is None."""
    table: Any = values
    *parents, last = key.split(".")
    for parent in parents:
        table = table[int(parent)] if isinstance(table, list) else table.setdefault(parent, {})
    if value is None:
        del table[last]
    else:
        table[last] = value
    return values


def test_a_complete_file_is_read_and_relative_paths_belong_to_its_folder(tmp_path: Path) -> None:
    settings = load_site_settings(written(tmp_path, site_values(a_study())))

    assert settings.site == "north"
    assert settings.keys.signing_key == tmp_path / "keys" / "signing.pem"
    assert settings.data[0].path == tmp_path / "patients.csv"
    assert settings.worker_socket == tmp_path / "run" / "worker.sock"
    assert settings.ledger_path == tmp_path / "state" / "ledger.sqlite"
    assert settings.source == tmp_path / "site.toml"


def test_absolute_paths_stay_as_they_are(tmp_path: Path) -> None:
    values = put(site_values(), "folders.state", "/var/lib/fedward")

    assert load_site_settings(written(tmp_path, values)).folders.state == Path("/var/lib/fedward")


def test_what_is_not_written_is_the_careful_choice(tmp_path: Path) -> None:
    values = site_values()
    for key in ("approved_studies", "approved_bundles", "allow_evaluation"):
        del values["policy"][key]

    settings = load_site_settings(written(tmp_path, values))

    assert settings.policy.auto_approve is False
    assert settings.policy.allow_evaluation is False
    assert settings.policy.approved_studies == ()
    assert settings.policy.approved_bundles == ()
    assert settings.device == "cpu"
    assert settings.guard.reply_hours == 24


def test_whole_numbers_may_stand_where_a_number_is_expected(tmp_path: Path) -> None:
    values = put(site_values(), "policy.max_epsilon_total", 6)

    assert load_site_settings(written(tmp_path, values)).policy.max_epsilon_total == 6.0


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("site", None, "site"),
        ("site", "North Hospital", "site"),
        ("sites", "north", "sites"),
        ("policy.max_epsilon", 3.0, "policy.max_epsilon"),
        ("policy.max_epsilon_per_study", 0.0, "policy.max_epsilon_per_study"),
        ("policy.max_epsilon_per_study", -1.0, "policy.max_epsilon_per_study"),
        ("policy.max_epsilon_per_study", "3.0", "policy.max_epsilon_per_study"),
        ("policy.max_epsilon_total", float("inf"), "policy.max_epsilon_total"),
        ("policy.max_epsilon_total", float("nan"), "policy.max_epsilon_total"),
        ("policy.max_epsilon_total", 2.0, "policy"),
        ("policy.min_noise", 0.0, "policy.min_noise"),
        ("policy.min_noise", None, "policy.min_noise"),
        ("policy.delta", 0.5, "policy.delta"),
        ("policy.delta", None, "policy.delta"),
        ("policy.auto_approve", "no", "policy.auto_approve"),
        ("policy.auto_approve", True, "policy"),
        ("policy.allowed_tasks", [], "policy.allowed_tasks"),
        ("policy.approved_studies", ["heart"], "policy.approved_studies"),
        ("data", [], "data"),
        ("data.0.kind", "excel", "data"),
        ("data.0.delimiter", ";;", "data"),
        ("data.0.path", "", "data"),
        ("coordinator.address", "localhost", "coordinator.address"),
        ("ports.gateway", 70_000, "ports.gateway"),
        ("ports.runtime", 9471, "ports"),
        ("guard.worker_user", "worker", "guard"),
        ("guard.reply_hours", 48.0, "guard.reply_hours"),
        ("device", "tpu", "device"),
    ],
)
def test_a_mistake_names_file_and_key(
    tmp_path: Path, key: str, value: object, expected: str
) -> None:
    path = written(tmp_path, put(site_values(a_study()), key, value))

    with pytest.raises(ConfigError) as raised:
        load_site_settings(path)

    assert f"{path}: {expected}" in str(raised.value)
    assert "expected" in str(raised.value)


def test_a_missing_file_and_broken_toml_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found none"):
        load_site_settings(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("site = ")
    with pytest.raises(ConfigError, match="expected TOML"):
        load_site_settings(broken)
