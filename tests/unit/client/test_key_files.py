"""Private keys: 0600, this user's, no link; anything else refuses."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fedward_client.adapters.key_files import (
    flower_node_key,
    is_encrypted,
    read_node_key,
    read_passphrase,
    read_private,
    read_secret_file,
    read_signing_key,
    read_tls_key,
    write_node_key,
    write_signing_key,
    write_tls_key,
)
from fedward_common.errors import ConfigError
from fedward_common.trust.certificates import NodeKey, new_request
from fedward_common.trust.signing import SigningKey

PASSPHRASE = b"a passphrase of some length"


def test_a_key_comes_back_and_its_file_is_private(tmp_path: Path) -> None:
    key, path = SigningKey.generate(), tmp_path / "signing.pem"

    write_signing_key(path, key)

    assert read_signing_key(path).public_hex == key.public_hex
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o644, 0o777])
def test_a_file_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "signing.pem"
    write_signing_key(path, SigningKey.generate())
    path.chmod(mode)

    with pytest.raises(ConfigError, match=rf"expected mode 0600, found {mode:04o}.*chmod 600"):
        read_signing_key(path)


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "signing.pem"
    write_signing_key(path, SigningKey.generate())
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)

    with pytest.raises(ConfigError, match="chown"):
        read_signing_key(path)


def test_a_link_is_refused(tmp_path: Path) -> None:
    write_signing_key(tmp_path / "real.pem", SigningKey.generate())
    (tmp_path / "link.pem").symlink_to(tmp_path / "real.pem")

    with pytest.raises(ConfigError, match="no link"):
        read_signing_key(tmp_path / "link.pem")


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)

    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigError):
            read_private(path)


def test_a_file_without_a_key_is_refused_and_its_text_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "signing.pem"
    path.touch(0o600)
    path.write_text("something secret")

    with pytest.raises(ConfigError) as raised:
        read_signing_key(path)

    assert str(path) in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_key_is_not_written_over_another(tmp_path: Path) -> None:
    path = tmp_path / "signing.pem"
    write_signing_key(path, SigningKey.generate())
    before = path.read_bytes()

    with pytest.raises(ConfigError, match="expected no file"):
        write_signing_key(path, SigningKey.generate())

    assert path.read_bytes() == before


def test_each_kind_of_key_comes_back_from_under_a_passphrase(tmp_path: Path) -> None:
    signing, node, tls = SigningKey.generate(), NodeKey.generate(), new_request("site").key_pem
    write_signing_key(tmp_path / "signing.pem", signing, passphrase=PASSPHRASE)
    write_node_key(tmp_path / "node.key", node, passphrase=PASSPHRASE)
    write_tls_key(tmp_path / "tls.key", tls, passphrase=PASSPHRASE)

    found = read_signing_key(tmp_path / "signing.pem", passphrase=PASSPHRASE)
    assert found.public_hex == signing.public_hex
    assert read_node_key(tmp_path / "node.key", passphrase=PASSPHRASE).sha256 == node.sha256
    assert read_tls_key(tmp_path / "tls.key", passphrase=PASSPHRASE) == tls
    for path in tmp_path.iterdir():
        assert is_encrypted(path)
        assert path.stat().st_mode & 0o777 == 0o600
        assert read_private(path).startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")


def test_keys_without_a_passphrase_are_read_whether_or_not_one_is_set(tmp_path: Path) -> None:
    node = NodeKey.generate()
    write_node_key(tmp_path / "node.key", node)

    for passphrase in (None, PASSPHRASE):
        assert read_node_key(tmp_path / "node.key", passphrase=passphrase).sha256 == node.sha256


@pytest.mark.parametrize("read", [read_signing_key, read_node_key, read_tls_key])
@pytest.mark.parametrize("passphrase", [None, b"another passphrase of length"])
def test_an_encrypted_key_without_its_passphrase_is_refused_by_name(
    tmp_path: Path, read: Callable[..., object], passphrase: bytes | None
) -> None:
    path = tmp_path / "a.key"
    write_signing_key(path, SigningKey.generate(), passphrase=PASSPHRASE)

    with pytest.raises(ConfigError, match="passphrase_file") as raised:
        read(path, passphrase=passphrase)
    assert str(path) in str(raised.value)
    assert "another passphrase" not in str(raised.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
@pytest.mark.parametrize("read", [read_signing_key, read_node_key, read_tls_key])
def test_every_kind_of_key_refuses_a_file_that_others_may_open(
    tmp_path: Path, read: Callable[..., object], mode: int
) -> None:
    path = tmp_path / "a.key"
    write_tls_key(path, new_request("site").key_pem)
    path.chmod(mode)

    with pytest.raises(ConfigError, match="chmod 600"):
        read(path)


def test_a_passphrase_is_the_one_line_of_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    path.write_bytes(PASSPHRASE + b"\n")
    path.chmod(0o400)

    assert read_passphrase(path) == PASSPHRASE
    assert read_passphrase(None) is None


@pytest.mark.parametrize(
    ("data", "mode", "text"),
    [
        (PASSPHRASE, 0o644, "only this user"),
        (PASSPHRASE, 0o640, "only this user"),
        (b"short", 0o600, "at least 20"),
        (b"", 0o600, "one line"),
        (PASSPHRASE + b"\nand more", 0o600, "one line"),
    ],
)
def test_a_passphrase_that_is_open_short_or_several_lines_is_refused(
    tmp_path: Path, data: bytes, mode: int, text: str
) -> None:
    path = tmp_path / "passphrase"
    path.write_bytes(data)
    path.chmod(mode)

    with pytest.raises(ConfigError, match=text) as raised:
        read_passphrase(path)
    assert "and more" not in str(raised.value)
    assert "short" not in str(raised.value)


@pytest.mark.parametrize(
    ("mode", "allowed"), [(0o440, True), (0o400, True), (0o444, False), (0o460, False)]
)
def test_a_credential_that_systemd_put_there_for_this_user_may_belong_to_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, allowed: bool
) -> None:
    """Its access list for the service shows as the group's right to read; root is its owner."""
    path = tmp_path / "credential"
    path.write_bytes(PASSPHRASE)
    path.chmod(mode)
    fstat = os.fstat

    def of_root(descriptor: int) -> os.stat_result:
        found = list(fstat(descriptor))
        found[stat.ST_UID] = 0
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", of_root)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)

    if allowed:
        assert read_secret_file(path, what="passphrase_file") == PASSPHRASE
    else:
        with pytest.raises(ConfigError, match="systemd credential"):
            read_secret_file(path, what="passphrase_file")


def test_flower_gets_an_encrypted_node_key_opened_in_the_run_folder_and_only_while_it_runs(
    tmp_path: Path,
) -> None:
    path, key = tmp_path / "node.key", NodeKey.generate()
    write_node_key(path, key, passphrase=PASSPHRASE)

    with flower_node_key(path, run=tmp_path / "run", passphrase=PASSPHRASE) as opened:
        assert opened.parent == tmp_path / "run"
        assert NodeKey.from_openssh(opened.read_bytes()).sha256 == key.sha256
        assert stat.S_IMODE(opened.stat().st_mode) == 0o600
    assert list((tmp_path / "run").iterdir()) == []


def test_a_node_key_that_is_not_encrypted_is_given_to_flower_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    write_node_key(path, NodeKey.generate())

    with flower_node_key(path, run=tmp_path / "run", passphrase=None) as opened:
        assert opened == path
    assert path.exists()
    assert not (tmp_path / "run").exists()
