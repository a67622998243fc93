"""The sandbox parent's own copy of a site's notes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from fedward_common.errors import DataError
from fedward_common.ids import SiteId
from fedward_common.notes.tokens import read_vocabulary
from fedward_common.study.encoding import PatientRecords, TablePart
from fedward_common.study.notes import NotesData

Rows = Sequence[Mapping[str, str]]

VOCABULARY: Final = "vocabulary.txt"
"""Beside patients.csv, where the study has word pieces."""


def read_notes(
    schema: NotesData, site: SiteId, path: Path, rows: Rows, part: TablePart
) -> PatientRecords:
    """The records of a site's notes as the site encodes them. Raises DataError naming the site."""
    from fedward_common.notes.encoding import encode_notes  # noqa: PLC0415 - imports torch

    absent = [name for name in schema.columns if rows and name not in rows[0]]
    if absent:
        raise DataError(f"{site}: expected the columns {', '.join(absent)} in {path.name}")
    try:
        vocabulary = read_vocabulary(schema.tokeniser, path.with_name(VOCABULARY))
        return encode_notes(schema, rows, part=part, vocabulary=vocabulary, strict=True)
    except DataError as error:
        raise DataError(f"{site}: {error}") from error


def all_notes(
    schema: NotesData, files: Mapping[SiteId, Path], tables: Mapping[SiteId, Rows], part: TablePart
) -> dict[SiteId, PatientRecords]:
    """`read_notes` of every site."""
    return {
        site: read_notes(schema, site, files[site], rows, part) for site, rows in tables.items()
    }
