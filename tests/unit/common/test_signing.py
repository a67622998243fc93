"""Ed25519 keys: signing, checking, naming; and how private keys reach the disk."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from fedward_common.errors import ConfigError, SignatureRefused
from fedward_common.trust.private_files import write_atomically, write_private
from fedward_common.trust.signing import SigningKey, key_sha256, verify

# RFC 8032, section 7.1, test 2.
RFC_PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
RFC_MESSAGE = bytes.fromhex("72")
RFC_SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_the_vector_of_rfc_8032_verifies() -> None:
    verify(RFC_PUBLIC, RFC_SIGNATURE, RFC_MESSAGE)


def test_a_signature_verifies_with_the_public_key() -> None:
    key = SigningKey.generate()

    verify(key.public_hex, key.sign(b"data"), b"data")


@pytest.mark.parametrize("change", ["data", "signature", "key"])
def test_a_changed_data_signature_or_key_is_refused(change: str) -> None:
    key = SigningKey.generate()
    public = SigningKey.generate().public_hex if change == "key" else key.public_hex
    signature = bytearray(key.sign(b"data"))
    if change == "signature":
        signature[0] ^= 1

    with pytest.raises(SignatureRefused, match="expected one by the Ed25519 key"):
        verify(public, bytes(signature), b"other" if change == "data" else b"data")


@pytest.mark.parametrize("public", ["", "zz" * 32, "AB" * 32, "ab" * 31, "ab" * 33])
def test_text_that_is_no_public_key_is_refused(public: str) -> None:
    with pytest.raises(SignatureRefused, match="64 lower-case hexadecimal digits"):
        verify(public, b"\0" * 64, b"data")


def test_the_digest_of_a_key_is_over_its_raw_bytes() -> None:
    assert key_sha256(RFC_PUBLIC) == hashlib.sha256(bytes.fromhex(RFC_PUBLIC)).hexdigest()


def test_a_key_survives_its_pem() -> None:
    key = SigningKey.generate()

    assert SigningKey.from_pem(key.to_pem()).public_hex == key.public_hex


@pytest.mark.parametrize("pem", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_something_else_than_a_key_is_refused_without_repeating_it(pem: bytes) -> None:
    with pytest.raises(ConfigError, match="expected an unencrypted Ed25519 key") as caught:
        SigningKey.from_pem(pem)

    assert "AAAA" not in str(caught.value)


def test_printing_a_key_shows_its_public_half_only() -> None:
    key = SigningKey.generate()

    assert repr(key) == f"SigningKey(public_hex='{key.public_hex}')"


def test_a_private_file_is_readable_by_its_owner_only_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_private(tmp_path / "key", b"secret")
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert (tmp_path / "key").read_bytes() == b"secret"


def test_writing_again_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"old")

    write_private(tmp_path / "key", b"new")

    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("key", b"new")]


def test_a_link_in_the_place_of_the_file_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "key").symlink_to(tmp_path / "other")

    write_atomically(tmp_path / "key", b"new")

    assert (tmp_path / "other").read_bytes() == b"other"
    assert not (tmp_path / "key").is_symlink()
