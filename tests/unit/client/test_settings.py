"""site.toml: every mistake names its key, what was expected and what was found."""

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedward_client.settings import load_site_settings
from fedward_common.errors import ConfigError
from tests.support.guard_site import STEWARD, STEWARD_NAME, site_values


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
    settings = load_site_settings(written(tmp_path, site_values()))

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
    for key in ("approved_bundles", "allow_evaluation"):
        del values["policy"][key]
    del values["approvers"]

    settings = load_site_settings(written(tmp_path, values))

    assert settings.approvers == ()
    assert settings.policy.outputs == {"update"}
    assert settings.policy.min_cell_size == 10
    assert settings.policy.approved_bundles == ()
    assert settings.exclusions is None
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
        ("policy.allowed_tasks", [], "policy.allowed_tasks"),
        ("policy.allowed_outputs", ["rows"], "policy.allowed_outputs"),
        ("policy.allowed_hours", ["8-17"], "policy.allowed_hours"),
        ("policy.allowed_hours", ["08:00-24:00"], "policy.allowed_hours"),
        ("policy.time_zone", "Zurich", "policy.time_zone"),
        ("policy.time_zone", "../../etc/passwd", "policy.time_zone"),
        ("policy.max_bytes_per_day", 0, "policy.max_bytes_per_day"),
        ("policy.min_cell_size", 0, "policy.min_cell_size"),
        ("approvers", [{"name": "Ada", "public_key": "short"}], "approvers"),
        ("approvers.0.name", "", "approvers"),
        ("exclusions", "", "exclusions"),
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
    path = written(tmp_path, put(site_values(), key, value))

    with pytest.raises(ConfigError) as raised:
        load_site_settings(path)

    assert f"{path}: {expected}" in str(raised.value)
    assert "expected" in str(raised.value)


@pytest.mark.parametrize("key", ["approved_studies", "auto_approve", "trusted_leads"])
def test_the_former_ways_to_approve_are_refused_and_the_present_one_is_named(
    tmp_path: Path, key: str
) -> None:
    path = written(tmp_path, put(site_values(), f"policy.{key}", []))

    with pytest.raises(ConfigError, match=f"{key}: .*fedward-client studies approve"):
        load_site_settings(path)


@pytest.mark.parametrize("changed", [{"name": "Bo"}, {"public_key": "0" * 64}], ids=["key", "name"])
def test_every_approver_has_a_name_and_a_key_of_their_own(
    tmp_path: Path, changed: dict[str, str]
) -> None:
    ada = {"name": STEWARD_NAME, "public_key": STEWARD.public_hex}
    path = written(tmp_path, put(site_values(), "approvers", [ada, ada | changed]))

    with pytest.raises(ConfigError, match="every name and every key once"):
        load_site_settings(path)


def test_a_missing_file_and_broken_toml_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found none"):
        load_site_settings(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("site = ")
    with pytest.raises(ConfigError, match="expected TOML"):
        load_site_settings(broken)
