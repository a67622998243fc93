"""Made-up patients of a clinical study for the audit, as rows of the two tables of events.

They go through the product's own rows, units, windows and encoder; no source of the site is opened.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count, islice
from typing import Final

from fedward_common.study.clinical import (
    Age,
    ClinicalData,
    EventOutcome,
    Measured,
    NoOutcome,
    Present,
    TimeOutcome,
    ValueOutcome,
)
from fedward_common.study.clinical_encoding import Encoder
from fedward_common.study.clinical_events import zone_utc
from fedward_common.study.encoding import PatientRecords, Row, hash_part
from fedward_common.study.event_rows import people_of

INDEX: Final = datetime(2000, 6, 15, 12, 0, 1, tzinfo=UTC)
BEYOND: Final = 1e30
KINDS: Final[tuple[tuple[tuple[str, bool], ...], ...]] = (
    (("low", False),),
    (("high", True),),
    (("low", True),),
    (("beyond", True),),
    (("below", False),),
    (("nan", True),),
    (("words", False),),
    (("missing", True),),
    (("unit", False),),
    (("low", False), ("high", False)),
    (("beyond", True),) * 3,
    (("high", False),),
)
"""Each patient: what their values are, and whether the outcome comes; several are all recorded."""


def load_clinical(schema: ClinicalData, rows: Sequence[Row]) -> PatientRecords:
    """The records to train on, by the encoding that every site uses on its own source."""
    people = people_of(
        [row for row in rows if "birth_date" in row],
        [row for row in rows if "concept" in row],
        concepts=schema.concepts,
        zone=zone_utc(),
    )
    return Encoder(schema).encode(people, part="train")


def clinical_rows(schema: ClinicalData) -> list[list[Row]]:
    """The rows of made-up patients: honest, at and far beyond the range, faulty, contradicting.

    Their ids rise as texts do, so that the encoder keeps their order.
    """
    names = (f"{number:06d}" for number in count())
    training = (name for name in names if hash_part(schema.split, name) == "train")
    return [
        [
            _patient(schema, name, dies=_is_death(schema) and any(had for _, had in kinds)),
            *(row for kind, had in kinds for row in _events(schema, name, kind=kind, had=had)),
        ]
        for name, kinds in zip(islice(training, len(KINDS)), KINDS, strict=True)
    ]


def _patient(schema: ClinicalData, name: str, *, dies: bool) -> Row:
    low, high = schema.cohort.min_age or 18.0, schema.cohort.max_age or 90.0
    ages = [f for f in schema.features if isinstance(f, Age)]
    middle = (max([low, *(f.low for f in ages)]) + min([high, *(f.high for f in ages)])) / 2.0
    death = _after(schema) if dies else None
    return {
        "patient_id": name,
        "birth_date": (INDEX - timedelta(days=365.25 * middle)).date().isoformat(),
        "sex": "female",
        "death_date": "" if death is None else death.isoformat(),
    }


def _events(schema: ClinicalData, name: str, *, kind: str, had: bool) -> Iterator[Row]:
    cohort = schema.cohort
    index = INDEX - timedelta(days=cohort.index.plus_days)
    yield _event(name, cohort.index.concepts[0], index)
    for criterion in cohort.include:
        time = INDEX + timedelta(days=criterion.window.to_days)
        for number in range(criterion.at_least):
            yield _event(name, criterion.concepts[0], time - timedelta(seconds=number))
    for feature in schema.features:
        if isinstance(feature, Present) and kind != "missing":
            yield _event(name, feature.concepts[0], INDEX + timedelta(days=feature.window.to_days))
        if isinstance(feature, Measured) and kind != "missing":
            yield _measured(name, feature, kind=kind)
    yield from _outcome(schema, name, kind=kind, had=had)


def _measured(name: str, feature: Measured, *, kind: str) -> Row:
    time = INDEX if feature.window is None else INDEX + timedelta(days=feature.window.to_days)
    values = {"low": feature.low, "high": feature.high, "beyond": BEYOND, "below": -BEYOND}
    texts = {"nan": "nan", "words": "no number", "unit": repr(feature.high)}
    text = texts.get(kind) or repr(float(values[kind]))
    unit = "furlong" if kind == "unit" else feature.unit
    return _event(name, feature.concepts[0], time, value=text, unit=unit)


def _outcome(schema: ClinicalData, name: str, *, kind: str, had: bool) -> Iterator[Row]:
    outcome, time = schema.outcome, _after(schema)
    if isinstance(outcome, ValueOutcome):
        value = {"beyond": BEYOND, "below": -BEYOND}.get(kind, outcome.high if had else outcome.low)
        yield _event(name, outcome.concepts[0], time, value=repr(float(value)), unit=outcome.unit)
    elif had and outcome.concepts:
        yield _event(name, outcome.concepts[0], time)
    elif isinstance(outcome, TimeOutcome) and outcome.follow_up:
        yield _event(name, outcome.follow_up[0], time)


def _is_death(schema: ClinicalData) -> bool:
    """Whether only a death can be the outcome."""
    outcome = schema.outcome
    dies = isinstance(outcome, EventOutcome | TimeOutcome) and outcome.death
    return dies and not outcome.concepts


def _after(schema: ClinicalData) -> datetime:
    outcome = schema.outcome
    if isinstance(outcome, NoOutcome):
        return INDEX
    window = outcome.window
    return INDEX + timedelta(days=(window.from_days + window.to_days) / 2.0)


def _event(name: str, concept: str, time: datetime, *, value: str = "", unit: str = "") -> Row:
    return {
        "patient_id": name,
        "concept": concept,
        "time": time.isoformat(),
        "value": value,
        "unit": unit,
    }
