"""The authority on disk: made once, opened without its root's key, its keys for nobody else."""

import stat
from pathlib import Path

import pytest

from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId
from fedward_common.trust.certificates import new_request, parse_peer_certificate
from fedward_server.adapters.certificate_authority import CertificateAuthority
from tests.support.pki import now


def test_an_authority_is_the_same_when_it_is_opened_again(tmp_path: Path) -> None:
    made = CertificateAuthority.create(tmp_path / "ca", federation="north", now=now())

    opened = CertificateAuthority.open(tmp_path / "ca", federation="north")

    chain = opened.issue_site(new_request("x").request_pem, site=SiteId("alpha"), now=now())
    assert opened.root_pem == made.root_pem
    assert parse_peer_certificate(chain).site_id == "alpha"
    assert parse_peer_certificate(chain).federation == "north"


def test_the_keys_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    CertificateAuthority.create(tmp_path / "ca", federation="north", now=now())

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "ca").iterdir()}
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700
    assert modes["root.key"] == modes["issuing.key"] == 0o600


def test_the_roots_key_may_lie_in_a_safe(tmp_path: Path) -> None:
    CertificateAuthority.create(tmp_path, federation="north", now=now())
    (tmp_path / "root.key").unlink()

    opened = CertificateAuthority.open(tmp_path, federation="north")

    assert opened.issue_server(new_request("edge").request_pem, hosts=["hub"], now=now())


def test_a_second_authority_does_not_replace_the_first(tmp_path: Path) -> None:
    first = CertificateAuthority.create(tmp_path, federation="north", now=now())

    with pytest.raises(ConfigError, match="expected no certificate authority, found one"):
        CertificateAuthority.create(tmp_path, federation="north", now=now())
    assert CertificateAuthority.open(tmp_path, federation="north").root_pem == first.root_pem


def test_an_authority_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a certificate authority, found no issuing"):
        CertificateAuthority.open(tmp_path, federation="north")


def test_an_issuing_key_open_to_others_is_refused(tmp_path: Path) -> None:
    CertificateAuthority.create(tmp_path, federation="north", now=now())
    (tmp_path / "issuing.key").chmod(0o644)

    with pytest.raises(ConfigError, match="expected mode 0600"):
        CertificateAuthority.open(tmp_path, federation="north")
