"""A site's CSV tables as records of patients.

A table is UTF-8 text (a byte order mark does no harm) with one header line. A study reads the one
configured table that has all its columns; other columns and other tables are left alone.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from fedward_common.errors import DataError, ProtocolError
from fedward_common.study.encoding import (
    PatientRecords,
    TablePart,
    check_columns,
    encode_table,
    required_columns,
)
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_common.study.tabular import TabularData

FILE: Final = "CSV file"


class DataSource(Protocol):
    """Yields the records of a study's patients at this site (port)."""

    def records(self, study: StudySpec, *, part: TablePart) -> PatientRecords:
        """The records of the training or the held-out patients.

        Raises:
            DataError: the site's data do not fit the study.
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


class CsvSource:
    """A `DataSource` over CSV tables, read afresh at each call and never changed."""

    def __init__(self, tables: Sequence[CsvTable]) -> None:
        self._tables = tuple(tables)

    def records(self, study: StudySpec, *, part: TablePart) -> PatientRecords:
        """The records of `part` by the study's schema.

        Raises:
            DataError: no or more than one table fits, or a table is not what the schema says.
                The text names the kind of file, a column and the rule; never a path or a value.
            ProtocolError: the study is not about tables.
        """
        schema = study.data
        if not isinstance(schema, TabularData):
            raise ProtocolError(f"data: expected kind 'tabular', found {schema.kind!r}")
        single = isinstance(study.dp, DpSgd) and study.dp.max_records_per_patient == 1
        header, *rows = self._table(schema)
        return encode_table(
            schema,
            (dict(zip(header, row, strict=True)) for row in rows),
            part=part,
            one_record_per_patient=single,
        )

    def _table(self, schema: TabularData) -> list[list[str]]:
        """Header and rows of the one table that has the columns of `schema`."""
        tables = [list(_lines(table)) for table in self._tables]
        needed = set(required_columns(schema))
        fitting = [table for table in tables if needed <= set(table[0])]
        if len(fitting) == 1:
            return fitting[0]
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
