"""Private keys: 0600, this user's, no link; anything else refuses."""

import os
from pathlib import Path

import pytest

from fedward_client.adapters.key_files import read_private, read_signing_key, write_signing_key
from fedward_common.errors import ConfigError
from fedward_common.trust.signing import SigningKey


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
