"""`init` makes a federation that `serve` can read, once, with nothing open to others."""

import ssl
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fedward_common.errors import ConfigError
from fedward_common.trust.chains import spki_sha256
from fedward_server.adapters.certificate_authority import open_authority, server_hosts
from fedward_server.adapters.secret_files import read_passphrase
from fedward_server.init import (
    NewFederation,
    init_federation,
    renew_issuing_authority,
    renew_server_certificate,
)
from fedward_server.operators import new_operator, read_operator_key, sign_as
from fedward_server.settings import CoordinatorSettings, load_coordinator_settings
from tests.support.pki import now

PASSPHRASE = b"a long passphrase for the root"


def init(root: Path, **changes: Any) -> dict[str, str]:
    values: dict[str, Any] = {
        "folder": root / "hub",
        "federation": "north.example.org",
        "host": "hub.example.org",
        "root_folder": root / "usb",
        "root_passphrase": PASSPHRASE,
    }
    return init_federation(NewFederation(**{**values, **changes}), now=now())


def settings_of(made: dict[str, str]) -> CoordinatorSettings:
    return load_coordinator_settings(Path(made["settings"]))


def test_a_new_federation_is_read_as_it_was_made(tmp_path: Path) -> None:
    made = init(tmp_path)

    settings = settings_of(made)
    authority = open_authority(settings)
    assert authority is not None
    assert settings.federation == "north.example.org"
    assert settings.address == "hub.example.org:9443"
    assert settings.enrolment.address == "hub.example.org:9444"
    assert settings.enrolment.operators_needed == 2
    assert settings.tls.ca.read_bytes() == authority.root_pem
    assert made["root_sha256"] == spki_sha256(authority.root_pem)
    assert server_hosts(settings.tls.certificate.read_bytes())[0] == "hub.example.org"


def test_the_edges_certificate_and_key_belong_together(tmp_path: Path) -> None:
    settings = settings_of(init(tmp_path))

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    context.load_cert_chain(settings.tls.certificate, settings.tls.key)


def test_no_secret_is_open_to_others(tmp_path: Path) -> None:
    init(tmp_path, issuing_passphrase=b"a passphrase for issuing")

    for path in tmp_path.rglob("*"):
        if path.suffix in (".key", ".p12") or path.is_dir():
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_an_encrypted_issuing_key_is_opened_by_the_file_in_the_settings(tmp_path: Path) -> None:
    secret = tmp_path / "issuing.passphrase"
    secret.write_bytes(b"a passphrase for issuing\n")
    secret.chmod(0o600)

    made = init(
        tmp_path,
        issuing_passphrase=read_passphrase(secret),
        issuing_passphrase_file=secret,
    )

    assert open_authority(settings_of(made)) is not None


@pytest.mark.parametrize("again", ["same folders", "same medium"])
def test_a_second_federation_does_not_replace_the_first(tmp_path: Path, again: str) -> None:
    init(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    changes = {"folder": tmp_path / "other"} if again == "same medium" else {}

    with pytest.raises(ConfigError, match="expected nothing there"):
        init(tmp_path, **changes)

    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_a_name_that_is_no_domain_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="federation"):
        init(tmp_path, federation="The North")
    assert list(tmp_path.iterdir()) == []


def test_the_edge_gets_a_new_key_and_certificate_for_the_same_hosts(tmp_path: Path) -> None:
    settings = settings_of(init(tmp_path))
    key, certificate = settings.tls.key.read_bytes(), settings.tls.certificate.read_bytes()

    ends = renew_server_certificate(settings, now=now())

    assert (ends - now()).days >= 89
    assert settings.tls.key.read_bytes() != key
    assert server_hosts(settings.tls.certificate.read_bytes()) == server_hosts(certificate)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
        settings.tls.certificate, settings.tls.key
    )


def test_the_issuing_authority_is_renewed_from_the_medium(tmp_path: Path) -> None:
    made = init(tmp_path)
    settings = settings_of(made)
    before = open_authority(settings)

    ends = renew_issuing_authority(
        settings, root_file=Path(made["root_key"]), root_passphrase=PASSPHRASE, now=now()
    )

    after = open_authority(settings)
    assert before is not None
    assert after is not None
    assert after.root_pem == before.root_pem
    assert after.issuing_pem != before.issuing_pem
    assert (ends - now()).days >= 729


def test_an_operators_lines_are_what_the_settings_read(tmp_path: Path) -> None:
    lines = new_operator('Åse "Ada" Berg', tmp_path / "keys" / "ada.pem")

    entry = tomllib.loads(lines)["operators"][0]
    assert entry["name"] == 'Åse "Ada" Berg'
    assert entry["public_key"] == read_operator_key(tmp_path / "keys" / "ada.pem").public_hex


def test_an_operators_key_is_never_replaced(tmp_path: Path) -> None:
    new_operator("Ada", tmp_path / "ada.pem")

    with pytest.raises(ConfigError, match="expected no file"):
        new_operator("Ada", tmp_path / "ada.pem")


def test_only_the_named_operators_own_key_signs(tmp_path: Path) -> None:
    made = init(tmp_path)
    lines = [new_operator(name, tmp_path / f"{name}.pem") for name in ("Ada", "Ben")]
    with Path(made["settings"]).open("a") as file:
        file.writelines(lines)
    settings = settings_of(made)

    def sign(name: str, key: str) -> str:
        facts = {"site": "alpha"}
        return sign_as(
            settings, name, tmp_path / key, kind="site-revocation", facts=facts, now=now()
        ).person

    assert sign("Ada", "Ada.pem") == "Ada"
    with pytest.raises(ConfigError, match="the key of Ada, found another's"):
        sign("Ada", "Ben.pem")
    with pytest.raises(ConfigError, match="expected one of"):
        sign("Cem", "Ada.pem")


@pytest.mark.parametrize("line", [b"", b"short\n", b"two lines, both long\nenough\n", b"\0" * 20])
def test_what_is_no_passphrase_is_refused(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "passphrase"
    path.write_bytes(line)
    path.chmod(0o600)

    with pytest.raises(ConfigError, match=r"expected (one line|at least 20 characters)"):
        read_passphrase(path)


def test_a_passphrase_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"a long enough passphrase")
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "link").symlink_to(tmp_path / "real")

    with pytest.raises(ConfigError, match="no link"):
        read_passphrase(tmp_path / "link")
