"""Private keys in files: 0600, owned by this user, no link. Anything else refuses to start.

A key may be encrypted (PKCS 8, AES-256 under the passphrase of `keys.passphrase_file`); it is then
opened in memory. The one exception is Flower's node key, see `flower_node_key`.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from cryptography.x509.oid import NameOID

from fedward_common.errors import ConfigError
from fedward_common.trust.certificates import NodeKey
from fedward_common.trust.private_files import write_private
from fedward_common.trust.signing import SigningKey

MAX_KEY_BYTES: Final = 1 << 16
MIN_PASSPHRASE: Final = 20
"""PKCS 8 stretches a passphrase 2048 times only: what protects is its length."""
ENCRYPTED: Final = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


def read_private(path: Path) -> bytes:
    """The bytes of a private file, after checking who else could read or change it.

    Raises:
        ConfigError: no such file, a link, another owner, or a mode that lets others in.
    """
    data, found = _read(path, what="key file")
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"key file {path}: expected it to belong to this process's user ({os.geteuid()}), "
            f"found user {found.st_uid}. Run: chown"
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise ConfigError(
            f"key file {path}: expected mode 0600, found {mode:04o}: others may open it. "
            "Run: chmod 600, and replace the key if anyone could have read it"
        )
    return data


def read_secret_file(path: Path, *, what: str) -> bytes:
    """The one line in a file that only this user may read, or that systemd put there for it.

    A systemd credential belongs to root and is opened to the service by an access list, which the
    mode shows as group-readable; no other file of root may be.

    Raises:
        ConfigError: no such file, a link, readable by others, empty or more than one line.
    """
    data, found = _read(path, what=what)
    mode = stat.S_IMODE(found.st_mode)
    ours = found.st_uid == os.geteuid()
    if not (ours or found.st_uid == 0) or mode & (0o077 if ours else 0o037):
        raise ConfigError(
            f"{what} {path}: expected a file that only this user may read (0600), or a systemd "
            f"credential, found mode {mode:04o} of user {found.st_uid}. Run: chmod 600"
        )
    line = data.removesuffix(b"\n").removesuffix(b"\r")
    if not line or b"\n" in line or b"\0" in line:
        raise ConfigError(f"{what} {path}: expected one line, found none or several")
    return line


def _read(path: Path, *, what: str) -> tuple[bytes, os.stat_result]:
    try:
        # The checks are made on what was opened, not on a name that could change in between.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(
            f"{what} {path}: expected a readable file that is no link, found {error.strerror}"
        ) from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{what} {path}: expected a regular file, found something else")
        data = os.read(descriptor, MAX_KEY_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_KEY_BYTES:
        raise ConfigError(f"{what} {path}: expected a key, found more than {MAX_KEY_BYTES} bytes")
    return data, found


def read_passphrase(path: Path | None) -> bytes | None:
    """The passphrase in `path`, or None where the keys have none.

    Raises:
        ConfigError: as `read_secret_file`, or shorter than 20 characters.
    """
    if path is None:
        return None
    passphrase = read_secret_file(path, what="passphrase_file")
    if len(passphrase) < MIN_PASSPHRASE:
        raise ConfigError(
            f"passphrase_file {path}: expected at least {MIN_PASSPHRASE} characters, found fewer. "
            "Make one by chance, for instance with: openssl rand -base64 32"
        )
    return passphrase


def read_signing_key(path: Path, *, passphrase: bytes | None = None) -> SigningKey:
    """The site's Ed25519 key in `path`.

    Raises:
        ConfigError: as `read_private`, another passphrase, or not such a key.
    """
    with _naming(path):
        return SigningKey.from_pem(_opened(path, passphrase))


def read_node_key(path: Path, *, passphrase: bytes | None = None) -> NodeKey:
    """The site's Flower node key in `path`: OpenSSH's format, or encrypted PKCS 8.

    Raises:
        ConfigError: as `read_private`, another passphrase, or not such a key.
    """
    with _naming(path):
        data = read_private(path)
        if not data.startswith(ENCRYPTED):
            return NodeKey.from_openssh(data)
        key = _decrypted(data, passphrase)
        return NodeKey.from_openssh(
            key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        )


def read_tls_key(path: Path, *, passphrase: bytes | None = None) -> bytes:
    """The TLS key in `path` as unencrypted PEM, for grpc and `ssl`; it stays in memory.

    Raises:
        ConfigError: as `read_private`, another passphrase, or no private key.
    """
    with _naming(path):
        return _opened(path, passphrase)


def is_encrypted(path: Path) -> bool:
    """Whether the key in `path` is encrypted. Raises ConfigError as `read_private`."""
    return read_private(path).startswith(ENCRYPTED)


def write_signing_key(path: Path, key: SigningKey, *, passphrase: bytes | None = None) -> None:
    """Writes `key` to `path`, 0600; never over an existing file.

    Raises:
        ConfigError: there is a file: a key is not replaced by accident.
    """
    _write_new(path, sealed(key.to_pem(), passphrase))


def write_node_key(path: Path, key: NodeKey, *, passphrase: bytes | None = None) -> None:
    """Writes `key` to `path` as `read_node_key` reads it, 0600; never over an existing file.

    Raises:
        ConfigError: there is a file.
    """
    data = key.to_openssh()
    if passphrase is not None:
        opened = load_ssh_private_key(data, password=None)
        data = opened.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase)
        )
    _write_new(path, data)


def write_tls_key(path: Path, key_pem: bytes, *, passphrase: bytes | None = None) -> None:
    """Writes an unencrypted PEM key to `path`, encrypted where there is a passphrase.

    Raises:
        ConfigError: there is a file.
    """
    _write_new(path, sealed(key_pem, passphrase))


def sealed(key_pem: bytes, passphrase: bytes | None) -> bytes:
    """An unencrypted PEM key as it is kept: encrypted under the passphrase, where there is one."""
    if passphrase is None:
        return key_pem
    key = load_pem_private_key(key_pem, password=None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase))


@contextmanager
def flower_node_key(path: Path, *, run: Path, passphrase: bytes | None) -> Iterator[Path]:
    """The file that `flower-supernode` reads while the site runs.

    SuperNode takes an unencrypted OpenSSH file only. A node key that is encrypted is therefore
    opened into the run folder, 0600, and removed again at the end: have `folders.run` in memory
    (/run is). A copy that a crash left behind is replaced.

    Raises:
        ConfigError: as `read_node_key`.
    """
    key = read_node_key(path, passphrase=passphrase)
    if not is_encrypted(path):
        yield path
        return
    opened = run / "node.key"
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    key.write(opened)
    try:
        yield opened
    finally:
        opened.unlink(missing_ok=True)


def _opened(path: Path, passphrase: bytes | None) -> bytes:
    data = read_private(path)
    if not data.startswith(ENCRYPTED):
        return data
    key = _decrypted(data, passphrase)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _decrypted(data: bytes, passphrase: bytes | None) -> PrivateKeyTypes:
    if passphrase is None:
        raise ConfigError(
            "expected a key that is not encrypted, found one that is. Set keys.passphrase_file"
        )
    try:
        return load_pem_private_key(data, password=passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            "expected a key under the passphrase of keys.passphrase_file, found another. "
            "Correct that file"
        ) from error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the file's name before what is wrong with its content."""
    try:
        yield
    except ConfigError as error:
        if str(path) in str(error):
            raise
        raise ConfigError(f"key file {path}: {error}") from error


def _write_new(path: Path, data: bytes) -> None:
    if path.exists():
        raise ConfigError(f"key file {path}: expected no file, found one. Move it away first")
    write_private(path, data)


def certificate_request(key_pem: bytes, *, common_name: str) -> bytes:
    """A request (PEM) for a certificate of the unencrypted EC key in `key_pem`.

    Raises:
        ConfigError: no EC key.
    """
    key = load_pem_private_key(key_pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("TLS key: expected an EC key, found a key of another kind")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
