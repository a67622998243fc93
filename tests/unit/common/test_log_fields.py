"""What may stand in a log: known fields with values that have no room for a patient's data."""

import io
import json
from contextlib import suppress
from pathlib import Path

import pytest
import structlog

from fedward_common.log.fields import FIELDS, LogFieldError, checked, known
from fedward_common.log.setup import configure_logging


@pytest.mark.parametrize(
    "fields",
    [
        {"site": "north", "round": 3, "study": "a" * 64},
        {"sites": ["north", "south"], "good": 2, "quorum": 3},
        {"direction": "out", "route": "/api/v0/fleet/push-messages", "bytes": 0},
        {"epsilon": 1.25, "delta": 1e-5, "epsilon_is": "admission"},
        {"node": "18446744073709551615"},
        {"node": "-4242424242"},
        {"code": "policy", "allowed": False, "message_id": "4f0a-77"},
        {"address": "127.0.0.1:9443", "reason": "expected another key; found this one"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_known_fields_within_their_form_pass(fields: dict[str, object]) -> None:
    assert checked(fields) == fields
    assert known(fields) == fields


@pytest.mark.parametrize(
    "fields",
    [
        {"patient": 7},
        {"age": 63},
        {"message": "anything"},
        {"site": "North Hospital"},
        {"study": "heart"},
        {"round": -1},
        {"round": True},
        {"round": "3"},
        {"node": 18446744073709551615},
        {"bytes": 1.5},
        {"epsilon": float("nan")},
        {"direction": "sideways"},
        {"code": "two words"},
        {"message_id": "a\nb"},
        {"reason": "two\nlines"},
        {"reason": "x" * 501},
        {"sites": "north"},
        {"sites": ["north", 7]},
        {"route": "/a?patient=7"},
    ],
    ids=repr,
)
def test_anything_else_raises_without_repeating_the_value(fields: dict[str, object]) -> None:
    with pytest.raises(LogFieldError) as raised:
        checked(fields)

    assert next(iter(fields)) in str(raised.value)
    assert str(next(iter(fields.values()))) not in str(raised.value).replace("patient", "")
    assert known(fields) == {}


def test_no_field_takes_a_float_and_a_text() -> None:
    """A field is a number or a word; none takes whatever is handed over."""
    for name, check in FIELDS.items():
        assert not (check(0.5) and check("half")), name
        assert not check(object()), name
        assert not check({"a": 1}), name


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture(autouse=True)
def _restore() -> object:
    yield
    structlog.reset_defaults()


def test_production_drops_what_is_not_known() -> None:
    stream = io.StringIO()
    configure_logging(process="guard", stream=stream)

    structlog.get_logger().info("round.charged", round=3, patient="Ada", site="not a label")

    (line,) = lines(stream)
    assert line.keys() == {"event", "level", "timestamp", "process", "round"}
    assert (line["event"], line["process"], line["round"]) == ("round.charged", "guard", 3)


def test_a_sentence_as_event_is_replaced() -> None:
    stream = io.StringIO()
    configure_logging(process="guard", stream=stream)

    structlog.get_logger().info("patient Ada is 63")

    assert lines(stream)[0]["event"] == "log.unnamed"


def test_a_log_that_has_no_room_ends_no_process() -> None:
    """Every write to /dev/full fails as on a full disk."""
    went_on = False
    with suppress(OSError), Path("/dev/full").open("w", buffering=1) as full:
        configure_logging(process="guard", stream=full)

        structlog.get_logger().warning("round.charged", round=3)
        went_on = True

    assert went_on


def test_strict_raises_on_what_is_not_known() -> None:
    configure_logging(process="guard", strict=True, stream=io.StringIO())

    with pytest.raises(LogFieldError):
        structlog.get_logger().info("round.charged", patient="Ada")
    with pytest.raises(LogFieldError):
        structlog.get_logger().info("patient Ada is 63")


def test_an_exception_is_logged_by_its_class_alone() -> None:
    stream = io.StringIO()
    configure_logging(process="worker", stream=stream)

    try:
        raise ValueError("patient Ada is 63")
    except ValueError:
        structlog.get_logger().exception("worker.failed")

    assert lines(stream)[0]["error"] == "ValueError"
    assert "Ada" not in stream.getvalue()


def test_a_terminal_gets_readable_text() -> None:
    stream = io.StringIO()
    configure_logging(process="guard", as_json=False, stream=stream)

    structlog.get_logger().info("round.charged", round=3)

    assert "round.charged" in stream.getvalue()
    assert not stream.getvalue().startswith("{")
