"""The sandbox parent's own copy of a site's labelled rows (sequences and the like)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from fedward_common.errors import DataError
from fedward_common.ids import SiteId
from fedward_common.study.encoding import PatientRecords, TablePart
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.row_encoding import encode_rows
from fedward_common.study.row_readers import readers_of

Rows = Sequence[Mapping[str, str]]

FASTA: Final = "sequences.fasta"
"""Beside patients.csv, where its column holds names and no letters."""


def row_files(table: Path) -> dict[str, str]:
    """The keys of a site's [[data]] for the files beside its table."""
    fasta = table.with_name(FASTA).absolute()
    return {"fasta": str(fasta)} if fasta.is_file() else {}


def all_rows(
    schema: LabelledRows,
    files: Mapping[SiteId, Path],
    tables: Mapping[SiteId, Rows],
    part: TablePart,
) -> dict[SiteId, PatientRecords]:
    """The records of every site as it encodes them. Raises DataError naming the site."""
    found = {}
    for site, rows in tables.items():
        absent = [name for name in schema.columns if rows and name not in rows[0]]
        if absent:
            raise DataError(f"{site}: expected the columns {', '.join(absent)} in its table")
        try:
            fasta = files[site].with_name(FASTA)
            readers = readers_of(schema, fasta=fasta if fasta.is_file() else None)
            found[site] = encode_rows(
                schema, rows, readers.features, part=part, part_of=readers.part_of, strict=True
            )[0]
        except DataError as error:
            raise DataError(f"{site}: {error}") from error
    return found
