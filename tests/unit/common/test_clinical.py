"""The clinical language: what a study may ask, and that no answer comes from after the index."""

import math
from datetime import UTC
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedward_common.errors import ConfigError
from fedward_common.study.clinical import ClinicalData
from fedward_common.study.clinical_encoding import Encoder, Tally, aggregate
from fedward_common.study.clinical_events import DAY, Event, Person, birth_seconds, clinical_time
from fedward_common.study.units import affine, check_unit, converter
from tests.support.clinical import BEFORE, measured, schema

INDEX = 10_000 * DAY
CODES = ["LOINC:1-1", "LOINC:2-2", "SNOMED:3", "LOINC:0-0"]


def small(**changes: Any) -> ClinicalData:
    """Index LOINC:0-0, two numbers and a diagnosis before, LOINC:2-2 after as the outcome."""
    data = {
        "kind": "clinical",
        "cohort": {"index": {"concepts": ["LOINC:0-0"]}},
        "features": [
            measured("one", "LOINC:1-1"),
            measured("slope", "LOINC:1-1", aggregation="slope", low=-1.0, high=1.0, fill=0.0),
            measured("count", "LOINC:2-2", aggregation="count", unit="1", missing="fill", fill=0.0),
            {"type": "present", "name": "three", "concepts": ["SNOMED:3"], "window": BEFORE},
        ],
        "outcome": {
            "kind": "event",
            "concepts": ["LOINC:2-2"],
            "window": {"to_days": 30.0},
            "excluded_before": False,
        },
        "split": {"kind": "hash", "salt": "s", "held_out": 0.5},
    }
    return ClinicalData.model_validate(data | changes)


def person(*events: Event, **facts: Any) -> Person:
    return Person(events=[Event(INDEX, ("LOINC:0-0",)), *events], **facts)


def event(days: float, concept: str, value: float | None = None, unit: str = "mg/dL") -> Event:
    return Event(INDEX + round(days * DAY), (concept,), value, unit)


def encoded(data: ClinicalData, *people: Person, tally: Tally | None = None) -> Any:
    named = {f"p{number}": one for number, one in enumerate(people)}
    return Encoder(data).encode(named, part=None, tally=tally)


EVENTS = st.builds(
    event, st.floats(-500, 500), st.sampled_from(CODES[:3]), st.floats(0, 500) | st.none()
)


@settings(deadline=None)
@given(before=st.lists(EVENTS, max_size=8), after=st.lists(EVENTS, max_size=8))
def test_nothing_after_the_index_reaches_a_feature(before: list[Event], after: list[Event]) -> None:
    past = [one for one in before if one.time <= INDEX]
    future = [one for one in after if one.time > INDEX]

    alone, with_future = encoded(small(), person(*past), person(*past, *future)).features

    assert alone.tobytes() == with_future.tobytes()


@settings(deadline=None)
@given(others=st.lists(st.lists(EVENTS, max_size=5), max_size=4))
def test_a_patient_s_tensor_has_the_same_bits_whoever_else_is_there(
    others: list[list[Event]],
) -> None:
    one = person(event(-3, "LOINC:1-1", 120.0), event(-1, "LOINC:1-1", 130.0))
    alone = encoded(small(), one)

    together = encoded(small(), one, *(person(*events) for events in others))

    assert together.features[0].tobytes() == alone.features[0].tobytes()


@settings(deadline=None)
@given(events=st.permutations([event(-k % 3 - 1, "LOINC:1-1", 90.1 + k) for k in range(5)]))
def test_the_order_in_which_a_source_gives_events_changes_no_bit(events: list[Event]) -> None:
    first, other = encoded(small(), person(*events), person(*sorted(events, key=str))).features

    assert first.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    "window",
    [{"from_days": -1.0, "to_days": 0.5}, {"from_days": 1.0, "to_days": 2.0}, {"from_days": 0.0}],
)
def test_a_feature_s_window_cannot_end_after_the_index(window: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        small(features=[measured("one", "LOINC:1-1", window=window)])


@pytest.mark.parametrize(
    "changes",
    [
        {"features": [measured("a", "LOINC:1-1"), measured("a", "LOINC:2-2")]},
        {"features": [measured("a", "LOINC:1-1", aggregation="sequence")]},
        {"features": [measured("a", "1-1")]},
        {"features": [measured("a", "LOINC:1-1", fill=1000.0)]},
        {"features": [measured("a", "LOINC:1-1", missing="drop")]},
        {"grid": {"step_hours": 1.0, "steps": 4}},
        {"outcome": {"kind": "event", "window": {"to_days": 1.0}}},
        {"outcome": {"kind": "event", "death": True, "window": {"from_days": -1.0, "to_days": 1}}},
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        small(**changes)


def test_the_same_study_has_the_same_canonical_bytes() -> None:
    value = schema().model_dump(mode="json")

    assert ClinicalData.model_validate(value).model_dump(mode="json") == value
    assert set(schema().concepts) >= {"LOINC:2339-0", "SNOMED:15777000", "LOINC:2093-3"}
    assert schema().input_size == 1 + 2 + 3 * 2 + 1 + 1 + 1


def test_a_day_without_a_time_is_its_end_so_that_it_cannot_precede_the_index() -> None:
    day = clinical_time("2020-03-01", UTC)

    assert day == clinical_time("2020-03-01T23:59:59", UTC)
    assert day == clinical_time("2020-03-01T00:00:00", UTC)
    assert clinical_time("2020-02", UTC) == clinical_time("2020-02-29", UTC)
    assert clinical_time("2019", UTC) == clinical_time("2019-12-31", UTC)
    assert clinical_time("yesterday", UTC) is None
    assert birth_seconds("1960-05") == birth_seconds("1960-05-01")


def test_times_with_an_offset_become_the_hospital_s_wall_clock() -> None:
    assert clinical_time("2020-07-01T10:00:00Z", ZoneInfo("Europe/Zurich")) == clinical_time(
        "2020-07-01T12:00:00", UTC
    )


def test_death_on_the_day_of_the_index_is_an_outcome_and_before_it_no_patient() -> None:
    dies = {"kind": "event", "death": True, "window": {"to_days": 30.0}}
    noon = INDEX + DAY // 2
    events = [Event(noon, ("LOINC:0-0",))]

    records = encoded(
        small(outcome=dies),
        Person(events=list(events), death=INDEX + DAY - 1),
        Person(events=list(events), death=INDEX - 1),
    )

    assert records.labels.tolist() == [1.0]


def test_a_patient_whose_rows_do_not_fit_counts_as_absent() -> None:
    tally = Tally()
    records = encoded(small(), person(), person(broken=True), Person(), tally=tally)

    assert records.patients == 1
    assert tally.why_absent == {"rows that do not fit": 1, "no index event": 1}


def test_numbers_that_no_sum_can_hold_make_their_patient_absent_and_no_error() -> None:
    """An error would tell of this patient, outside epsilon (rules 7)."""
    features = [measured("one", "LOINC:1-1", aggregation="mean", missing="fill", fill=0.0)]
    tally = Tally()
    huge = [event(-2, "LOINC:1-1", 1.7e308), event(-1, "LOINC:1-1", 1.7e308)]

    records = encoded(small(features=features), person(), person(*huge), tally=tally)

    assert records.patients == 1
    assert tally.why_absent == {"rows that do not fit": 1}


def test_a_unit_that_pint_asserts_on_is_one_that_nobody_can_convert() -> None:
    assert converter("mmol/L", molar_mass=180.0)(1.0, "dB") is None
    assert converter("mmol/L", molar_mass=180.0)(1.0, "B[SPL]") is None


def test_values_without_a_usable_unit_or_outside_the_allowed_range_are_not_there() -> None:
    tally = Tally()
    data = small(features=[measured("one", "LOINC:1-1", allowed=[10.0, 1000.0])])
    found = encoded(
        data,
        person(event(-2, "LOINC:1-1", 1.2, unit="g/L"), event(-1, "LOINC:1-1", 5000.0)),
        person(event(-1, "LOINC:1-1", 90.0, unit="furlong")),
        person(event(-1, "LOINC:1-1", math.inf)),
        tally=tally,
    ).features

    assert found[0].tolist() == [np.float32(2 * 120 / 400 - 1), 0.0]
    assert found[1].tolist() == found[2].tolist() == [-0.5, 1.0]
    assert (tally.outside["one"], tally.unconverted["one"]) == (1, 2)


def test_a_sequence_has_the_mean_of_each_step_and_a_mask() -> None:
    data = small(
        features=[
            measured("one", "LOINC:1-1", aggregation="sequence", window=None, missing="fill")
        ],
        grid={"step_hours": 24.0, "steps": 3},
    )
    found = encoded(
        data, person(event(-0.5, "LOINC:1-1", 100.0), event(0, "LOINC:1-1", 300.0),
                     event(-1, "LOINC:1-1", 400.0), event(-3.5, "LOINC:1-1", 400.0))
    ).features  # fmt: skip

    assert found.reshape(3, 2).tolist() == [[-0.5, 0.0], [1.0, 1.0], [0.0, 1.0]]


def test_days_to_an_event_are_negative_where_the_patient_was_only_followed_so_far() -> None:
    data = small(
        outcome={"kind": "time-to-event", "concepts": ["LOINC:2-2"], "window": {"to_days": 30.0}}
    )
    labels = encoded(
        data,
        person(event(4, "LOINC:2-2")),
        person(event(9, "LOINC:1-1")),
        person(event(50, "LOINC:2-2")),
        person(),
        person(event(-4, "LOINC:2-2")),
    ).labels

    assert labels.tolist() == [4.0, -9.0, -30.0]


@pytest.mark.parametrize(
    ("how", "expected"),
    [("last", 5.0), ("first", 1.0), ("mean", 3.0), ("min", 1.0), ("max", 5.0), ("count", 3.0),
     ("slope", 2.0)],
)  # fmt: skip
def test_aggregations(how: str, expected: float) -> None:
    assert aggregate([(0, 1.0), (DAY, 3.0), (2 * DAY, 5.0)], how) == pytest.approx(expected)
    assert aggregate([], how) == (0.0 if how == "count" else None)


@pytest.mark.parametrize(
    ("found", "target", "molar_mass", "value", "expected"),
    [
        ("mg/dL", "mmol/L", 180.156, 90.0, 4.9957),
        ("mmol/L", "mg/dL", 180.156, 5.0, 90.078),
        ("[degF]", "Cel", None, 98.6, 37.0),
        ("mmHg", "kPa", None, 120.0, 15.9987),
        ("10*3/uL", "10*9/L", None, 7.0, 7.0),
        ("%", "mmol/mol", None, 6.5, 65.0),
        ("lb", "kg", None, 100.0, 45.3592),
        ("{score}", "1", None, 3.0, 3.0),
    ],
)
def test_units_convert_by_ucum(
    found: str, target: str, molar_mass: float | None, value: float, expected: float
) -> None:
    assert converter(target, molar_mass=molar_mass)(value, found) == pytest.approx(expected, 1e-4)


def test_a_unit_nobody_can_convert_is_refused() -> None:
    assert affine("kg", "mg/dL") is None
    assert converter("mg/dL")(90.0, None) is None
    with pytest.raises(ConfigError, match="UCUM"):
        check_unit("furlongs per fortnight")
    with pytest.raises(ConfigError, match="UCUM"):
        Encoder(small(features=[measured("one", "LOINC:1-1", unit="quux")]))
