"""`fedward-client doctor`: each finding provoked on a real site's folder."""

import contextlib
import os
import shutil
import socket
import sqlite3
import ssl
import threading
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedward_client.adapters.key_files import read_tls_key, sealed
from fedward_client.adapters.sqlite_ledger import SqliteLedger
from fedward_client.doctor import examine_site
from fedward_client.doctor.network import named_proxy, proxies
from fedward_client.doctor.site import computing
from fedward_client.guard.main import policy_of
from fedward_client.peer import Target
from fedward_client.settings import CoordinatorAddress, load_site_settings
from fedward_common.channel.tls import CIPHER_VARIABLE, TLS13_ONLY
from fedward_common.doctor import Examination, Finding, ok
from fedward_common.ids import SiteId
from fedward_common.log.events import EventLog, utc_now
from fedward_common.privacy.ledger import Reservation
from fedward_common.processes import offline_environment
from fedward_common.trust.certificates import Identity, NodeKey, make_loopback_identity
from fedward_common.trust.private_files import write_private
from fedward_server.sandbox.run import Inputs, Prepared, prepare
from tests.conftest import write_short_study
from tests.support.connect_proxy import connect_proxy
from tests.support.coordinator import Coordinator
from tests.support.coordinator import coordinator as whole_coordinator
from tests.support.edge_process import running_edge
from tests.support.pki import Authority, now, write_identity

NAME = SiteId("university")


@pytest.fixture(autouse=True)
def tls13(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test of this process may have imported grpc already."""
    monkeypatch.setenv(CIPHER_VARIABLE, TLS13_ONLY)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    folder = tmp_path_factory.mktemp("prepared")
    study = write_short_study(folder / "study.toml")
    made = prepare(Inputs.parse(study=study, sites=[], data=None), out=folder / "out")
    yield made
    shutil.rmtree(made.layout.run)


@dataclass(frozen=True)
class Site:
    """One hospital of its own in a temporary folder, and the signed study."""

    folder: Path
    study: Path

    @property
    def config(self) -> Path:
        return self.folder / "site.toml"

    def edit(self, **tables: Any) -> None:
        """Replaces keys of the settings' tables, or whole keys."""
        values = tomllib.loads(self.config.read_text())
        for name, change in tables.items():
            merged = {**values.get(name, {}), **change} if isinstance(change, dict) else change
            values[name] = merged
        self.config.write_text(tomli_w.dumps(values))

    def examine(self, *, study: bool = False) -> Examination:
        return examine_site(self.config, study=self.study if study else None)

    def find(self, name: str, *, study: bool = False) -> Finding:
        """The finding `name`; whatever is not ok says how to fix it."""
        made = self.examine(study=study)
        assert all(bool(f.fix) == (f.level != "ok") for f in made.findings)
        return next(f for f in made.findings if f.name == name)


@pytest.fixture
def site(prepared: Prepared, tmp_path: Path) -> Site:
    made = prepared.layout.sites[NAME]
    shutil.copytree(made.folder, tmp_path / "site")
    (tmp_path / "site").chmod(0o700)
    shutil.copy(made.data_file, tmp_path / "site" / "patients.csv")
    found = Site(tmp_path / "site", prepared.layout.root / "study.json")
    found.edit(
        folders={"run": "run"},
        data=[{"kind": "csv", "path": "patients.csv", "patient_key": "patient_id"}],
        isolation={"network": "none"},
    )
    return found


@contextlib.contextmanager
def listening(
    *, certificate: Path, key: Path, highest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, say: bytes
) -> Iterator[int]:
    """A TLS server on loopback that says `say` after each handshake and hangs up."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = highest
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    raw, _ = listener.accept()
                except OSError:
                    return
                with raw, contextlib.suppress(OSError):
                    channel = context.wrap_socket(raw, server_side=True)
                    channel.sendall(say)
                    channel.unwrap()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


@contextlib.contextmanager
def coordinator(prepared: Prepared, **options: Any) -> Iterator[int]:
    keys = prepared.layout.coordinator / "keys"
    files = {"certificate": keys / "tls.pem", "key": keys / "tls.key"}
    with listening(**{"say": b"settings", **files, **options}) as port:
        yield port


@contextlib.contextmanager
def answering(prepared: Prepared, site: Site, **answers: Any) -> Iterator[Coordinator]:
    """The sandbox's coordinator, as far as a site asks it; the site's settings lead there."""
    authority = Authority(federation="sandbox")
    authority.issuing = prepared.layout.issuing
    authority.root = Identity(certificate_pem=prepared.layout.ca_pem, key_pem=b"")
    with whole_coordinator(authority, **answers) as running:
        site.edit(coordinator={"address": running.address, "server_name": "localhost"})
        yield running


def test_a_healthy_site_with_a_study_that_fits_has_no_failure(
    prepared: Prepared, site: Site
) -> None:
    before = sorted(path for path in site.folder.rglob("*"))
    with answering(prepared, site):
        made = site.examine(study=True)

    assert [f for f in made.findings if f.level == "fail"] == []
    assert {f.name for f in made.findings if f.level == "warn"} <= {"network", "disk", "memory"}
    assert made.exit_code in (0, 2)
    assert sorted(path for path in site.folder.rglob("*")) == before


def test_what_it_says_holds_no_secret_no_patient_and_no_proxys_password(
    prepared: Prepared, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://me:s3cr3t@127.0.0.1:9")
    write_private(site.folder / "proxy.auth", b"me:s3cr3t")
    named = {"proxy": "http://127.0.0.1:9", "proxy_auth_file": "proxy.auth"}
    site.edit(coordinator={"address": "203.0.113.1:443", **named})
    table = site.folder / "patients.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, lines[1].replace(",", ",not-a-number-77,", 1)]))
    made = site.examine(study=True)
    text = made.text() + str(made.as_json())

    assert "s3cr3t" not in text
    assert "not-a-number-77" not in text
    for name in ("tls.key", "signing.pem", "node.key"):
        for line in (site.folder / "keys" / name).read_text().splitlines()[1:-1]:
            assert line not in text
    assert next(f for f in made.findings if f.name == "coordinator").level == "fail"


@pytest.mark.parametrize("text", ["site = 3", "not toml ["])
def test_wrong_settings_are_a_failure_and_not_a_warnings_exit_code(site: Site, text: str) -> None:
    """ConfigError's own exit code is 2, which would read as "warnings only"."""
    site.config.write_text(text)
    made = site.examine()

    assert made.exit_code == 1
    assert [f.name for f in made.findings] == ["settings"]


@pytest.mark.parametrize(
    ("name", "file"),
    [("key.tls", "tls.key"), ("key.signing", "signing.pem"), ("key.node", "node.key")],
)
def test_each_key_that_the_world_may_read_fails(site: Site, name: str, file: str) -> None:
    (site.folder / "keys" / file).chmod(0o644)

    assert site.find(name).level == "fail"
    assert site.examine().exit_code == 1


def test_each_key_belongs_to_the_one_user_that_may_read_it(site: Site) -> None:
    """With users of their own, a key that lies with another one of them fails as well."""
    users = {"guard_user": 12001, "gateway_user": 12002, "node_user": 12003, "worker_user": 12004}
    named = {key: f"#{number}" for key, number in users.items()}
    site.edit(guard={**named, "group": "#12000"})

    for name, key in (("tls", "gateway_user"), ("node", "node_user"), ("signing", "guard_user")):
        assert f"Fedward's is {users[key]}" in site.find(f"key.{name}").found


def test_keys_in_each_others_place_fail(site: Site) -> None:
    keys = site.folder / "keys"
    site.edit(keys={"signing_key": "keys/node.key", "node_key": "keys/signing.pem"})

    assert keys.exists()
    assert site.find("key.signing").level == "fail"
    assert site.find("key.node").level == "fail"


def test_an_expired_certificate_fails_once(site: Site) -> None:
    """Its chain is in order: only the date is said to be wrong."""
    authority = Authority()
    late = authority.site_identity(NAME, at=now() - timedelta(days=9), lifetime=timedelta(days=1))
    write_identity(site.folder / "keys", "tls", late, authority.root)
    (site.folder / "keys" / "root.pem").replace(site.folder / "keys" / "ca.pem")

    assert site.find("certificate.expiry").level == "fail"
    assert site.find("certificate.chain").level == "ok"


def test_another_sites_certificate_and_a_foreign_root_fail(site: Site) -> None:
    authority = Authority()
    other = authority.site_identity("elsewhere")
    write_identity(site.folder / "keys", "tls", other, authority.root)

    assert site.find("certificate.name").level == "fail"
    assert "elsewhere in north" in site.find("certificate.name").found
    assert site.find("certificate.chain").level == "fail"


def test_a_coordinator_that_is_down_or_unknown_fails(site: Site) -> None:
    for address in ("127.0.0.1:1", "no-such-host.invalid:443", "127.0.0.1:99999"):
        site.edit(coordinator={"address": address})

        assert site.find("coordinator").level == "fail"


def test_the_issuer_of_an_intercepting_proxy_is_named(site: Site, tmp_path: Path) -> None:
    proxy = Authority(federation="inspection.hospital")
    write_identity(tmp_path / "proxy", "tls", proxy.server_identity(), proxy.root)
    files = {"certificate": tmp_path / "proxy/tls.pem", "key": tmp_path / "proxy/tls.key"}

    for highest in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
        with listening(**files, say=b"hello", highest=highest) as port:
            site.edit(coordinator={"address": f"127.0.0.1:{port}"})
            finding = site.find("coordinator")

        assert finding.level == "fail"
        assert "'Fedward inspection.hospital issuing'" in finding.found
        assert "no-decrypt" in finding.fix or "unopened" in finding.fix


def test_a_coordinator_below_tls_1_3_fails(prepared: Prepared, site: Site) -> None:
    with coordinator(prepared, highest=ssl.TLSVersion.TLSv1_2) as port:
        site.edit(coordinator={"address": f"127.0.0.1:{port}"})
        finding = site.find("coordinator")

    assert finding.level == "fail"
    assert "TLS 1.3" in finding.found


def test_a_certificate_for_another_name_fails(prepared: Prepared, site: Site) -> None:
    with coordinator(prepared) as port:
        site.edit(coordinator={"address": f"127.0.0.1:{port}", "server_name": "edge.example"})
        finding = site.find("coordinator")

    assert finding.level == "fail"
    assert "not for edge.example" in finding.found


def test_a_peer_that_hangs_up_on_our_certificate_fails(prepared: Prepared, site: Site) -> None:
    with coordinator(prepared, say=b"") as port:
        site.edit(coordinator={"address": f"127.0.0.1:{port}"})
        finding = site.find("coordinator")

    assert finding.level == "fail"
    assert "refuses this site's certificate" in finding.found


def test_a_real_edge_takes_its_site_and_refuses_an_expired_one(site: Site, tmp_path: Path) -> None:
    with running_edge(tmp_path / "edge", NAME) as edge:
        site.edit(coordinator={"address": edge.address, "server_name": "localhost"})
        keys = site.folder / "keys"
        late = edge.authority.site_identity(
            NAME, at=now() - timedelta(days=9), lifetime=timedelta(days=1)
        )
        found = {}
        for name, identity in (("good", edge.sites[NAME].identity), ("late", late)):
            write_identity(keys, "tls", identity, edge.authority.root)
            (keys / "root.pem").replace(keys / "ca.pem")
            found[name] = site.find("coordinator")
            if name == "good":
                made = {finding.name: finding for finding in site.examine().findings}

    assert found["good"].level == "ok"
    for name in ("coordinator.clock", "coordinator.versions"):
        assert made[name].level == "ok", made[name]
    assert "TLSv1.3" in found["good"].found
    assert found["late"].level == "fail"
    assert "refuses this site's certificate" in found["late"].found


FAR = Target(host="edge.example", port=443, server_name="edge.example")


def test_variables_for_a_proxy_are_not_used_and_warn_where_the_coordinator_is_out_of_reach() -> (
    None
):
    none, environment = ok("proxy", "none"), offline_environment()
    asked = environment | {"https_proxy": "http://me:s3cr3t@proxy:3128"}

    assert proxies(none, FAR, environment, reached=False) == none
    assert proxies(none, FAR, asked, reached=True).level == "ok"
    found = proxies(none, FAR, asked, reached=False)
    assert (found.level, "coordinator.proxy" in found.fix) == ("warn", True)
    assert "s3cr3t" not in found.found + found.fix


@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_loopback_that_would_go_by_proxy_fails(name: str) -> None:
    environment = offline_environment() | {name: "hospital.example"}

    assert proxies(ok("proxy", "none"), FAR, environment, reached=True).level == "fail"


def test_the_named_proxy_is_told_and_its_credentials_are_checked(tmp_path: Path) -> None:
    auth = tmp_path / "proxy.auth"
    auth.write_text("me:s3cr3t")
    auth.chmod(0o644)
    address = CoordinatorAddress(
        address="edge.example:443", proxy="http://proxy:3128", proxy_auth_file=auth
    )

    assert named_proxy("p", address, FAR)[1].level == "fail"
    auth.chmod(0o600)
    proxy, finding = named_proxy("p", address, FAR)
    assert (proxy is not None, finding.level) == (True, "ok")
    assert "proxy:3128 stands before edge.example:443" in finding.found
    near = Target(host="127.0.0.1", port=443, server_name="localhost")
    assert named_proxy("p", address, near)[0] is None


@pytest.mark.parametrize(
    ("credentials", "status", "text"),
    [("me:right", None, "user and password"), (None, 403, "answered 403")],
)
def test_a_proxy_that_refuses_is_told_with_its_reason(
    site: Site, credentials: str | None, status: int | None, text: str
) -> None:
    write_private(site.folder / "proxy.auth", b"me:wrong")
    with connect_proxy({}, credentials=credentials, status=status) as proxy:
        site.edit(
            coordinator={
                "address": "edge.example:443",
                "proxy": proxy.url,
                "proxy_auth_file": "proxy.auth",
            }
        )
        finding = site.find("coordinator")

    assert finding.level == "fail"
    assert text in finding.found
    assert proxy.targets == ["edge.example:443"]


def test_an_intercepting_proxy_is_named_by_the_issuer_of_what_it_shows(
    prepared: Prepared, site: Site
) -> None:
    with (
        whole_coordinator(Authority(federation="inspection"), name="edge.example") as middle,
        connect_proxy({"edge.example:443": middle.port}) as proxy,
    ):
        site.edit(
            coordinator={
                "address": "edge.example:443",
                "server_name": "edge.example",
                "proxy": proxy.url,
            }
        )
        made = {finding.name: finding for finding in site.examine().findings}

    assert made["coordinator"].level == "fail"
    assert "'Fedward inspection issuing'" in made["coordinator"].found
    assert "no-decrypt" in made["coordinator"].fix
    assert "coordinator.clock" not in made
    assert middle.heard == []


def test_through_a_proxy_that_only_passes_all_is_well(prepared: Prepared, site: Site) -> None:
    with (
        answering(prepared, site, name="edge.example") as far,
        connect_proxy({"edge.example:443": far.port}) as proxy,
    ):
        site.edit(
            coordinator={
                "address": "edge.example:443",
                "server_name": "edge.example",
                "proxy": proxy.url,
            }
        )
        made = {finding.name: finding.level for finding in site.examine().findings}

    assert made["proxy"] == made["coordinator"] == made["coordinator.versions"] == "ok"
    assert len(proxy.targets) == 2


@pytest.mark.parametrize(("hours", "level"), [(0, "ok"), (0.03, "warn"), (-2, "fail")])
def test_the_coordinators_clock_is_compared(
    prepared: Prepared, site: Site, hours: float, level: str
) -> None:
    with answering(prepared, site, ahead=timedelta(hours=hours)):
        assert site.find("coordinator.clock").level == level


def test_other_versions_and_revoked_members_are_told(prepared: Prepared, site: Site) -> None:
    versions = {"fedward-common": "0.1.0", "flwr": "9.9.9"}
    with answering(prepared, site, versions=versions, revoked=["elsewhere"]):
        made = {finding.name: finding for finding in site.examine().findings}

    assert made["coordinator.versions"].level == "warn"
    assert "flwr 9.9.9 there" in made["coordinator.versions"].found
    assert "elsewhere" in made["coordinator.members"].found


def test_a_revoked_site_learns_why_it_is_refused(prepared: Prepared, site: Site) -> None:
    with answering(prepared, site, refusal="site-revoked"):
        finding = site.find("coordinator.hello")

    assert finding.level == "fail"
    assert "the coordinator revoked this site" in finding.found


def test_a_renewal_that_is_overdue_warns(site: Site) -> None:
    authority = Authority()
    for days, level in ((50, "ok"), (60.5, "ok"), (62, "warn")):
        aged = authority.site_identity(NAME, at=now() - timedelta(days=days))
        write_identity(site.folder / "keys", "tls", aged, authority.root)
        site.edit(federation="north")

        assert site.find("certificate.renewal").level == level


def test_keys_under_a_passphrase_pass_and_plain_ones_beside_it_warn(site: Site) -> None:
    keys = site.folder / "keys"
    write_private(site.folder / "passphrase", b"a passphrase of some length\n")
    site.edit(keys={"passphrase_file": "passphrase"})
    assert site.find("key.tls").level == "warn"

    plain = read_tls_key(keys / "tls.key")
    write_private(keys / "tls.key", sealed(plain, b"a passphrase of some length"))

    assert site.find("key.tls").level == "ok"
    assert site.find("certificate.chain").level == "ok"
    write_private(site.folder / "passphrase", b"another passphrase of length\n")
    assert site.find("key.tls").level == "fail"
    (site.folder / "passphrase").chmod(0o644)
    assert site.find("key.passphrase").level == "fail"


def test_a_port_in_use_by_a_stranger_fails(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        stranger.settimeout(0)
        site.edit(ports={"runtime": stranger.getsockname()[1]})

        assert site.find("port.runtime").level == "fail"


def test_the_gateways_port_is_ours_when_it_shows_this_sites_certificate(site: Site) -> None:
    files = make_loopback_identity(site.folder / "state" / "loopback")

    with listening(certificate=files.certificate, key=files.key, say=b"x") as port:
        site.edit(ports={"gateway": port})

        assert site.find("port.gateway").level == "ok"
        shutil.rmtree(site.folder / "state" / "loopback")
        assert site.find("port.gateway").level == "fail"


def test_a_long_socket_path_and_open_folders_fail(site: Site) -> None:
    site.edit(folders={"run": "r" * 120})
    assert site.find("sockets").level == "fail"

    site.edit(folders={"run": "run"})
    for folder in ("run", "state"):
        (site.folder / folder).mkdir(exist_ok=True)
        (site.folder / folder).chmod(0o755)
        assert site.find(f"folder.{folder}").level == "fail"


def a_ledger(site: Site, prepared: Prepared) -> Path:
    """A ledger in which the study is admitted."""
    settings = load_site_settings(site.config)
    settings.folders.state.mkdir(mode=0o700, exist_ok=True)
    limits = policy_of(settings).limits
    ledger = SqliteLedger(settings.ledger_path, limits=limits, clock=utc_now)
    ledger.reserve(Reservation.of(prepared.study))
    ledger.close()
    return settings.ledger_path


def edit_row(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("DROP TRIGGER entries_no_update")
        database.execute("UPDATE entries SET body = '{}' WHERE seq = 2")


def overwrite(path: Path) -> None:
    path.write_bytes(os.urandom(4096))


@pytest.mark.parametrize("damage", [edit_row, overwrite, Path.unlink])
def test_a_damaged_ledger_fails(
    prepared: Prepared, site: Site, damage: Callable[[Path], None]
) -> None:
    path = a_ledger(site, prepared)
    assert site.find("ledger").level == "ok"

    damage(path)

    assert site.find("ledger").level == "fail"


def test_a_ledger_that_is_behind_the_journal_or_gone_fails(prepared: Prepared, site: Site) -> None:
    path = a_ledger(site, prepared)
    log = EventLog(site.folder / "state" / "audit" / "site.jsonl")
    log.append("study.admitted", ledger_seq=9, head_sha256="1" * 64)
    log.close()

    assert site.find("ledger").level == "fail"
    for left in path.parent.glob("ledger.sqlite*"):
        left.unlink()
    assert site.find("ledger").level == "fail"


def test_an_edited_journal_fails(site: Site) -> None:
    path = site.folder / "state" / "audit" / "site.jsonl"
    log = EventLog(path)
    log.append("guard.stopped", pid=7)
    log.append("guard.stopped", pid=8)
    log.close()
    assert site.find("journal").level == "ok"

    path.write_bytes(path.read_bytes().replace(b'"pid":7', b'"pid":6'))

    assert site.find("journal").level == "fail"
    assert "line 1" in site.find("journal").found


def test_a_table_that_is_missing_empty_or_no_text_fails(site: Site) -> None:
    table = site.folder / "patients.csv"

    for content in (b"", b"\n\n", b"a,b\xff\n", b'"a\nb'):
        table.write_bytes(content)
        assert site.find("data.1").level == "fail", content
    table.unlink()
    assert site.find("data.1").level == "fail"


def test_a_table_that_everybody_may_read_warns(site: Site) -> None:
    """Everybody: its own mode and that of every folder above it."""
    (site.folder / "patients.csv").chmod(0o644)
    opened = [p for p in (site.folder, *site.folder.parents) if not p.stat().st_mode & 0o001]
    modes = {folder: folder.stat().st_mode for folder in opened}
    assert site.find("data.1").level == "ok"
    try:
        for folder in opened:
            folder.chmod(folder.stat().st_mode | 0o001)
        assert site.find("data.1").level == "warn"
    finally:
        for folder, mode in modes.items():
            folder.chmod(mode)


def test_a_row_that_does_not_fit_the_study_fails_without_its_value(site: Site) -> None:
    table = site.folder / "patients.csv"
    header, first, *rest = table.read_text().splitlines()
    cells = first.split(",")
    cells[-2] = "zebra"
    table.write_text("\n".join([header, ",".join(cells), *rest]) + "\n")
    findings = [site.find(f"study.data.{part}", study=True) for part in ("train", "test")]

    assert "fail" in {finding.level for finding in findings}
    assert all("zebra" not in finding.found for finding in findings)
    assert site.find("data.1").level == "ok"


def test_the_tables_are_checked_against_every_study_that_is_approved_here(
    prepared: Prepared, site: Site
) -> None:
    settings = load_site_settings(site.config)
    settings.studies_folder.mkdir(parents=True)
    shutil.copy(site.study, settings.studies_folder / f"{prepared.study.digest}.json")
    name = f"data.schema.{prepared.study.id}"
    assert site.find(name).level == "ok"

    table = site.folder / "patients.csv"
    header, *rest = table.read_text().splitlines()
    table.write_text("\n".join([header.replace(",", ",other-", 1), *rest]) + "\n")

    assert site.find(name).level == "fail"
    for path in (site.folder / "state" / "approvals").glob("*.json"):
        path.unlink()
    assert all(finding.name != name for finding in site.examine().findings)


def test_a_study_that_is_missing_or_changed_fails(site: Site, tmp_path: Path) -> None:
    changed = tmp_path / "changed.json"
    changed.write_bytes(site.study.read_bytes().replace(b'"rounds":1', b'"rounds":2'))

    for path in (tmp_path / "none.json", changed):
        findings = examine_site(site.config, study=path).findings
        assert [f.level for f in findings if f.name.startswith("study")] == ["fail"]


def test_a_study_with_other_keys_of_this_site_or_without_it_fails(site: Site) -> None:
    NodeKey.generate().write(site.folder / "keys" / "node.key")
    assert site.find("study.keys", study=True).level == "fail"

    site.edit(site="elsewhere")
    assert "not in the study" in site.find("study.keys", study=True).found


def test_a_study_that_is_not_approved_yet_warns(site: Site) -> None:
    assert site.find("study.policy", study=True).level == "ok"
    for path in (site.folder / "state" / "approvals").glob("*.json"):
        path.unlink()
    finding = site.find("study.policy", study=True)

    assert finding.level == "warn"
    assert "\n" not in finding.found


def test_a_site_where_nobody_can_approve_warns_and_a_damaged_approval_fails(site: Site) -> None:
    assert site.find("approvals").level == "ok"
    (path,) = (site.folder / "state" / "approvals").glob("*.json")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"said_at":"2', b'"said_at":"3'))
    assert site.find("approvals").level == "fail"
    path.unlink()
    site.edit(approvers=[])

    assert site.find("approvals").level == "warn"


def test_a_list_of_exclusions_that_is_damaged_fails(site: Site) -> None:
    assert site.find("exclusions").level == "ok"
    (site.folder / "exclusions.csv").write_text("somebody\nelse\n")
    site.edit(exclusions="exclusions.csv")

    assert site.find("exclusions").level == "fail"


def test_a_device_that_is_not_there_fails() -> None:
    import torch

    assert computing("c", device="cpu").level == "ok"
    assert computing("c", device="cuda").level == ("ok" if torch.cuda.is_available() else "fail")
