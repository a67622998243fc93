"""Clinical events from an OMOP CDM 5.4 database over SQLAlchemy (SQLite, DuckDB, PostgreSQL).

Concept codes become concept ids by the site's own vocabulary tables: the concepts with that code,
and what they map to. A record counts with its standard or its source concept.

Source: OHDSI Common Data Model 5.4, https://ohdsi.github.io/CommonDataModel/cdm54.html
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, tzinfo
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from fedward_common.errors import DataError
from fedward_common.study.clinical_events import (
    Event,
    Person,
    birth_seconds,
    clinical_time,
    moment_seconds,
    sex_of,
    wanted,
    zone_utc,
)

VOCABULARIES: Final = {
    "LOINC": "LOINC",
    "SNOMED": "SNOMED",
    "ICD10": "ICD10",
    "ICD10CM": "ICD10CM",
    "ATC": "ATC",
    "RxNorm": "RxNorm",
    "CVX": "CVX",
}
PatientId = Literal["person_id", "person_source_value"]
_CHUNK: Final = 400
"""Ids in one IN list; SQLite allows 999 parameters in old builds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Domain:
    """A table of events: prefix of its concept columns, its time columns, whether it has values."""

    table: str
    concept: str
    day: str
    moment: str
    valued: bool = False


DOMAINS: Final = (
    _Domain(
        table="measurement",
        concept="measurement",
        day="measurement_date",
        moment="measurement_datetime",
        valued=True,
    ),
    _Domain(
        table="observation",
        concept="observation",
        day="observation_date",
        moment="observation_datetime",
        valued=True,
    ),
    _Domain(
        table="condition_occurrence",
        concept="condition",
        day="condition_start_date",
        moment="condition_start_datetime",
    ),
    _Domain(
        table="drug_exposure",
        concept="drug",
        day="drug_exposure_start_date",
        moment="drug_exposure_start_datetime",
    ),
    _Domain(
        table="procedure_occurrence",
        concept="procedure",
        day="procedure_date",
        moment="procedure_datetime",
    ),
    _Domain(
        table="visit_occurrence",
        concept="visit",
        day="visit_start_date",
        moment="visit_start_datetime",
    ),
)


class OmopDatabase:
    """People from an OMOP CDM database by its SQLAlchemy URL; only read."""

    def __init__(
        self,
        url: str,
        *,
        schema: str | None = None,
        patient_id: PatientId = "person_id",
        zone: tzinfo | None = None,
    ) -> None:
        self._url, self._schema = url, schema
        self._patient_id, self._zone = patient_id, zone or zone_utc()

    def people(self, concepts: Sequence[str]) -> dict[str, Person]:
        """Every person with their events of `concepts`; see `PeopleSource`.

        Raises:
            DataError: the database cannot be read, or lacks a table or column of the CDM; nothing
                out of it is in the text.
        """
        try:
            engine = sa.create_engine(self._url, connect_args=_read_only(self._url))
            if engine.dialect.name == "postgresql":
                engine = engine.execution_options(postgresql_readonly=True)
            try:
                with engine.connect() as connection:
                    _tolerant(connection)
                    return _Query(connection, self._schema, self._zone).people(
                        concepts, self._patient_id
                    )
            finally:
                engine.dispose()
        except (SQLAlchemyError, ImportError) as error:
            # Texts of databases quote what they were asked, and the URL may hold a password.
            raise DataError(
                "OMOP: expected a CDM 5.4 database that can be read, found "
                f"{type(error).__name__}; check url and schema of [[data]] in site.toml"
            ) from None


class _Query:
    def __init__(self, connection: sa.Connection, schema: str | None, zone: tzinfo) -> None:
        self._connection, self._schema, self._zone = connection, schema, zone
        self._tables = {
            name.lower(): name for name in sa.inspect(connection).get_table_names(schema)
        }

    def people(self, concepts: Sequence[str], patient_id: PatientId) -> dict[str, Person]:
        by_person, names = self._persons(patient_id)
        self._deaths(by_person)
        ids = self._concept_ids(concepts)
        units = self._units()
        for domain in DOMAINS:
            if domain.table in self._tables:
                for row in self._rows(domain, frozenset(ids)):
                    self._add(by_person, row, ids=ids, units=units)
        people: dict[str, Person] = {}
        for number, person in by_person.items():
            name = names[number]
            # Two persons of one source value are one patient in two rows: nobody knows which holds.
            person.broken = person.broken or name in people
            people[name] = person
        return people

    def _persons(self, patient_id: PatientId) -> tuple[dict[int, Person], dict[int, str]]:
        table = self._table(
            "person",
            "person_id",
            "gender_concept_id",
            "year_of_birth",
            "month_of_birth",
            "day_of_birth",
            "person_source_value",
        )
        found: dict[int, Person] = {}
        names: dict[int, str] = {}
        for row in self._connection.execute(sa.select(table)).mappings():
            number = row["person_id"]
            birth = _birth(row)
            found[number] = Person(birth=birth, sex=sex_of(str(row["gender_concept_id"])))
            names[number] = str(row[patient_id])
        return found, names

    def _deaths(self, people: Mapping[int, Person]) -> None:
        if "death" not in self._tables:
            return
        table = self._table("death", "person_id", "death_date", "death_datetime")
        for row in self._connection.execute(sa.select(table)).mappings():
            person = people.get(row["person_id"])
            if person is not None:
                person.death = self._time(row["death_date"], row["death_datetime"])
                person.broken = person.broken or person.death is None

    def _concept_ids(self, concepts: Sequence[str]) -> dict[int, str]:
        """Concept id -> the study's concept, by the site's vocabulary tables."""
        found: dict[int, str] = {}
        table = self._table("concept", "concept_id", "vocabulary_id", "concept_code")
        for system, codes in wanted(concepts).items():
            if system == "OMOP":
                found.update({int(code): name for code, name in codes.items() if code.isdigit()})
            vocabulary = VOCABULARIES.get(system)
            for some in _chunks(sorted(codes)) if vocabulary else ():
                query = sa.select(table.c.concept_id, table.c.concept_code).where(
                    table.c.vocabulary_id == vocabulary, table.c.concept_code.in_(some)
                )
                for number, code in self._connection.execute(query):
                    found[number] = codes[code]
        if "concept_relationship" in self._tables:
            self._mapped(found)
        return found

    def _mapped(self, found: dict[int, str]) -> None:
        table = self._table(
            "concept_relationship", "concept_id_1", "concept_id_2", "relationship_id"
        )
        direct = dict(found)
        for some in _chunks(sorted(direct)):
            query = sa.select(table.c.concept_id_1, table.c.concept_id_2).where(
                table.c.relationship_id == "Maps to", table.c.concept_id_1.in_(some)
            )
            for source, target in self._connection.execute(query):
                # A concept that is asked for by its own code keeps it.
                found.setdefault(target, direct[source])

    def _units(self) -> dict[int, str]:
        table = self._table("concept", "concept_id", "vocabulary_id", "concept_code")
        query = sa.select(table.c.concept_id, table.c.concept_code).where(
            table.c.vocabulary_id == "UCUM"
        )
        return {number: str(code) for number, code in self._connection.execute(query)}

    def _rows(self, domain: _Domain, ids: frozenset[int]) -> Iterator[dict[str, Any]]:
        concept, source = f"{domain.concept}_concept_id", f"{domain.concept}_source_concept_id"
        valued = ("value_as_number", "unit_concept_id", "unit_source_value")
        columns = ["person_id", concept, source, domain.day, domain.moment]
        table = self._table(domain.table, *columns, *(valued if domain.valued else ()))
        seen = sa.select(table)
        for some in _chunks(sorted(ids)):
            either = table.c[concept].in_(some) | table.c[source].in_(some)
            for row in self._connection.execution_options(yield_per=10_000).execute(
                seen.where(either)
            ):
                found = row._mapping
                first = found[concept] if found[concept] in some else found[source]
                # A row whose two concepts are in different chunks must not count twice.
                if found[concept] in ids and found[concept] not in some:
                    continue
                yield {
                    "person": found["person_id"],
                    "concepts": (first, found[source]),
                    "day": found[domain.day],
                    "moment": found[domain.moment],
                    "value": found["value_as_number"] if domain.valued else None,
                    "unit": found["unit_concept_id"] if domain.valued else None,
                    "unit_text": found["unit_source_value"] if domain.valued else None,
                }

    def _add(
        self,
        people: Mapping[int, Person],
        row: Mapping[str, Any],
        *,
        ids: Mapping[int, str],
        units: Mapping[int, str],
    ) -> None:
        person = people.get(row["person"])
        if person is None:
            return
        time = self._time(row["day"], row["moment"])
        try:
            value = None if row["value"] is None else float(row["value"])
        except (TypeError, ValueError):
            time = None
        if time is None:
            person.broken = True
            return
        concepts = tuple(sorted({ids[one] for one in row["concepts"] if one in ids}))
        unit = units.get(row["unit"] or 0) or row["unit_text"]
        person.events.append(Event(time, concepts, value, str(unit) if unit else None))

    def _time(self, day: object, moment: object) -> int | None:
        """As `clinical_time`; the date where there is no time of day."""
        for written in (moment, day):
            match written:
                case datetime():
                    return moment_seconds(written, self._zone)
                case date():
                    return clinical_time(written.isoformat(), self._zone)
                case str() if written.strip():
                    return clinical_time(written, self._zone)
        return None

    def _table(self, name: str, *columns: str) -> sa.TableClause:
        if name not in self._tables:
            raise DataError(f"OMOP: expected the table {name} of the CDM, found none")
        return sa.table(
            self._tables[name], *(sa.column(column) for column in columns), schema=self._schema
        )


def _read_only(url: str) -> dict[str, Any]:
    return {"read_only": True} if url.startswith("duckdb") else {}


def _tolerant(connection: sa.Connection) -> None:
    """Makes SQLite give texts with foreign bytes as they come: one row must not end the query."""
    if connection.dialect.name == "sqlite":
        driver: Any = connection.connection.driver_connection
        driver.text_factory = lambda data: data.decode("utf-8", errors="replace")


def _birth(row: Any) -> int | None:
    year = row["year_of_birth"]
    if not isinstance(year, int):
        return None
    month, day = row["month_of_birth"] or 1, row["day_of_birth"] or 1
    return birth_seconds(f"{year:04d}-{month:02d}-{day:02d}")


def _chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]
