"""Clinical events from the rows of two tables, `patients` and `events`, whoever read them.

patients: patient_id, birth_date, sex, death_date; the last three may be empty.
events: patient_id, concept (such as LOINC:4548-4), time (ISO 8601), value, unit; the last two may
be empty. Other columns are left alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import tzinfo
from typing import Final

from fedward_common.study.clinical_events import (
    Event,
    Person,
    birth_seconds,
    clinical_time,
    sex_of,
)
from fedward_common.study.encoding import decimal_number

PATIENTS: Final = ("patient_id", "birth_date", "sex", "death_date")
EVENTS: Final = ("patient_id", "concept", "time", "value", "unit")


def people_of(
    patients: Iterable[Mapping[str, str]],
    events: Iterable[Mapping[str, str]],
    *,
    concepts: Sequence[str],
    zone: tzinfo,
) -> dict[str, Person]:
    """Every person of `patients` with their events of `concepts`.

    A row without a time or with text for a number marks its patient as broken; a patient of the
    events who is not among the patients is left out.
    """
    people: dict[str, Person] = {}
    for row in patients:
        _add_person(people, row, zone)
    asked = frozenset(concepts)
    for row in events:
        person = people.get(row["patient_id"])
        if person is not None and row["concept"] in asked:
            _add_event(person, row, zone)
    return people


def _add_person(people: dict[str, Person], row: Mapping[str, str], zone: tzinfo) -> None:
    patient = row["patient_id"]
    if not patient:
        return
    person = Person(birth=birth_seconds(row["birth_date"]), sex=sex_of(row["sex"]))
    if row["death_date"]:
        person.death = clinical_time(row["death_date"], zone)
        person.broken = person.death is None
    # Two rows of one patient: which is true cannot be known.
    person.broken = person.broken or patient in people
    people[patient] = person


def _add_event(person: Person, row: Mapping[str, str], zone: tzinfo) -> None:
    time = clinical_time(row["time"], zone)
    value = decimal_number(row["value"]) if row["value"] else None
    if time is None or (row["value"] and value is None):
        person.broken = True
        return
    person.events.append(Event(time, (row["concept"],), value, row["unit"] or None))
