"""What every clinical source comes down to: people with events, and how a time is read."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Final, Literal

DAY: Final = 86400
LAST_SECOND: Final = DAY - 1
Sex = Literal["female", "male"]

_DATE: Final = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - local wall clock, as the hospital's records


@dataclass(frozen=True, slots=True)
class Event:
    """Something recorded about a patient: when, what, and the number where there is one.

    `time`: seconds of the hospital's wall clock since 1970. `concepts`: those of the asked-for
    concepts that it carries; a record with two codes is one event. `unit`: as recorded.
    """

    time: int
    concepts: tuple[str, ...]
    value: float | None = None
    unit: str | None = None


@dataclass(slots=True)
class Person:
    """One patient of a source. `birth` is the first second of the day, `death` as an event's time.

    `broken`: something in this patient's rows could not be read. What a study does with that is not
    to tell anybody: the patient counts as absent.
    """

    birth: int | None = None
    sex: Sex | None = None
    death: int | None = None
    events: list[Event] = field(default_factory=list)
    broken: bool = False


People = Mapping[str, Person]


def clinical_time(text: str, zone: tzinfo) -> int | None:
    """Seconds of the wall clock in `zone` since 1970 for an ISO 8601 date or time; None for others.

    A day without a time of day counts as its last second, and so does midnight to the second, which
    is how records say that they do not know: nothing of an unknown time can be before an index
    event of the same day and be taken for something known then. A month or year counts as its
    last day.
    """
    text = text.strip()
    if _DATE.fullmatch(text):
        return _end_of(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment_seconds(moment, zone)


def moment_seconds(moment: datetime, zone: tzinfo) -> int | None:
    """As `clinical_time`, for a time that a database gave."""
    try:
        if moment.tzinfo is not None:
            moment = moment.astimezone(zone).replace(tzinfo=None)
    except OverflowError:
        return None
    since = moment - _EPOCH
    seconds = since.days * DAY + since.seconds
    return seconds + LAST_SECOND if moment.time().isoformat("seconds") == "00:00:00" else seconds


def day_seconds(day: date) -> int:
    """The first second of a day, since 1970."""
    return (day - _EPOCH.date()).days * DAY


def birth_seconds(text: str) -> int | None:
    """The first second of a birth date; where only year or month is known, their first day."""
    if not _DATE.fullmatch(text[:10]):
        return None
    parts = [int(part) for part in text[:10].split("-")]
    try:
        return day_seconds(date(*[*parts, 1, 1][:3]))
    except ValueError:
        return None


def sex_of(text: str) -> Sex | None:
    """Administrative sex from what sources write; None for anything else."""
    match text.strip().lower():
        case "f" | "female" | "8532":
            return "female"
        case "m" | "male" | "8507":
            return "male"
    return None


def zone_utc() -> tzinfo:
    """UTC, the zone of a source that names none."""
    return UTC


def wanted(concepts: Iterable[str]) -> dict[str, dict[str, str]]:
    """System -> code -> concept, for the concepts that a study reads."""
    by_system: dict[str, dict[str, str]] = {}
    for concept in concepts:
        system, _, code = concept.partition(":")
        by_system.setdefault(system, {})[code] = concept
    return by_system


def _end_of(text: str) -> int | None:
    parts = [int(part) for part in text.split("-")]
    try:
        if len(parts) == 3:
            return day_seconds(date(*parts)) + LAST_SECOND
        year, month = (parts[0], parts[1]) if len(parts) > 1 else (parts[0], 12)
        following = date(year + (month == 12), month % 12 + 1, 1)
        return day_seconds(following - timedelta(days=1)) + LAST_SECOND
    except ValueError:
        return None
