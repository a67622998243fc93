"""From patients' clinical events to tensors, by the public constants of the study alone.

Each patient becomes numbers by themself (rules 6), and nothing in a patient's rows can make this
fail: what does not fit counts as not there, and a patient who lacks what the study needs as absent
(rules 7). What was not there is counted in a `Tally` for the site's own eyes.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from fedward_common.study.clinical import (
    After,
    Age,
    Before,
    ClinicalData,
    Criterion,
    EventOutcome,
    Feature,
    IndexEvent,
    Measured,
    NoOutcome,
    Present,
    TimeOutcome,
    ValueOutcome,
)
from fedward_common.study.clinical_events import DAY, Event, People, Person
from fedward_common.study.encoding import PatientRecords, TablePart, hash_part
from fedward_common.study.units import Convert, converter

YEAR: Final = 365.25 * DAY
Reading = tuple[int, float]
"""(time in seconds, value in the study's unit)"""


@dataclass(slots=True)
class Tally:
    """What was found, for the site's own data report. Private: nothing of it leaves by itself.

    `why_absent`: how many patients are not in the study, by reason. Per feature: patients with a
    value, values used, outside `allowed`, and in a unit that cannot be converted. `values`: the
    features' numbers before scaling, in the order of the patients.
    """

    people: int = 0
    broken: int = 0
    why_absent: Counter[str] = field(default_factory=Counter)
    patients_with: Counter[str] = field(default_factory=Counter)
    used: Counter[str] = field(default_factory=Counter)
    outside: Counter[str] = field(default_factory=Counter)
    unconverted: Counter[str] = field(default_factory=Counter)
    clipped: Counter[str] = field(default_factory=Counter)
    values: dict[str, list[float]] = field(default_factory=dict)
    labels: list[float] = field(default_factory=list)


class Encoder:
    """Encodes people by one schema; the units are looked up once.

    Raises:
        ConfigError: a unit of the study that nobody can convert to.
    """

    def __init__(self, schema: ClinicalData) -> None:
        self._schema = schema
        self._convert: dict[str, Convert] = {
            feature.name: converter(feature.unit, molar_mass=feature.molar_mass)
            for feature in schema.features
            if isinstance(feature, Measured)
        }
        outcome = schema.outcome
        self._outcome_convert = (
            converter(outcome.unit, molar_mass=outcome.molar_mass)
            if isinstance(outcome, ValueOutcome)
            else None
        )

    def encode(
        self, people: People, *, part: TablePart | None, tally: Tally | None = None
    ) -> PatientRecords:
        """The records of the cohort's patients in `part` (None: of all), by patient id.

        features float32 [patients, inputs]; with a grid the steps stand behind each other, each
        with all features of the step. labels float32 [patients]: 0 or 1 for an event, in [-1, 1]
        for a value, and for a time the days until the event, negative where censored.
        """
        tally = Tally() if tally is None else tally
        rows: list[np.ndarray] = []
        labels: list[float] = []
        ids: list[str] = []
        for patient in sorted(people):
            tally.people += 1
            person = people[patient]
            if person.broken:
                tally.broken += 1
                tally.why_absent["rows that do not fit"] += 1
                continue
            if part is not None and hash_part(self._schema.split, patient) != part:
                continue
            try:
                encoded = self._one(person, tally)
            except (ArithmeticError, ValueError):
                # A sum near the largest number there is, for one: this patient's alone (rules 7).
                tally.broken += 1
                tally.why_absent["rows that do not fit"] += 1
                continue
            if encoded is not None:
                rows.append(encoded[0])
                labels.append(encoded[1])
                ids.append(patient)
        features = np.array(rows, dtype=np.float64).reshape(len(rows), self._schema.input_size)
        return PatientRecords(
            features=features.astype(np.float32),
            labels=np.array(labels, dtype=np.float32),
            patient=np.arange(len(rows), dtype=np.int64),
            ids=tuple(ids),
        )

    def _one(self, person: Person, tally: Tally) -> tuple[np.ndarray, float] | None:
        # Sources give events in any order; sums and ties must not depend on it.
        person.events.sort(key=_order)
        schema = self._schema
        index = index_time(schema.cohort.index, person.events)
        reason = "no index event" if index is None else self._not_in_cohort(person, index)
        if index is None or reason is not None:
            tally.why_absent[reason or "no index event"] += 1
            return None
        label = self._label(person, index)
        if label is None:
            tally.why_absent["no outcome"] += 1
            return None
        numbers: list[float] = []
        for feature in schema.static:
            inputs = self._inputs(feature, person, index, tally)
            if inputs is None:
                tally.why_absent[f"no {feature.name}"] += 1
                return None
            numbers += inputs
        tally.labels.append(label)
        if schema.grid is None:
            return np.array(numbers, dtype=np.float64), label
        steps = [
            self._sequence(feature, person.events, index, tally) for feature in schema.sequences
        ]
        repeated = np.tile(numbers, (schema.grid.steps, 1))
        return np.concatenate([repeated, *steps], axis=1).reshape(-1), label

    def _not_in_cohort(self, person: Person, index: int) -> str | None:
        cohort = self._schema.cohort
        if person.death is not None and person.death <= index:
            return "died before the index"
        if cohort.min_age is not None or cohort.max_age is not None:
            if person.birth is None:
                return "no birth date"
            age = (index - person.birth) / YEAR
            low, high = cohort.min_age, cohort.max_age
            if (low is not None and age < low) or (high is not None and age >= high):
                return "age"
        for number, criterion in enumerate(cohort.include, start=1):
            if not _holds(criterion, person.events, index):
                return f"inclusion {number}"
        for number, criterion in enumerate(cohort.exclude, start=1):
            if _holds(criterion, person.events, index):
                return f"exclusion {number}"
        return None

    def _label(self, person: Person, index: int) -> float | None:
        outcome = self._schema.outcome
        if isinstance(outcome, NoOutcome):
            return 0.0
        if isinstance(outcome, ValueOutcome):
            convert = self._outcome_convert
            if convert is None:
                return None
            found = [
                (event.time, value)
                for event in after(person.events, outcome.concepts, outcome.window, index)
                if (value := _value(event, convert)) is not None
            ]
            number = aggregate(found, outcome.aggregation)
            return None if number is None else _scaled(number, outcome.low, outcome.high)
        times = [e.time for e in person.events if not set(outcome.concepts).isdisjoint(e.concepts)]
        if outcome.death and person.death is not None:
            times.append(person.death)
        if isinstance(outcome, EventOutcome):
            if outcome.excluded_before and any(time <= index for time in times):
                return None
            return 1.0 if any(_in_after(time, outcome.window, index) for time in times) else 0.0
        return _time_label(outcome, times, person, index)

    def _inputs(
        self, feature: Feature, person: Person, index: int, tally: Tally
    ) -> list[float] | None:
        match feature:
            case Present():
                seen = any(True for _ in before(person.events, feature, index))
                _note(tally, feature.name, float(seen))
                return [1.0 if seen else 0.0]
            case Measured():
                number = aggregate(
                    self._readings(feature, before(person.events, feature, index), tally),
                    feature.aggregation,
                )
            case Age():
                number = None if person.birth is None else (index - person.birth) / YEAR
            case _:
                if person.sex is not None:
                    tally.patients_with[feature.name] += 1
                return [float(person.sex == "female"), float(person.sex == "male")]
        if number is None and feature.fill is None:
            return None
        if number is not None:
            _note(tally, feature.name, number)
            tally.clipped[feature.name] += not feature.low <= number <= feature.high
        shown = number if number is not None else feature.fill
        mask = [float(number is None)] if feature.missing == "indicator" else []
        return [_scaled(shown if shown is not None else 0.0, feature.low, feature.high), *mask]

    def _sequence(
        self, feature: Measured, events: Sequence[Event], index: int, tally: Tally
    ) -> np.ndarray:
        """[steps, 2]: the mean of each step on the scale of the range, and whether there is one."""
        grid = self._schema.grid
        if grid is None or feature.fill is None:
            raise RuntimeError("sequence: expected a grid and a fill value")
        width = grid.step_hours * 3600
        cells: list[list[float]] = [[] for _ in range(grid.steps)]
        window = Before(from_days=-grid.steps * grid.step_hours / 24)
        found = [e for e in events if _within(e, feature.concepts, window, index)]
        readings = self._readings(feature, found, tally)
        for time, value in readings:
            # A step has its end and not its beginning: what is known at its end.
            step = grid.steps - 1 - int((index - time) // width)
            if 0 <= step < grid.steps:
                cells[step].append(value)
        if readings:
            tally.patients_with[feature.name] += 1
            tally.values.setdefault(feature.name, []).extend(value for _, value in readings)
        out = np.zeros((grid.steps, 2))
        out[:, 0] = _scaled(feature.fill, feature.low, feature.high)
        for step, values in enumerate(cells):
            if values:
                mean = math.fsum(values) / len(values)
                out[step] = _scaled(mean, feature.low, feature.high), 1.0
        return out

    def _readings(self, feature: Measured, events: Sequence[Event], tally: Tally) -> list[Reading]:
        """The values of events in the study's unit, in order; counts for `count` need no value."""
        if feature.aggregation == "count":
            return [(event.time, 1.0) for event in events]
        convert, readings = self._convert[feature.name], []
        for event in events:
            value = _value(event, convert)
            if value is None:
                tally.unconverted[feature.name] += event.value is not None
            elif feature.allowed and not feature.allowed[0] <= value <= feature.allowed[1]:
                tally.outside[feature.name] += 1
            else:
                readings.append((event.time, value))
        tally.used[feature.name] += len(readings)
        return sorted(readings)


def index_time(rule: IndexEvent, events: Sequence[Event]) -> int | None:
    """The index time of a patient with these events in order; None without an index event."""
    times = [e.time for e in events if not set(rule.concepts).isdisjoint(e.concepts)]
    if not times:
        return None
    return times[0] + round(rule.plus_days * DAY)


def before(events: Sequence[Event], feature: Measured | Present, index: int) -> list[Event]:
    """The events of a feature's concepts in its window; none of them after the index time."""
    if feature.window is None:
        return []
    return [e for e in events if _within(e, feature.concepts, feature.window, index)]


def after(
    events: Sequence[Event], concepts: Sequence[str], window: After, index: int
) -> list[Event]:
    """The events of an outcome's concepts in its window, all of them after the index time."""
    wanted = set(concepts)
    return [
        e for e in events if _in_after(e.time, window, index) and not wanted.isdisjoint(e.concepts)
    ]


def aggregate(readings: Sequence[Reading], how: str) -> float | None:
    """One number of readings in order of time; None where there is none.

    `slope` is the least-squares slope per day and needs two different times. Sums are exact
    (`math.fsum`), so that no order of equal events can change a bit.
    """
    if how == "count":
        return float(len(readings))
    if not readings:
        return None
    values = [value for _, value in readings]
    simple: dict[str, Callable[[], float]] = {
        "last": lambda: values[-1],
        "first": lambda: values[0],
        "min": lambda: min(values),
        "max": lambda: max(values),
        "mean": lambda: math.fsum(values) / len(values),
    }
    number = simple[how]() if how in simple else _slope(readings)
    return number if number is not None and math.isfinite(number) else None


def _slope(readings: Sequence[Reading]) -> float | None:
    start = readings[0][0]
    days = [(time - start) / DAY for time, _ in readings]
    mean_day = math.fsum(days) / len(days)
    mean = math.fsum(value for _, value in readings) / len(readings)
    spread = math.fsum((day - mean_day) ** 2 for day in days)
    if spread <= 0:
        return None
    shared = math.fsum(
        (day - mean_day) * (value - mean) for day, (_, value) in zip(days, readings, strict=True)
    )
    return shared / spread


def _time_label(
    outcome: TimeOutcome, times: Sequence[int], person: Person, index: int
) -> float | None:
    """Days to the first event, negative where censored; None with an event before the index."""
    if any(time <= index for time in times):
        return None
    end = index + outcome.window.to_days * DAY
    first = min(times, default=None)
    if first is not None and first <= end:
        return (first - index) / DAY
    seen = [event.time for event in person.events]
    if person.death is not None:
        seen.append(person.death)
    last = min(max(seen, default=index), end)
    return -(last - index) / DAY if last > index else None


def _within(event: Event, concepts: Sequence[str], window: Before, index: int) -> bool:
    days = (event.time - index) / DAY
    return window.from_days <= days <= window.to_days and not set(concepts).isdisjoint(
        event.concepts
    )


def _in_after(time: int, window: After, index: int) -> bool:
    return window.from_days < (time - index) / DAY <= window.to_days


def _holds(criterion: Criterion, events: Sequence[Event], index: int) -> bool:
    found = sum(_within(e, criterion.concepts, criterion.window, index) for e in events)
    return found >= criterion.at_least


def _value(event: Event, convert: Convert) -> float | None:
    if event.value is None or not math.isfinite(event.value):
        return None
    value = convert(event.value, event.unit)
    return value if value is not None and math.isfinite(value) else None


def _scaled(value: float, low: float, high: float) -> float:
    return 2.0 * (min(max(value, low), high) - low) / (high - low) - 1.0


def _order(event: Event) -> tuple[int, tuple[str, ...], float, str]:
    value = event.value if event.value is not None and math.isfinite(event.value) else 0.0
    return event.time, event.concepts, value, event.unit or ""


def _note(tally: Tally, name: str, number: float) -> None:
    tally.patients_with[name] += 1
    tally.values.setdefault(name, []).append(number)
