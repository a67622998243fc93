"""`fedward-server doctor`: each finding provoked on a real coordinator's folder."""

import os
import shutil
import socket
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedward_common.doctor import Examination, Finding
from fedward_common.log.events import EventLog
from fedward_server.adapters.certificate_authority import CertificateAuthority
from fedward_server.adapters.registry import open_registry
from fedward_server.doctor import examine_coordinator, registry
from fedward_server.sandbox.run import Inputs, Prepared, prepare
from fedward_server.settings import load_coordinator_settings
from tests.conftest import write_short_study
from tests.support.edge_process import running_edge
from tests.support.pki import Authority, now, write_identity


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    folder = tmp_path_factory.mktemp("prepared")
    study = write_short_study(folder / "study.toml")
    made = prepare(Inputs.parse(study=study, sites=[], data=None), out=folder / "out")
    yield made
    shutil.rmtree(made.layout.run)


@dataclass(frozen=True)
class Coordinator:
    """A coordinator of its own in a temporary folder."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "coordinator.toml"

    def edit(self, **changes: Any) -> None:
        values = tomllib.loads(self.config.read_text())
        self.config.write_text(tomli_w.dumps(values | changes))

    def examine(self) -> Examination:
        return examine_coordinator(self.config)

    def find(self, name: str) -> Finding:
        """The finding `name`; whatever is not ok says how to fix it."""
        findings = self.examine().findings
        assert all(bool(f.fix) == (f.level != "ok") for f in findings)
        return next(f for f in findings if f.name == name)


@pytest.fixture
def coordinator(prepared: Prepared, tmp_path: Path) -> Coordinator:
    shutil.copytree(prepared.layout.coordinator, tmp_path / "c")
    made = Coordinator(tmp_path / "c")
    made.edit(run="run")
    return made


def test_a_healthy_coordinator_has_no_failure(prepared: Prepared) -> None:
    made = examine_coordinator(prepared.layout.settings_file)

    assert [f for f in made.findings if f.level == "fail"] == []
    assert {f.name for f in made.findings if f.level == "warn"} <= {"network", "disk", "memory"}
    assert next(f for f in made.findings if f.name == "registry").found == "4 active sites"


@pytest.mark.parametrize("change", [{"listen": 3}, {"colour": "blue"}, {"run": "r" * 120}])
def test_wrong_settings_are_a_failure_and_not_a_warnings_exit_code(
    coordinator: Coordinator, change: dict[str, Any]
) -> None:
    """Among them a run folder that is too long for a Unix socket."""
    coordinator.edit(**change)
    made = coordinator.examine()

    assert made.exit_code == 1
    assert [f.name for f in made.findings] == ["settings"]


def test_a_key_that_the_world_may_read_fails(coordinator: Coordinator) -> None:
    path = coordinator.folder / "keys" / "tls.key"
    path.chmod(0o644)
    made = coordinator.examine()

    assert made.exit_code == 1
    assert coordinator.find("key.tls").level == "fail"
    for line in path.read_text().splitlines()[1:-1]:
        assert line not in made.text()


def test_a_foreign_root_fails(coordinator: Coordinator) -> None:
    root = Authority(federation="sandbox").root
    (coordinator.folder / "keys" / "ca.pem").write_bytes(root.certificate_pem)

    assert coordinator.find("certificate.chain").level == "fail"


def test_a_sites_certificate_cannot_be_the_edges(coordinator: Coordinator) -> None:
    authority, keys = Authority(), coordinator.folder / "keys"
    write_identity(keys, "tls", authority.site_identity("a"), authority.root)
    (keys / "root.pem").replace(keys / "ca.pem")

    assert coordinator.find("certificate.chain").level == "fail"


def test_an_authority_that_ends_soon_warns_and_its_open_key_fails(
    coordinator: Coordinator,
) -> None:
    folder = coordinator.folder / "state" / "authority"
    CertificateAuthority.create(folder, federation="sandbox", now=now() - timedelta(days=720))

    assert coordinator.find("authority.expiry").level == "warn"
    assert coordinator.find("authority.issuing-key").level == "ok"
    (folder / "issuing.key").chmod(0o640)
    assert coordinator.find("authority.issuing-key").level == "fail"


def test_the_roots_key_on_the_coordinator_warns(coordinator: Coordinator) -> None:
    folder = coordinator.folder / "state" / "authority"
    CertificateAuthority.create(folder, federation="sandbox", now=now())

    assert coordinator.find("authority.root-key").level == "warn"
    (folder / "root.key").unlink()
    assert coordinator.find("authority.root-key").level == "ok"


def test_ports_in_use_by_strangers_fail(coordinator: Coordinator) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as edge,
        socket.create_server(("127.0.0.1", 0)) as superlink,
    ):
        coordinator.edit(
            listen=f"127.0.0.1:{edge.getsockname()[1]}", superlink_port=superlink.getsockname()[1]
        )
        superlink.settimeout(0)
        findings = coordinator.examine().findings

    assert {f.level for f in findings if f.name.startswith("port.")} == {"fail"}


def test_the_ports_of_a_running_coordinator_are_ours_and_its_log_gets_no_refusal(
    tmp_path: Path,
) -> None:
    with running_edge(tmp_path, "a") as edge:
        before = edge.settings.edge_log.read_bytes()
        findings = examine_coordinator(tmp_path / "coordinator.toml").findings
        after = edge.settings.edge_log.read_bytes()

    found = {f.name: f.found for f in findings}
    assert "in use by Fedward" in found["port.edge"]
    assert "in use by Fedward" in found["port.superlink"]
    assert found["registry"] == "1 active sites"
    assert before == after


def test_open_folders_fail(coordinator: Coordinator) -> None:
    (coordinator.folder / "run").mkdir()
    for name in ("run", "state"):
        (coordinator.folder / name).chmod(0o755)

        assert coordinator.find(f"folder.{name}").level == "fail"


def test_an_edited_log_of_the_edge_or_of_a_run_fails(coordinator: Coordinator) -> None:
    state = coordinator.folder / "state"
    for name, path in (
        ("log.edge", state / "audit" / "edge.jsonl"),
        ("log.heart-1", state / "runs" / "heart-1" / "log.jsonl"),
    ):
        log = EventLog(path)
        log.append("edge.started", federation="sandbox")
        log.append("edge.stopped")
        log.close()
        assert coordinator.find(name).level == "ok"

        path.write_bytes(path.read_bytes().split(b"\n", 1)[1])

        assert coordinator.find(name).level == "fail"


def test_a_damaged_registry_fails_and_an_absent_one_is_left_absent(
    coordinator: Coordinator,
) -> None:
    path = coordinator.folder / "state" / "registry.sqlite"
    path.write_bytes(os.urandom(8192))
    assert coordinator.find("registry").level == "fail"

    path.unlink()
    assert coordinator.find("registry").level == "ok"
    assert not path.exists()


def test_a_registry_without_active_sites_warns(coordinator: Coordinator) -> None:
    sites = open_registry(load_coordinator_settings(coordinator.config).database)
    for site in sites.sites():
        sites.revoke(site.site_id)
    sites.close()

    assert coordinator.find("registry").level == "warn"


def test_a_database_url_is_never_repeated() -> None:
    """It may hold a password."""
    for url in ("nonsense s3cr3t", "nosuch://me:s3cr3t@host/db"):
        finding = registry("registry", url)

        assert finding.level == "fail"
        assert "s3cr3t" not in finding.found + finding.fix
