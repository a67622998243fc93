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

from fedward_client.adapters.sqlite_ledger import SqliteLedger
from fedward_client.doctor import Target, computing, examine_site, proxies, proxy_for
from fedward_client.policy import SitePolicy
from fedward_client.settings import load_site_settings
from fedward_common.doctor import Examination, Finding
from fedward_common.ids import SiteId
from fedward_common.log.events import EventLog, utc_now
from fedward_common.privacy.ledger import Reservation
from fedward_common.trust.certificates import NodeKey, make_loopback_identity
from fedward_server.sandbox.run import Inputs, Prepared, prepare
from tests.conftest import write_short_study
from tests.support.edge_process import running_edge
from tests.support.pki import Authority, now, write_identity

NAME = SiteId("university")


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
    found.edit(folders={"run": "run"}, data=[{"kind": "csv", "path": "patients.csv"}])
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


def test_a_healthy_site_with_a_study_that_fits_has_no_failure(
    prepared: Prepared, site: Site
) -> None:
    with coordinator(prepared) as port:
        site.edit(coordinator={"address": f"127.0.0.1:{port}"})
        made = site.examine(study=True)

    assert [f for f in made.findings if f.level == "fail"] == []
    assert {f.name for f in made.findings if f.level == "warn"} <= {"network", "disk", "memory"}
    assert made.exit_code in (0, 2)
    assert not (site.folder / "state").exists()
    assert not (site.folder / "run").exists()


def test_what_it_says_holds_no_secret_no_patient_and_no_proxys_password(
    prepared: Prepared, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://me:s3cr3t@127.0.0.1:9")
    site.edit(coordinator={"address": "203.0.113.1:443"})
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

    assert found["good"].level == "ok"
    assert "TLSv1.3" in found["good"].found
    assert found["late"].level == "fail"
    assert "refuses this site's certificate" in found["late"].found


def test_a_proxy_between_site_and_coordinator_warns() -> None:
    target = Target(host="edge.example", port=443, server_name="edge.example")
    proxy = {"https_proxy": "http://me:s3cr3t@proxy:3128"}

    assert proxies("p", target, {}).level == "ok"
    assert proxies("p", target, {"NO_PROXY": "localhost"}).level == "ok"
    assert proxies("p", target, proxy).level == "warn"
    assert "s3cr3t" not in proxies("p", target, proxy).found
    assert "grpc reads no_proxy" in proxies("p", target, proxy | {"NO_PROXY": ".example"}).found
    for bypass in ("edge.example", ".example", "example", "x, edge.example"):
        assert proxies("p", target, proxy | {"no_proxy": bypass}).level == "ok"
    for bypass in ("other.example", "dge.example", "*"):
        assert proxies("p", target, proxy | {"no_proxy": bypass}).level == "warn"


def test_which_proxy_counts_is_as_grpc_has_it() -> None:
    """Tried with grpcio 1.85.1: upper-case names and all_proxy do nothing."""
    assert proxy_for("10.0.0.7", {"HTTPS_PROXY": "a", "all_proxy": "b"}) is None
    assert proxy_for("10.0.0.7", {"http_proxy": "a", "https_proxy": "b"}) == "b"
    assert proxy_for("10.0.0.7", {"http_proxy": "a", "no_proxy": "10.0.0.0/8"}) is None
    assert proxy_for("203.0.113.7", {"http_proxy": "a", "no_proxy": "13.7"}) == "a"
    assert proxy_for("203.0.113.7", {"http_proxy": "a", "NO_PROXY": "203.0.113.7"}) == "a"
    assert proxy_for("127.0.0.1", {"http_proxy": "a"}) is None


@pytest.mark.parametrize("proxy", ["proxy:3128", "socks5://127.0.0.1", "http://127.0.0.1:x"])
def test_a_variable_that_holds_no_proxy_fails(
    site: Site, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    site.edit(coordinator={"address": "203.0.113.1:443"})

    assert site.find("coordinator").level == "fail"


def test_a_proxy_that_refuses_the_coordinator_fails(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def refuse() -> None:
            raw, _ = listener.accept()
            with raw:
                asked.append(raw.recv(4096))
                raw.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

        thread = threading.Thread(target=refuse)
        thread.start()
        monkeypatch.setenv("https_proxy", f"http://me:s3@127.0.0.1:{listener.getsockname()[1]}")
        site.edit(coordinator={"address": "203.0.113.1:443"})
        finding = site.find("coordinator")
        thread.join()

    assert finding.level == "fail"
    assert "proxy" in finding.found
    assert asked[0].startswith(b"CONNECT 203.0.113.1:443 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic bWU6czM=" in asked[0]


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
        (site.folder / folder).mkdir()
        (site.folder / folder).chmod(0o755)
        assert site.find(f"folder.{folder}").level == "fail"


def a_ledger(site: Site, prepared: Prepared) -> Path:
    """A ledger in which the study is admitted."""
    settings = load_site_settings(site.config)
    settings.folders.state.mkdir(mode=0o700)
    limits = SitePolicy.of(settings).limits
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
    site.edit(policy={"approved_studies": []})
    finding = site.find("study.policy", study=True)

    assert finding.level == "warn"
    assert "\n" not in finding.found


def test_a_device_that_is_not_there_fails() -> None:
    import torch

    assert computing("c", device="cpu").level == "ok"
    assert computing("c", device="cuda").level == ("ok" if torch.cuda.is_available() else "fail")
