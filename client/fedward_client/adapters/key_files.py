"""Private keys in files: 0600, owned by this user, no link. Anything else refuses to start."""

import os
import stat
from pathlib import Path

from fedward_common.errors import ConfigError
from fedward_common.trust.private_files import write_private
from fedward_common.trust.signing import SigningKey

MAX_KEY_BYTES = 1 << 16


def read_private(path: Path) -> bytes:
    """The bytes of a private file, after checking who else could read or change it.

    Raises:
        ConfigError: no such file, a link, another owner, or a mode that lets others in.
    """
    try:
        # The checks are made on what was opened, not on a name that could change in between.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(
            f"key file {path}: expected a readable file that is no link, found {error.strerror}"
        ) from error
    try:
        _check_private(path, os.fstat(descriptor))
        data = os.read(descriptor, MAX_KEY_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_KEY_BYTES:
        raise ConfigError(f"key file {path}: expected a key, found more than {MAX_KEY_BYTES} bytes")
    return data


def _check_private(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"key file {path}: expected a regular file, found something else")
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


def read_signing_key(path: Path) -> SigningKey:
    """The site's Ed25519 key in `path`.

    Raises:
        ConfigError: as `read_private`, or not such a key.
    """
    try:
        return SigningKey.from_pem(read_private(path))
    except ConfigError as error:
        if str(path) in str(error):
            raise
        raise ConfigError(f"key file {path}: {error}") from error


def write_signing_key(path: Path, key: SigningKey) -> None:
    """Writes `key` to `path`, 0600; never over an existing file.

    Raises:
        ConfigError: there is a file: a key is not replaced by accident.
    """
    if path.exists():
        raise ConfigError(f"key file {path}: expected no file, found one. Move it away first")
    write_private(path, key.to_pem())
