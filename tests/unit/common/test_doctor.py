"""The checks that both `doctor` commands share, each provoked on the real thing."""

import json
import os
import socket
import ssl
import subprocess
import threading
from datetime import timedelta
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from fedward_common.doctor import (
    Examination,
    Finding,
    IdentityFiles,
    certificate_chain,
    certificate_expiry,
    disk,
    event_log,
    fail,
    key_file,
    loopback_port,
    memory,
    network_separation,
    ok,
    private_folder,
    program,
    read_interfaces,
    read_meminfo,
    read_strangers,
    satisfies,
    shows_certificate_of,
    socket_paths,
    telemetry,
    versions,
    warn,
)
from fedward_common.log.events import EventLog
from fedward_common.processes import offline_environment
from fedward_common.trust.certificates import Identity, make_loopback_identity
from tests.support.pki import Authority, now, write_identity

OURS = {os.geteuid()}
SECRET = "-----BEGIN PRIVATE KEY-----\nMIGHAgEA\n"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def identity(folder: Path, found: Identity, authority: Authority) -> IdentityFiles:
    write_identity(folder, "own", found, authority.root)
    return IdentityFiles(
        certificate=folder / "own.pem", key=folder / "own.key", root=folder / "root.pem"
    )


def key(folder: Path, mode: int = 0o600) -> Path:
    path = folder / "tls.key"
    path.write_text(SECRET)
    path.chmod(mode)
    return path


def level(finding: Finding) -> str:
    """The level; every finding that is not ok must say how to fix it, and hold no secret."""
    assert bool(finding.fix) == (finding.level != "ok")
    assert "MIGHAgEA" not in finding.found + finding.fix
    return finding.level


def test_the_exit_code_is_that_of_the_worst_finding() -> None:
    good, odd, bad = ok("a", "x"), warn("b", "y", "z"), fail("c", "y", "z")

    for findings, code in (((good,), 0), ((good, odd), 2), ((odd, bad, good), 1), ((), 0)):
        assert Examination(subject="s", findings=findings).exit_code == code


def test_text_and_json_hold_every_finding_and_its_fix() -> None:
    made = Examination(subject="site a", findings=(ok("a", "x"), fail("bee", "found y", "do z")))

    assert json.loads(json.dumps(made.as_json())) == {
        "format": "fedward-doctor/1",
        "subject": "site a",
        "level": "fail",
        "findings": [
            {"name": "a", "level": "ok", "found": "x", "fix": ""},
            {"name": "bee", "level": "fail", "found": "found y", "fix": "do z"},
        ],
    }
    assert made.text().splitlines() == [
        "doctor: site a",
        "  ok    a    x",
        "  FAIL  bee  found y",
        "             -> do z",
        "1 ok, 1 fail, 0 warn",
    ]


def test_a_private_key_of_ours_is_in_order(tmp_path: Path) -> None:
    assert level(key_file("key", key(tmp_path), owners=OURS)) == "ok"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604])
def test_a_key_that_others_may_open_fails(tmp_path: Path, mode: int) -> None:
    finding = key_file("key", key(tmp_path, mode), owners=OURS)

    assert level(finding) == "fail"
    assert "chmod 600" in finding.fix


def test_a_key_of_another_owner_fails(tmp_path: Path) -> None:
    finding = key_file("key", key(tmp_path), owners={os.geteuid() + 1})

    assert level(finding) == "fail"
    assert f"belongs to user {os.geteuid()}" in finding.found


def test_a_missing_key_a_linked_key_and_a_key_in_an_open_folder_fail(tmp_path: Path) -> None:
    path, link = key(tmp_path), tmp_path / "link"
    link.symlink_to(path)

    assert level(key_file("key", tmp_path / "none", owners=OURS)) == "fail"
    assert level(key_file("key", link, owners=OURS)) == "fail"
    tmp_path.chmod(0o777)
    assert level(key_file("key", path, owners=OURS)) == "fail"


def test_a_certificate_is_good_then_to_be_renewed_then_ended(
    tmp_path: Path, authority: Authority
) -> None:
    files = identity(tmp_path, authority.site_identity("a"), authority)

    for days, expected in ((0, "ok"), (60, "ok"), (75, "warn"), (91, "fail")):
        finding = certificate_expiry("c", files, now=now() + timedelta(days=days))
        assert level(finding) == expected


def test_no_certificate_in_the_file_fails(tmp_path: Path, authority: Authority) -> None:
    files = identity(tmp_path, authority.site_identity("a"), authority)
    files.certificate.write_text("nothing")

    assert level(certificate_expiry("c", files, now=now())) == "fail"
    assert level(certificate_chain("c", files, role="site")) == "fail"
    files.certificate.unlink()
    assert level(certificate_expiry("c", files, now=now())) == "fail"
    assert level(certificate_chain("c", files, role="site")) == "fail"


def test_chains_of_sites_and_servers_lead_to_the_root(tmp_path: Path, authority: Authority) -> None:
    site = identity(tmp_path / "a", authority.site_identity("a"), authority)
    server = identity(tmp_path / "b", authority.server_identity(), authority)

    assert level(certificate_chain("c", site, role="site")) == "ok"
    assert level(certificate_chain("c", server, role="server")) == "ok"


def test_a_certificate_in_the_wrong_role_fails(tmp_path: Path, authority: Authority) -> None:
    site = identity(tmp_path / "a", authority.site_identity("a"), authority)
    server = identity(tmp_path / "b", authority.server_identity(), authority)

    assert level(certificate_chain("c", site, role="server")) == "fail"
    assert level(certificate_chain("c", server, role="site")) == "fail"


@pytest.mark.parametrize("role", ["site", "server"])
def test_a_foreign_root_fails(tmp_path: Path, authority: Authority, role: str) -> None:
    """The other authority has the same names: only its keys differ."""
    own = authority.site_identity("a") if role == "site" else authority.server_identity()
    files = identity(tmp_path, own, Authority())

    assert level(certificate_chain("c", files, role=role)) == "fail"  # type: ignore[arg-type]


def test_a_chain_without_its_issuing_authority_fails(tmp_path: Path, authority: Authority) -> None:
    files = identity(tmp_path, authority.site_identity("a"), authority)
    first = files.certificate.read_bytes().split(b"-----END CERTIFICATE-----")[0]
    files.certificate.write_bytes(first + b"-----END CERTIFICATE-----\n")

    assert level(certificate_chain("c", files, role="site")) == "fail"


def test_the_key_of_another_certificate_fails(tmp_path: Path, authority: Authority) -> None:
    files = identity(tmp_path, authority.site_identity("a"), authority)
    files.key.write_bytes(authority.site_identity("a").key_pem)

    assert level(certificate_chain("c", files, role="site")) == "fail"


def test_an_encrypted_key_fails_and_asks_for_no_password(
    tmp_path: Path, authority: Authority
) -> None:
    files = identity(tmp_path, authority.site_identity("a"), authority)
    locked = subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-passout", "pass:long-secret", "-in", files.key],
        capture_output=True,
        check=True,
    )
    files.key.write_bytes(locked.stdout)

    assert level(certificate_chain("c", files, role="site")) == "fail"


def test_an_expired_chain_is_told_apart_from_a_foreign_one(
    tmp_path: Path, authority: Authority
) -> None:
    late = authority.site_identity("a", at=now() - timedelta(days=20), lifetime=timedelta(days=10))
    files = identity(tmp_path / "a", late, authority)
    foreign = identity(tmp_path / "b", late, Authority())

    finding = certificate_chain("c", files, role="site")
    assert level(finding) == "fail"
    assert "expired" in finding.found
    assert level(certificate_chain("c", files, role="site", expired=True)) == "ok"
    assert level(certificate_chain("c", foreign, role="site", expired=True)) == "fail"


def test_a_free_port_is_ok_and_a_used_one_only_when_it_is_ours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        assert level(loopback_port("p", port, key="k", ours=lambda: False)) == "fail"
        assert level(loopback_port("p", port, key="k", ours=lambda: True)) == "ok"
    assert level(loopback_port("p", port, key="k", ours=lambda: False)) == "ok"


def test_a_port_is_ours_when_it_shows_this_machines_certificate(tmp_path: Path) -> None:
    files = make_loopback_identity(tmp_path / "a")
    other = make_loopback_identity(tmp_path / "b")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer() -> None:
            for _ in range(2):
                raw, _ = listener.accept()
                try:
                    context.wrap_socket(raw, server_side=True).close()
                except OSError:
                    raw.close()

        thread = threading.Thread(target=answer)
        thread.start()
        assert shows_certificate_of(port, files.ca)
        assert not shows_certificate_of(port, other.ca)
        thread.join()
    assert not shows_certificate_of(port, files.ca)


def test_a_folder_that_others_enter_fails(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    assert level(private_folder("f", folder)) == "ok"
    folder.mkdir(mode=0o700)
    assert level(private_folder("f", folder)) == "ok"
    folder.chmod(0o750)
    assert level(private_folder("f", folder)) == "fail"
    assert level(private_folder("f", folder, group=True)) == "ok"
    folder.chmod(0o755)
    assert level(private_folder("f", folder, group=True)) == "fail"


def test_a_folder_that_is_a_file_or_below_one_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch(mode=0o600)

    assert level(private_folder("f", tmp_path / "file")) == "fail"
    assert level(private_folder("f", tmp_path / "file" / "run")) == "fail"


def test_the_limit_of_a_socket_path_is_the_kernels(tmp_path: Path) -> None:
    """A path that is called too long cannot be bound, and the longest that passes can."""
    room = 107 - len(os.fsencode(tmp_path)) - 1
    good, bad = tmp_path / ("x" * room), tmp_path / ("x" * (room + 1))

    assert level(socket_paths("s", [tmp_path, good])) == "ok"
    assert level(socket_paths("s", [tmp_path, bad])) == "fail"
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(good))
    with socket.socket(socket.AF_UNIX) as one, pytest.raises(OSError, match="too long"):
        one.bind(str(bad))


def test_disk_and_memory_have_two_thresholds(tmp_path: Path) -> None:
    text = "MemTotal:  9 kB\nMemAvailable:    2097152 kB\n"

    for fails, warns, expected in ((0, 1, "ok"), (0, 1 << 60, "warn"), (1 << 60, 1 << 61, "fail")):
        assert level(disk("d", tmp_path / "x", fails_below=fails, warns_below=warns)) == expected
        assert level(memory("m", text, fails_below=fails, warns_below=warns)) == expected
    assert level(memory("m", "", fails_below=1, warns_below=2)) == "warn"
    assert level(memory("m", read_meminfo(), fails_below=1, warns_below=2)) == "ok"


def test_an_edited_log_fails_and_an_absent_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "audit" / "site.jsonl"
    assert level(event_log("log", path)) == "ok"
    assert not path.parent.exists()

    log = EventLog(path)
    for pid in (1, 2, 3):
        log.append("guard.started", pid=pid, policy_sha256="0" * 64)
    log.close()
    assert level(event_log("log", path)) == "ok"

    path.write_bytes(path.read_bytes().replace(b'"pid":2', b'"pid":7'))
    assert level(event_log("log", path)) == "fail"


def test_children_get_no_telemetry_and_anything_less_fails() -> None:
    environment = offline_environment()

    assert level(telemetry("t", environment)) == "ok"
    for key_, value in (("FLWR_TELEMETRY_ENABLED", "1"), ("FLWR_DISABLE_UPDATE_CHECK", "")):
        finding = telemetry("t", environment | {key_: value})
        assert level(finding) == "fail"
        assert key_ in finding.found


def test_a_missing_program_fails(tmp_path: Path) -> None:
    assert level(program("flower-supernode", offline_environment())) == "ok"
    assert level(program("flower-supernode", {"PATH": str(tmp_path)})) == "fail"


def test_installed_frameworks_are_those_that_the_distributions_ask_for() -> None:
    findings = versions("fedward-client", "fedward-common")

    assert [f.name for f in findings] == [
        "version.flwr",
        "version.grpcio",
        "version.torch",
        "version.opacus",
    ]
    assert {level(f) for f in findings} == {"ok"}


def test_another_version_or_none_fails() -> None:
    def none(name: str) -> str:
        raise PackageNotFoundError(name)

    for installed in (lambda _: "0.9.1", none):
        findings = versions("fedward-client", "fedward-common", installed=installed)
        assert {level(f) for f in findings} == {"fail"}
        assert findings[0].fix == 'Run: pip install "flwr==1.41.0"'
    assert {level(f) for f in versions("no-such-distribution")} == {"warn"}


@pytest.mark.parametrize(
    ("version", "specifier", "expected"),
    [
        ("2.13.0+cpu", "<3,>=2.9", True),
        ("3.0", "<3,>=2.9", False),
        ("1.41.0", "==1.41", True),
        ("1.41.1", "==1.41.0", False),
        ("1.6.5", ">1.6,<=1.6.5", True),
        ("1.6.5", "!=1.6.5", False),
        ("1.6", "~=1.6", False),
        ("unknown", ">=1", False),
    ],
)
def test_version_clauses(version: str, specifier: str, *, expected: bool) -> None:
    assert satisfies(version, specifier) is expected


def test_only_a_shared_host_without_a_namespace_warns() -> None:
    def of(interfaces: set[str], strangers: set[int]) -> str:
        return level(network_separation("n", interfaces=interfaces, strangers=strangers))

    assert of({"lo"}, {1001}) == "ok"
    assert of({"lo", "eth0"}, set()) == "ok"
    assert of({"lo", "eth0"}, {1001}) == "warn"


def test_interfaces_and_strangers_are_read_from_this_host() -> None:
    everybody = read_strangers(ours=())

    assert "lo" in read_interfaces()
    assert all(1000 <= uid < 65534 for uid in everybody)
    assert read_strangers(ours=everybody) == frozenset()
