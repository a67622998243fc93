"""Clinical events from two tables, CSV or Parquet: `patients` and `events`.

patients: patient_id, birth_date, sex, death_date; the last three may be empty.
events: patient_id, concept (such as LOINC:4548-4), time (ISO 8601), value, unit; the last two may
be empty. Other columns are left alone.
"""

from collections.abc import Iterator, Sequence
from datetime import tzinfo
from pathlib import Path
from typing import Final

from fedward_client.data.tabular import readable_lines
from fedward_common.errors import DataError
from fedward_common.study.clinical_events import Person, zone_utc
from fedward_common.study.event_rows import EVENTS, PATIENTS, people_of

PARQUET: Final = ".parquet"
_BATCH: Final = 10_000


class EventTables:
    """People from a table of patients and a table of their events."""

    def __init__(
        self, *, patients: Path, events: Path, delimiter: str = ",", zone: tzinfo | None = None
    ) -> None:
        self._patients, self._events = patients, events
        self._delimiter, self._zone = delimiter, zone or zone_utc()

    def people(self, concepts: Sequence[str]) -> dict[str, Person]:
        """Every person with their events of `concepts`; see `PeopleSource`.

        A row without a time or with text for a number marks its patient as broken; a patient of the
        events who is not among the patients is left out.

        Raises:
            DataError: a table cannot be read or lacks a column.
        """
        return people_of(
            self._rows(self._patients, PATIENTS),
            self._rows(self._events, EVENTS),
            concepts=concepts,
            zone=self._zone,
        )

    def _rows(self, path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
        rows = _parquet(path) if path.suffix == PARQUET else self._csv(path)
        header = next(rows)
        absent = [name for name in columns if name not in header]
        if absent:
            raise DataError(
                f"event tables: expected the columns {', '.join(map(repr, absent))}, found none of "
                "that name"
            )
        places = [(name, header.index(name)) for name in columns]
        for row in rows:
            yield {name: row[place] for name, place in places}

    def _csv(self, path: Path) -> Iterator[list[str]]:
        yield from readable_lines(path, delimiter=self._delimiter)


def _parquet(path: Path) -> Iterator[list[str]]:
    """Header and rows of a Parquet file as texts, batch by batch."""
    import duckdb  # noqa: PLC0415 - only who has Parquet needs it

    try:
        with duckdb.connect(":memory:") as database:
            found = database.execute("SELECT * FROM read_parquet(?)", [str(path)])
            yield [str(column[0]) for column in found.description]
            while batch := found.fetchmany(_BATCH):
                for row in batch:
                    yield ["" if cell is None else _text(cell) for cell in row]
    except duckdb.Error as error:
        raise DataError(
            "event tables: expected a readable Parquet file, found "
            f"{type(error).__name__}; check its path and rights"
        ) from None


def _text(cell: object) -> str:
    isoformat = getattr(cell, "isoformat", None)
    return str(isoformat()) if isoformat is not None else str(cell).strip()
