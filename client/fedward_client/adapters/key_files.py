"""Private keys in files: 0600, owned by this user, no link. Anything else refuses to start.

A key may be encrypted (PKCS 8, AES-256 under the passphrase of `keys.passphrase_file`); it is then
opened in memory. The one exception is Flower's node key, see `flower_node_key`.
"""

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
from fedward_common.trust import private_files
from fedward_common.trust.certificates import NodeKey
from fedward_common.trust.private_files import (
    checked_passphrase,
    one_line,
    read_credential,
    write_private,
)
from fedward_common.trust.signing import SigningKey

ENCRYPTED: Final = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


def read_private(path: Path) -> bytes:
    """The bytes of a key file, as `private_files.read_private` checks it."""
    return private_files.read_private(path, what="key file")


def read_secret_file(path: Path, *, what: str) -> bytes:
    """The one line in a file that only this user may read, or that systemd put there for it.

    Raises:
        ConfigError: as `read_credential` and `one_line`.
    """
    return one_line(read_credential(path, what=what), what=f"{what} {path}")


def read_passphrase(path: Path | None) -> bytes | None:
    """The passphrase in `path`, or None where the keys have none.

    Raises:
        ConfigError: as `read_credential` and `checked_passphrase`.
    """
    if path is None:
        return None
    data = read_credential(path, what="passphrase_file")
    return checked_passphrase(data, what=f"passphrase_file {path}")


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
