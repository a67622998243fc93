"""What the sandbox is told, and the folders and settings it makes of it."""

import stat
import tomllib
from pathlib import Path

import pytest

from fedward_client.guard.main import policy_of
from fedward_client.policy import NotApproved
from fedward_client.settings import load_site_settings
from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId
from fedward_common.log.events import utc_now
from fedward_common.study.signed import SignedStudy
from fedward_server.sandbox.layout import MARKER, free_ports, prepare_root
from fedward_server.sandbox.run import Inputs, Prepared, prepare
from tests.conftest import write_short_study


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("prepared")
    study = write_short_study(folder / "study.toml")
    return prepare(Inputs.parse(study=study, sites=[], data=None), out=folder / "out")


def test_each_site_has_its_own_keys_and_ports(prepared: Prepared) -> None:
    settings = [load_site_settings(s.settings_file) for s in prepared.layout.sites.values()]
    keys = [s.keys.signing_key.read_bytes() for s in settings]
    ports = [port for s in settings for port in (s.ports.gateway, s.ports.runtime)]

    assert len(set(keys)) == 4
    assert len(set(ports)) == 8


def test_a_sites_policy_allows_this_study_and_no_other(prepared: Prepared) -> None:
    for site in prepared.layout.sites.values():
        policy = policy_of(load_site_settings(site.settings_file))
        other = prepared.study.model_copy(update={"title": "Another"})

        policy.permits(prepared.study, now=utc_now())
        assert [type(one) for one in policy.objections(other, now=utc_now())] == [NotApproved]
        assert policy.rules.max_epsilon_total == 2.0


def test_the_signed_study_names_every_sites_keys(prepared: Prepared) -> None:
    study = SignedStudy.parse((prepared.layout.root / "study.json").read_bytes()).verify()

    for site in prepared.layout.sites.values():
        entry = study.site(site.site)
        assert entry is not None
        assert (entry.key_sha256, entry.node_key_sha256) == (site.key_sha256, site.node_key_sha256)


def test_private_keys_are_private(prepared: Prepared) -> None:
    private = [
        path
        for name in ("tls.key", "node.key", "signing.pem", "approver.pem", "lead.pem")
        for path in prepared.layout.root.rglob(name)
    ]

    assert len(private) == 4 * 4 + 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}


def test_the_settings_files_are_toml_that_a_person_can_read(prepared: Prepared) -> None:
    for site in prepared.layout.sites.values():
        text = site.settings_file.read_text()
        assert tomllib.loads(text)["site"] == site.site
        assert "# What this hospital allows" in text


def test_an_earlier_sandbox_is_replaced(tmp_path: Path) -> None:
    prepare_root(tmp_path / "out")
    (tmp_path / "out" / "old").write_text("x")

    prepare_root(tmp_path / "out")

    assert [p.name for p in (tmp_path / "out").iterdir()] == [MARKER]


def test_a_file_in_the_place_of_the_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")

    with pytest.raises(ConfigError):
        prepare_root(tmp_path / "out")

    assert (tmp_path / "out").read_text() == "mine"


def test_ports_are_different(tmp_path: Path) -> None:
    assert len(set(free_ports(20))) == 20


def test_a_site_named_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "patients.csv").write_text("x\n")

    with pytest.raises(ConfigError, match="found one twice"):
        Inputs.parse(study=Path("s"), sites=[f"a={tmp_path}"] * 2, data=None)


def test_sites_without_a_study_are_refused(tmp_path: Path) -> None:
    (tmp_path / "patients.csv").write_text("x\n")

    with pytest.raises(ConfigError, match=r"expected a STUDY\.toml"):
        Inputs.parse(study=None, sites=[f"a={tmp_path}"], data=None)


def test_named_folders_become_the_sites_tables(tmp_path: Path) -> None:
    (tmp_path / "patients.csv").write_text("x\n")

    inputs = Inputs.parse(study=Path("s"), sites=[f"a={tmp_path}"], data=None)

    assert inputs.data_files(tmp_path / "unused") == {SiteId("a"): tmp_path / "patients.csv"}


def test_start_weights_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    study = write_short_study(tmp_path / "study.toml")
    other = tmp_path / "weights"
    other.write_bytes(b"other")
    inputs = Inputs.parse(study=study, sites=[], data=None, start_weights=other)

    with pytest.raises(ConfigError, match=r"expected a study with \[model.start\]"):
        prepare(inputs, out=tmp_path / "out")
    study.write_text(
        study.read_text().replace("[dp]", f'[model.start]\nsha256 = "{"0" * 64}"\n\n[dp]')
    )
    with pytest.raises(ConfigError, match="expected the file with SHA-256"):
        prepare(inputs, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
