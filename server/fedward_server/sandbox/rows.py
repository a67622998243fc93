"""The sandbox parent's own copy of a site's labelled rows (sequences and the like)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fedward_common.errors import DataError
from fedward_common.ids import SiteId
from fedward_common.study.encoding import PatientRecords, TablePart
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.profile_encoding import LayerFile
from fedward_common.study.profiles import ProfileData
from fedward_common.study.row_encoding import encode_rows
from fedward_common.study.row_readers import readers_of

Rows = Sequence[Mapping[str, str]]

ENDINGS: Final = (".csv", ".h5ad", ".parquet")
FASTA: Final = "sequences.fasta"
"""Beside patients.csv, where its column holds names and no letters."""


def row_files(schema: LabelledRows, table: Path) -> dict[str, Any]:
    """The keys of a site's [[data]] for the files beside its table."""
    matrices = _matrices(schema, table)
    if matrices:
        return {"matrices": matrices}
    fasta = table.with_name(FASTA).absolute()
    return {"fasta": str(fasta)} if fasta.is_file() else {}


def _matrices(schema: LabelledRows, table: Path) -> list[dict[str, str]]:
    """[[data.matrices]] of a site: a file `LAYER.csv` (or .h5ad, .parquet) beside its table."""
    return [
        {
            "layer": file.layer,
            "path": str(file.path.absolute()),
            "scale": file.scale,
            "identifiers": file.identifiers,
        }
        for file in _layers(schema, table)
    ]


def _layers(schema: LabelledRows, table: Path) -> list[LayerFile]:
    if not isinstance(schema, ProfileData):
        return []
    found = []
    for layer in schema.layers:
        paths = [table.with_name(f"{layer.name}{ending}") for ending in ENDINGS]
        path = next((path for path in paths if path.is_file()), paths[0])
        found.append(
            LayerFile(layer=layer.name, path=path, scale=layer.scale, identifiers=layer.identifiers)
        )
    return found


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
            readers = readers_of(
                schema,
                fasta=fasta if fasta.is_file() else None,
                layers=_layers(schema, files[site]),
            )
            found[site] = encode_rows(
                schema, rows, readers.features, part=part, part_of=readers.part_of, strict=True
            )[0]
        except DataError as error:
            raise DataError(f"{site}: {error}") from error
    return found
