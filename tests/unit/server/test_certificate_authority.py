"""The authority on disk: made once, opened without its root's key, its keys for nobody else."""

import stat
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId
from fedward_common.trust.certificates import expires_at, new_request, parse_peer_certificate
from fedward_server.adapters.certificate_authority import (
    ISSUING_KEY,
    ROOT_KEY,
    CertificateAuthority,
    open_authority,
    server_hosts,
)
from fedward_server.settings import load_coordinator_settings
from tests.support.pki import now

ROOT_PASSPHRASE = b"a long passphrase for the root"
PASSPHRASE = b"a passphrase for the issuing key"


def create(folder: Path, **changes: Any) -> CertificateAuthority:
    values: dict[str, Any] = {
        "federation": "north",
        "now": now(),
        "root_file": folder.parent / "usb" / ROOT_KEY,
        "root_passphrase": ROOT_PASSPHRASE,
    }
    return CertificateAuthority.create(folder, **{**values, **changes})


def test_an_authority_is_the_same_when_it_is_opened_again(tmp_path: Path) -> None:
    made = create(tmp_path / "ca")

    opened = CertificateAuthority.open(tmp_path / "ca", federation="north")

    chain = opened.issue_site(new_request("x").request_pem, site=SiteId("alpha"), now=now())
    assert opened.root_pem == made.root_pem
    assert parse_peer_certificate(chain).site_id == "alpha"
    assert parse_peer_certificate(chain).federation == "north"


def test_the_keys_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    create(tmp_path / "ca")

    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "ca" / ISSUING_KEY).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "usb" / ROOT_KEY).stat().st_mode) == 0o600


def test_the_roots_key_is_nowhere_but_in_its_encrypted_file(tmp_path: Path) -> None:
    create(tmp_path / "ca")

    assert sorted(path.name for path in (tmp_path / "ca").iterdir()) == [
        *("issuing.key", "issuing.pem", "root.pem")
    ]
    assert b"PRIVATE KEY" not in (tmp_path / "usb" / ROOT_KEY).read_bytes()


def test_the_roots_key_may_lie_in_a_safe(tmp_path: Path) -> None:
    create(tmp_path / "ca")
    (tmp_path / "usb" / ROOT_KEY).unlink()

    opened = CertificateAuthority.open(tmp_path / "ca", federation="north")

    assert opened.issue_server(new_request("edge").request_pem, hosts=["hub"], now=now())


def test_a_second_authority_does_not_replace_the_first(tmp_path: Path) -> None:
    first = create(tmp_path / "ca")

    with pytest.raises(ConfigError, match="expected no certificate authority, found one"):
        create(tmp_path / "ca", root_file=tmp_path / "other" / ROOT_KEY)
    with pytest.raises(ConfigError, match="expected no certificate authority, found one"):
        create(tmp_path / "other")
    opened = CertificateAuthority.open(tmp_path / "ca", federation="north")
    assert opened.root_pem == first.root_pem


def test_an_authority_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a certificate authority, found no root"):
        CertificateAuthority.open(tmp_path, federation="north")


def test_an_issuing_key_open_to_others_is_refused(tmp_path: Path) -> None:
    create(tmp_path / "ca")
    (tmp_path / "ca" / ISSUING_KEY).chmod(0o644)

    with pytest.raises(ConfigError, match="0600"):
        CertificateAuthority.open(tmp_path / "ca", federation="north")


def test_an_encrypted_issuing_key_opens_with_its_passphrase_only(tmp_path: Path) -> None:
    create(tmp_path / "ca", issuing_passphrase=PASSPHRASE)

    CertificateAuthority.open(tmp_path / "ca", federation="north", passphrase=PASSPHRASE)

    assert b"ENCRYPTED" in (tmp_path / "ca" / ISSUING_KEY).read_bytes()
    with pytest.raises(ConfigError, match="expected a passphrase"):
        CertificateAuthority.open(tmp_path / "ca", federation="north")
    with pytest.raises(ConfigError, match="expected another passphrase"):
        CertificateAuthority.open(tmp_path / "ca", federation="north", passphrase=b"another one")


def test_the_passphrase_comes_from_the_file_that_the_settings_name(tmp_path: Path) -> None:
    create(tmp_path / "state" / "authority", issuing_passphrase=PASSPHRASE)
    secret = tmp_path / "passphrase"
    secret.write_bytes(PASSPHRASE + b"\n")
    (tmp_path / "coordinator.toml").write_text(
        'federation = "north"\n[tls]\ncertificate = "a"\nkey = "b"\nca = "c"\n'
        '[authority]\npassphrase_file = "passphrase"\n'
    )
    settings = load_coordinator_settings(tmp_path / "coordinator.toml")

    secret.chmod(0o644)
    with pytest.raises(
        ConfigError, match=r"passphrase file .* expected a file that only this user may read"
    ):
        open_authority(settings)
    secret.chmod(0o600)

    assert open_authority(settings) is not None


def test_a_machine_without_the_authority_has_none(tmp_path: Path) -> None:
    (tmp_path / "coordinator.toml").write_text(
        'federation = "north"\n[tls]\ncertificate = "a"\nkey = "b"\nca = "c"\n'
    )

    assert open_authority(load_coordinator_settings(tmp_path / "coordinator.toml")) is None


def renew(folder: Path, **changes: Any) -> CertificateAuthority:
    values: dict[str, Any] = {
        "federation": "north",
        "now": now(),
        "root_file": folder.parent / "usb" / ROOT_KEY,
        "root_passphrase": ROOT_PASSPHRASE,
    }
    return CertificateAuthority.renew_issuing(folder, **{**values, **changes})


def test_the_root_makes_the_next_issuing_authority(tmp_path: Path) -> None:
    first = create(tmp_path / "ca", now=now() - timedelta(days=700))

    second = renew(tmp_path / "ca")

    opened = CertificateAuthority.open(tmp_path / "ca", federation="north")
    assert opened.root_pem == first.root_pem
    assert opened.issuing_pem == second.issuing_pem != first.issuing_pem


def test_another_root_or_passphrase_makes_no_issuing_authority(tmp_path: Path) -> None:
    create(tmp_path / "ca")
    create(tmp_path / "theirs", root_file=tmp_path / "theirs-usb" / ROOT_KEY)

    with pytest.raises(ConfigError, match="PKCS 12 file and its passphrase"):
        renew(tmp_path / "ca", root_passphrase=b"not the passphrase")
    with pytest.raises(ConfigError, match="found another's"):
        renew(tmp_path / "ca", root_file=tmp_path / "theirs-usb" / ROOT_KEY)


def test_the_hosts_of_a_server_certificate_are_read_back(tmp_path: Path) -> None:
    chain = create(tmp_path / "ca").issue_server(
        new_request("edge").request_pem, hosts=["hub.example.org", "127.0.0.1"], now=now()
    )

    assert server_hosts(chain) == ["hub.example.org", "127.0.0.1"]
    with pytest.raises(ConfigError):
        server_hosts(b"no certificate")


@pytest.mark.parametrize("late", [timedelta(0), timedelta(minutes=2), timedelta(days=1)])
def test_an_issuing_authority_that_has_ended_signs_nothing_and_says_so(
    tmp_path: Path, late: timedelta
) -> None:
    made = create(tmp_path / "ca")
    ended = expires_at(made.issuing_pem) + late

    with pytest.raises(ConfigError, match="found one that has ended"):
        made.issue_site(new_request("x").request_pem, site=SiteId("alpha"), now=ended)
