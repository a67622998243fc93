"""Whether an app bundle is free of code: names of installed entry points and nothing else."""

import io
import lzma
import tomllib
import zipfile
import zlib
from typing import Any, Final

from fedward_client.gateway.fleet import Bundle
from fedward_common.canonical import sha256_hex
from fedward_common.errors import ProtocolError

MEMBERS: Final = frozenset({"pyproject.toml", "LICENSE", ".info/CONTENT"})
MAX_UNPACKED_BYTES: Final = 1 << 18
UNREADABLE: Final = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    OSError,  # what bz2 raises
    RuntimeError,  # an encrypted member; RecursionError in TOML
    KeyError,
    ValueError,
    EOFError,
)
"""What reading a damaged zip raises; a defect of ours would make SuperNode ask again for ever."""
CLIENT_APP: Final = "fedward_client.flower_app:app"


def check_bundle(bundle: Bundle) -> None:
    """Returns when the bundle is what its digest says and holds no code.

    1. Its bytes have the digest that it claims.
    2. It is a zip of at most the three known files, each once, 256 KiB unpacked.
    3. The ClientApp that it names is the installed one, and it asks for no dependency.

    Left to the caller: that this site approved the digest.

    Raises:
        ProtocolError: with the step that failed; nothing from the bundle is repeated in the text.
    """
    # 1.
    if sha256_hex(bundle.content) != bundle.sha256:
        raise ProtocolError("bundle: expected the bytes of its digest, found others")
    # 2.
    try:
        with zipfile.ZipFile(io.BytesIO(bundle.content)) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if not set(names) <= MEMBERS or len(set(names)) != len(names):
                raise ProtocolError(
                    f"bundle: expected only {', '.join(sorted(MEMBERS))}, found other files"
                )
            if sum(entry.file_size for entry in entries) > MAX_UNPACKED_BYTES:
                raise ProtocolError("bundle: expected at most 256 KiB unpacked, found more")
            project = tomllib.loads(archive.read("pyproject.toml").decode())
    except UNREADABLE as error:
        raise ProtocolError("bundle: expected a zip with pyproject.toml, found another") from error
    # 3.
    app = _table(_table(_table(project, "tool"), "flwr"), "app")
    if _table(app, "components").get("clientapp") != CLIENT_APP:
        raise ProtocolError(f"bundle: expected the installed ClientApp {CLIENT_APP}, found another")
    if _table(project, "project").get("dependencies"):
        raise ProtocolError("bundle: expected no dependencies, found some")


def _table(value: dict[str, Any], key: str) -> dict[str, Any]:
    inner = value.get(key, {})
    return inner if isinstance(inner, dict) else {}
