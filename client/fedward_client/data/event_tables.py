"""Clinical events from two tables, CSV or Parquet: `patients` and `events`.

patients: patient_id, birth_date, sex, death_date; the last three may be empty.
events: patient_id, concept (such as LOINC:4548-4), time (ISO 8601), value, unit; the last two may
be empty. Other columns are left alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import tzinfo
from pathlib import Path
from typing import Final

from fedward_client.data.tabular import readable_lines
from fedward_common.errors import DataError
from fedward_common.study.clinical_events import (
    Event,
    Person,
    birth_seconds,
    clinical_time,
    sex_of,
    zone_utc,
)
from fedward_common.study.encoding import decimal_number

PATIENTS: Final = ("patient_id", "birth_date", "sex", "death_date")
EVENTS: Final = ("patient_id", "concept", "time", "value", "unit")
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
        people: dict[str, Person] = {}
        for row in self._rows(self._patients, PATIENTS):
            self._add_person(people, row)
        asked = frozenset(concepts)
        for row in self._rows(self._events, EVENTS):
            person = people.get(row["patient_id"])
            if person is not None and row["concept"] in asked:
                self._add_event(person, row)
        return people

    def _add_person(self, people: dict[str, Person], row: Mapping[str, str]) -> None:
        patient = row["patient_id"]
        if not patient:
            return
        person = Person(birth=birth_seconds(row["birth_date"]), sex=sex_of(row["sex"]))
        if row["death_date"]:
            person.death = clinical_time(row["death_date"], self._zone)
            person.broken = person.death is None
        # Two rows of one patient: which is true cannot be known.
        person.broken = person.broken or patient in people
        people[patient] = person

    def _add_event(self, person: Person, row: Mapping[str, str]) -> None:
        time = clinical_time(row["time"], self._zone)
        value = decimal_number(row["value"]) if row["value"] else None
        if time is None or (row["value"] and value is None):
            person.broken = True
            return
        person.events.append(Event(time, (row["concept"],), value, row["unit"] or None))

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
