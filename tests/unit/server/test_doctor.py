"""`fedward-server doctor`: each finding provoked on a real coordinator's folder."""

import os
import shutil
import socket
import sqlite3
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from alembic.config import Config
from alembic.script import ScriptDirectory

from fedward_common.canonical import sha256_hex
from fedward_common.doctor import Examination, Finding
from fedward_common.ids import Digest
from fedward_common.log.events import EventLog
from fedward_common.model_package import CARD
from fedward_common.namespace import private_network_refusal
from fedward_common.trust.signing import SigningKey
from fedward_server.adapters.certificate_authority import ROOT_KEY, CertificateAuthority
from fedward_server.adapters.registry import MIGRATIONS, open_registry
from fedward_server.doctor import examine_coordinator, registry
from fedward_server.doctor.clock import clock, kernel_is_kept
from fedward_server.doctor.registry import Registry, site_certificates
from fedward_server.models import package_path
from fedward_server.ports import CertificateRecord
from fedward_server.sandbox.run import Inputs, Prepared, prepare
from fedward_server.settings import load_coordinator_settings
from fedward_server.sign_model import sign_model
from tests.conftest import write_short_study
from tests.support.edge_process import running_edge
from tests.support.finished_run import finished_run
from tests.support.pki import Authority, now, write_identity
from tests.support.postgres import Postgres, postgres  # noqa: F401 - a fixture


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
    assert {f.name for f in made.findings if f.level == "warn"} <= {
        *("network", "disk", "memory", "clock"),
        "enrolment.operators",  # a sandbox has none: nobody enrols there
    }
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


def make_authority(folder: Path, *, days_old: int = 0) -> None:
    CertificateAuthority.create(
        folder,
        federation="sandbox",
        now=now() - timedelta(days=days_old),
        root_file=folder / ROOT_KEY,
        root_passphrase=b"a long passphrase",
    )


def test_an_authority_that_ends_soon_warns_and_its_open_key_fails(
    coordinator: Coordinator,
) -> None:
    folder = coordinator.folder / "state" / "authority"
    make_authority(folder, days_old=720)

    assert coordinator.find("authority.expiry").level == "warn"
    assert coordinator.find("authority.issuing-key").level == "ok"
    (folder / "issuing.key").chmod(0o640)
    assert coordinator.find("authority.issuing-key").level == "fail"


def test_the_roots_key_on_the_coordinator_warns(coordinator: Coordinator) -> None:
    folder = coordinator.folder / "state" / "authority"
    make_authority(folder)

    assert coordinator.find("authority.root-key").level == "warn"
    (folder / ROOT_KEY).unlink()
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

    levels = {f.name: f.level for f in findings if f.name.startswith("port.")}
    # SuperLink's port is that of its own private network, where there is one.
    private = private_network_refusal() is None
    assert levels == {"port.edge": "fail", "port.superlink": "ok" if private else "fail"}


def test_the_ports_of_a_running_coordinator_are_ours_and_its_log_gets_no_refusal(
    tmp_path: Path,
) -> None:
    with running_edge(tmp_path, "a") as edge:
        before = edge.settings.edge_log.read_bytes()
        findings = examine_coordinator(tmp_path / "coordinator.toml").findings
        after = edge.settings.edge_log.read_bytes()

    found = {f.name: f.found for f in findings}
    assert "in use by Fedward" in found["port.edge"]
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
        ("log.desk", state / "audit" / "desk.jsonl"),
        ("log.enrolment", state / "audit" / "enrolment.jsonl"),
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


# Clock.


def test_a_clock_behind_the_log_fails() -> None:
    at = now()

    assert clock("clock", now=at, newest=at + timedelta(minutes=2), kept=True).level == "fail"
    assert clock("clock", now=at, newest=at + timedelta(seconds=2), kept=True).level == "ok"
    assert clock("clock", now=at, newest=None, kept=True).level == "ok"


def test_a_clock_that_nobody_sets_warns() -> None:
    assert clock("clock", now=now(), newest=None, kept=False).level == "warn"


def test_the_kernel_is_asked_and_its_clock_left_alone() -> None:
    before = now()

    assert kernel_is_kept() in (True, False, None)
    assert now() - before < timedelta(minutes=1)


# The registry's contents.


def read_registry(folder: Path, *certificates: tuple[str, timedelta]) -> Registry:
    """What doctor reads of a registry with a site per certificate, which ends so much later."""
    authority, url = Authority(), f"sqlite:///{folder / 'registry.sqlite'}"
    sites = open_registry(url)
    for name, ends in certificates:
        site = authority.site(name)
        sites.add(site.record)
        sites.renew(
            site.site_id,
            CertificateRecord(
                certificate_sha256=Digest(sha256_hex(name.encode())),
                key_sha256=Digest(sha256_hex(f"{name}/key".encode())),
                chain_pem=b"",
                issued_at=now(),
                not_before=now(),
                not_after=now() + ends,
            ),
        )
    sites.close()
    return Registry.read(url)


def test_a_site_whose_certificate_ends_soon_is_named(tmp_path: Path) -> None:
    found = read_registry(tmp_path, ("late", timedelta(days=3)), ("fresh", timedelta(days=80)))

    finding = site_certificates("sites.expiry", found, now=now())
    assert (finding.level, "late" in finding.found, "fresh" in finding.found) == (
        "warn",
        True,
        False,
    )


def test_certificates_that_were_renewed_in_time_are_in_order(tmp_path: Path) -> None:
    found = read_registry(tmp_path, ("fresh", timedelta(days=80)))

    assert site_certificates("sites.expiry", found, now=now()).level == "ok"


@pytest.mark.parametrize(("revision", "level"), [("0001", "warn"), ("9999", "fail")])
def test_a_registry_of_another_version_is_not_changed(
    tmp_path: Path, revision: str, level: str
) -> None:
    read_registry(tmp_path, ("a", timedelta(days=80)))
    path = tmp_path / "registry.sqlite"
    with sqlite3.connect(path) as database:
        names = {row[0] for row in database.execute("SELECT version_num FROM alembic_version")}
        known = {"0001": first_revision(), "9999": "9999"}[revision]
        assert known not in names
        database.execute("UPDATE alembic_version SET version_num = ?", (known,))
    database.close()

    finding = registry("registry", f"sqlite:///{path}")

    assert finding.level == level
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchone() == (known,)
    database.close()


def first_revision() -> str:
    configuration = Config()
    configuration.set_main_option("script_location", str(MIGRATIONS))
    (base,) = ScriptDirectory.from_config(configuration).get_bases()
    return base


def test_a_postgresql_that_cannot_be_reached_fails_without_its_password(
    coordinator: Coordinator,
) -> None:
    coordinator.edit(database="postgresql+pg8000://fedward:s3cr3t@127.0.0.1:1/registry")

    finding = coordinator.find("registry")
    assert finding.level == "fail"
    assert "s3cr3t" not in coordinator.examine().text()


@pytest.mark.federation
def test_a_registry_on_postgresql_is_read_and_a_fresh_database_left_as_it_is(
    request: pytest.FixtureRequest,
) -> None:
    server: Postgres = request.getfixturevalue("postgres")
    url = server.new_database()
    assert registry("registry", url).found == "none yet: made at the first start"

    sites = open_registry(url)
    sites.add(Authority().site("alpha").record)
    sites.close()

    assert registry("registry", url).found == "1 active sites"
    assert registry("registry", server.url("another")).level == "fail"


@pytest.mark.parametrize(("mode", "level"), [(0o644, "warn"), (0o640, "ok")])
def test_a_password_in_settings_that_everybody_may_read_warns(
    coordinator: Coordinator, mode: int, level: str
) -> None:
    coordinator.edit(database="sqlite://me:s3cr3t@/nowhere.sqlite")
    coordinator.config.chmod(mode)

    assert coordinator.find("settings.password").level == level


# Enrolment.


def test_too_few_operators_warn(coordinator: Coordinator) -> None:
    assert coordinator.find("enrolment.operators").level == "warn"

    people = [
        {"name": f"Operator {number}", "public_key": SigningKey.generate().public_hex}
        for number in (1, 2)
    ]
    coordinator.edit(operators=people)

    assert coordinator.find("enrolment.operators").level == "ok"


def test_a_stranger_on_the_enrolment_port_fails(coordinator: Coordinator) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        address = f"127.0.0.1:{stranger.getsockname()[1]}"
        coordinator.edit(enrolment={"listen": address, "address": address})

        assert coordinator.find("enrolment.listener").level == "fail"


def test_a_closed_enrolment_port_is_in_order_while_nobody_is_invited(
    coordinator: Coordinator,
) -> None:
    coordinator.edit(enrolment={"listen": "127.0.0.1:1", "address": "127.0.0.1:1"})

    assert coordinator.find("enrolment.listener").found == "port 1: closed"


# Models.


def test_a_model_package_that_was_changed_fails_and_an_unsigned_model_is_counted(
    coordinator: Coordinator,
) -> None:
    authority, state = Authority(), coordinator.folder / "state"
    sites = [authority.site(name) for name in ("alpha", "beta", "gamma")]
    run = finished_run(state, *sites)
    assert "1 wait for their lead's signature" in coordinator.find("models").found

    sign_model(state, run.name, key=run.lead)
    assert coordinator.find("models").found == "1 signed and whole"

    card = package_path(state, run.name) / CARD
    card.write_text("# Another card\n")
    assert coordinator.find("models").level == "fail"
