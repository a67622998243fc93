"""A site's CSV tables as records of patients.

A table is UTF-8 text (a byte order mark does no harm) with one header line. A study reads the one
configured table that has all its columns; other columns and other tables are left alone.
"""

import codecs
import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

import structlog

from fedward_client.exclusions import without
from fedward_common.errors import DataError, ProtocolError
from fedward_common.study.encoding import (
    PatientRecords,
    TablePart,
    check_columns,
    encode_present,
    encode_table,
    readable_cells,
    required_columns,
)
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_common.study.statistics import Table
from fedward_common.study.tabular import TabularData

FILE: Final = "CSV file"

_log = structlog.get_logger(__name__)


class DataSource(Protocol):
    """Yields the records of a study's patients at this site (port)."""

    def records(self, study: StudySpec, *, part: TablePart) -> PatientRecords:
        """The records of the training or the held-out patients.

        Raises:
            DataError: the site's data do not fit the study.
        """
        ...


class CheckedSource(Protocol):
    """Reads the same records strictly, for the site engineer who can mend the data (port)."""

    def checked_records(self, study: StudySpec, *, part: TablePart) -> PatientRecords:
        """The records of the training or the held-out patients.

        Raises:
            DataError: anything in the site's data does not fit the study.
        """
        ...


class CsvTable(Protocol):
    """Where a table is and how its cells are separated; `CsvFile` of site.toml is one."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def delimiter(self) -> str:
        """One character."""
        ...

    @property
    def patient_key(self) -> str | None:
        """The column that says who is one patient, where the site has named it."""
        ...

    @property
    def genomic(self) -> bool:
        """Whether columns are of people's genomes."""
        ...


def nobody() -> frozenset[str]:
    """No patient objects."""
    return frozenset()


class CsvSource:
    """A `DataSource` over CSV tables, read afresh at each call and never changed.

    `excluded` gives the ids of patients who object, read afresh as well: none of their rows is in
    anything that comes out of here.
    """

    def __init__(
        self, tables: Sequence[CsvTable], *, excluded: Callable[[], frozenset[str]] = nobody
    ) -> None:
        self._tables = tuple(tables)
        self._excluded = excluded

    def records(self, study: StudySpec, *, part: TablePart) -> PatientRecords:
        """The records of `part`; a patient whose rows do not fit the schema counts as absent.

        Only what is public or the site's own configuration can fail here, never one patient's
        rows: the refusal would tell something about that patient outside epsilon (rules 7).

        Raises:
            DataError: no or more than one table has the study's columns, or none can be read, or
                the list of patients who object cannot be.
            ProtocolError: the study is not about tables.
        """
        schema = _schema(study)
        header, *rows = self._readable(study, schema)
        records, absent = encode_present(
            schema,
            (dict(zip(header, row, strict=True)) for row in rows),
            part=part,
            one_record_per_patient=_single(study),
        )
        if absent:
            # Stays in the worker's own log: which patients is for `fedward-client rehearse`.
            _log.warning("data.patients-absent", count=absent)
        return records

    def rows(self, study: StudySpec) -> list[dict[str, str]]:
        """Every readable row of the one table with the study's columns, as it is.

        Never fails on a patient's cells.

        Raises:
            DataError, ProtocolError: as `records`.
        """
        header, *rows = self._readable(study, _any_table(study))
        return [dict(zip(header, row, strict=True)) for row in rows]

    def checked_records(self, study: StudySpec, *, part: TablePart) -> PatientRecords:
        """The records of `part` for the site's own eyes: anything that does not fit is an error.

        Raises:
            DataError: no or more than one table fits, or a table is not what the schema says.
                The text names the kind of file, a column and the rule; never a path or a value.
            ProtocolError: the study is not about tables.
        """
        schema = _schema(study)
        header, *rows = self._without_excluded(
            schema, self._table(study, schema, [list(_lines(table)) for table in self._tables])
        )
        return encode_table(
            schema,
            (dict(zip(header, row, strict=True)) for row in rows),
            part=part,
            one_record_per_patient=_single(study),
        )

    def _readable(self, study: StudySpec, schema: TabularData | Table) -> list[list[str]]:
        """Header and readable rows of the one table, without the patients who object."""
        table = self._table(
            study,
            schema,
            [readable_lines(table.path, delimiter=table.delimiter) for table in self._tables],
        )
        return self._without_excluded(schema, table)

    def _without_excluded(
        self, schema: TabularData | Table, table: list[list[str]]
    ) -> list[list[str]]:
        header, *rows = table
        return [header, *without(rows, self._excluded(), column=header.index(schema.patient_key))]

    def _table(
        self, study: StudySpec, schema: TabularData | Table, tables: list[list[list[str]]]
    ) -> list[list[str]]:
        """Header and rows of the one table that has the columns of `schema`."""
        if not tables:
            raise DataError(f"{FILE}: expected a [[data]] of kind csv in site.toml, found none")
        needed = set(required_columns(schema))
        fitting = [number for number, table in enumerate(tables) if needed <= set(table[0])]
        if len(fitting) == 1:
            chosen = self._tables[fitting[0]]
            if chosen.genomic and not study.genomic:
                raise DataError(
                    f"{FILE}: expected a study that says genomic = true for a table of genomes, as "
                    "[[data]] in site.toml says of it, found one that does not"
                )
            key = chosen.patient_key
            if key not in (None, schema.patient_key):
                raise DataError(
                    f"{FILE}: expected a study that takes patient_key of [[data]] for who is one "
                    "patient, found another column"
                )
            return tables[fitting[0]]
        if fitting:
            raise DataError(
                f"{FILE}: expected one table with the study's columns, found {len(fitting)}; name "
                "only one of them in [[data]] of site.toml"
            )
        # The message is about the table that comes closest.
        check_columns(
            schema, max((table[0] for table in tables), key=lambda h: len(needed & set(h)))
        )
        raise DataError(f"{FILE}: expected a table with the study's columns, found none")


def _schema(study: StudySpec) -> TabularData:
    if not isinstance(study.data, TabularData):
        raise ProtocolError(f"data: expected kind 'tabular', found {study.data.kind!r}")
    return study.data


def _any_table(study: StudySpec) -> TabularData | Table:
    if not isinstance(study.data, TabularData | Table):
        raise ProtocolError(f"data: expected kind 'tabular' or 'table', found {study.data.kind!r}")
    return study.data


def _single(study: StudySpec) -> bool:
    return isinstance(study.dp, DpSgd) and study.dp.max_records_per_patient == 1


def readable_lines(path: Path, *, delimiter: str) -> list[list[str]]:
    """The header and every row that can be read by itself and has the header's length.

    Line by line: a broken quote or foreign bytes in one patient's row must not touch another's.

    Raises:
        DataError: there is no such file, or no header that can be read.
    """
    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    except OSError as error:
        raise DataError(f"{FILE}: expected a readable table, found: {error.strerror}") from error
    cells = [
        row for line in lines if (row := readable_cells(line, delimiter=delimiter)) is not None
    ]
    first = next((line for line in lines if line.strip()), b"")
    header = readable_cells(first, delimiter=delimiter)
    if header is None:
        raise DataError(f"{FILE}: expected a header line, found none that can be read")
    _check_header(header)
    return [row for row in cells if len(row) == len(header)]


def _lines(table: CsvTable) -> Iterator[list[str]]:
    """The header and then every row that is not blank, all of the same length."""
    header: list[str] | None = None
    try:
        with table.path.open(encoding="utf-8-sig", newline="") as file:
            for cells in csv.reader(file, delimiter=table.delimiter, strict=True):
                if not cells:
                    continue
                row = [cell.strip() for cell in cells]
                if header is None:
                    _check_header(row)
                    header = row
                elif any("\n" in cell or "\r" in cell for cell in cells):
                    # Studies read line by line: the rest of such a cell would be a row of its own.
                    raise DataError(
                        f"{FILE}: expected every row in one line, found a cell with a line break; "
                        "replace line breaks in texts by spaces"
                    )
                elif len(row) != len(header):
                    raise DataError(
                        f"{FILE}: expected {len(header)} cells in every row as in the header, "
                        "found a row with another number; check delimiters and quotes"
                    )
                yield row
    except FileNotFoundError as error:
        raise DataError(
            f"{FILE}: expected the table that [[data]] in site.toml names, found no such file"
        ) from error
    except OSError as error:
        raise DataError(f"{FILE}: expected a readable table, found: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{FILE}: expected UTF-8 text, found other bytes; save it as UTF-8"
        ) from error
    except csv.Error as error:
        raise DataError(
            f"{FILE}: expected well-formed rows, found broken quotes or a cell that is too long"
        ) from error
    if header is None:
        raise DataError(f"{FILE}: expected a header line, found an empty file")


def _check_header(header: Sequence[str]) -> None:
    if len(set(header)) != len(header):
        raise DataError(f"{FILE}: expected every column name once in the header, found one twice")
