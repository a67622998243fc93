"""Patients who object: their pseudonymous ids in a file of the site, left out of every round.

The file is UTF-8 text: the header `patient_id`, then one id per line. A file that is missing or
broken stops training at this site: leaving nobody out would be worse.
"""

import codecs
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from fedward_client.ports import Signer
from fedward_client.settings import SiteSettings
from fedward_common.canonical import sha256_hex
from fedward_common.errors import DataError
from fedward_common.ids import Digest

HEADER: Final = "patient_id"
MAX_BYTES: Final = 64 << 20
MAX_ID: Final = 256


def excluded_patients(settings: SiteSettings) -> frozenset[str]:
    """The ids that are left out, read afresh; none where site.toml names no file.

    Raises:
        DataError: the file is missing or not as it must be; never with anything out of it.
    """
    return frozenset() if settings.exclusions is None else parse_exclusions(settings.exclusions)


def parse_exclusions(path: Path) -> frozenset[str]:
    """The ids in one file.

    Raises:
        DataError: as `excluded_patients`.
    """
    return _ids(_read(path))


def exclusions_digest(path: Path, key: Signer) -> Digest:
    """A digest of a file that is as it must be, which only the holder of `key` can compute.

    A plain one would answer a guess: who reads it tries out lists with and without a patient.

    Raises:
        DataError: as `excluded_patients`.
    """
    data = _read(path)
    _ids(data)
    # Ed25519 signs the same bytes in the same way each time.
    return Digest(sha256_hex(key.sign(b"fedward/exclusions/v1|" + sha256_hex(data).encode())))


def without(rows: Iterable[list[str]], excluded: frozenset[str], *, column: int) -> list[list[str]]:
    """The rows of everybody else: no row whose cell in `column` is an excluded id."""
    return [row for row in rows if row[column] not in excluded]


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(
            f"exclusions: expected the file that site.toml names, found: {error.strerror}. Without "
            "it nothing is trained; an empty list is a file with its header only"
        ) from error
    if len(data) > MAX_BYTES:
        raise DataError(f"exclusions: expected at most {MAX_BYTES} bytes, found more")
    return data


def _ids(data: bytes) -> frozenset[str]:
    try:
        # Lines are split as those of the tables are: an id is the same in both.
        lines = data.removeprefix(codecs.BOM_UTF8).splitlines()
        header, *ids = [line.decode("utf-8").strip() for line in lines] or [""]
    except UnicodeDecodeError as error:
        raise DataError("exclusions: expected UTF-8 text, found other bytes") from error
    # Without this exact header the first patient would be taken for it, and stay in.
    if header != HEADER:
        raise DataError(f"exclusions: expected the header {HEADER} in the first line, found none")
    if any(len(one) > MAX_ID or not one.isprintable() or "," in one or '"' in one for one in ids):
        raise DataError("exclusions: expected one id per line and nothing else, found more")
    return frozenset(one for one in ids if one)
