"""A worker works on an instruction once, whatever the coordinator repeats or reorders."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_client.gateway.phase_course import Course
from fedward_common.channel.phase_pb2 import PhaseStep
from fedward_common.channel.phases import to_step
from fedward_common.errors import ProtocolError
from fedward_common.wire import Envelope
from tests.support.guard_site import a_study, instruction

STUDY = a_study(rounds=50)


def step(number: int, round_number: int, **changes: object) -> PhaseStep:
    header = instruction(STUDY, round_number, **changes)
    return to_step(number, Envelope(header=header, blobs={"model": b"m"}))


def answer(number: int, text: bytes = b"sealed") -> PhaseStep:
    return to_step(number, Envelope(header=text))


def a_course() -> Course:
    return Course(study=STUDY.digest)


def test_a_new_instruction_is_work_and_its_answer_leaves_under_its_number() -> None:
    course = a_course()

    assert course.asked(step(1, 1)).work
    sealed = course.answers(answer(1))

    assert sealed == Envelope(header=b"sealed")
    assert course.keep(sealed, given=1) == 1


def test_an_instruction_that_is_at_work_is_not_given_twice() -> None:
    course = a_course()
    course.asked(step(1, 1))

    again = course.asked(step(2, 1))

    assert (again.work, again.answer) == (False, None)
    sealed = course.answers(answer(1))
    assert sealed is not None
    assert course.keep(sealed, given=1) == 2


def test_an_answered_instruction_is_answered_with_the_same_bytes() -> None:
    course = a_course()
    course.asked(step(1, 1))
    sealed = course.answers(answer(1))
    assert sealed is not None
    course.keep(sealed, given=1)

    again = course.asked(step(5, 1))

    assert (again.work, again.answer) == (False, sealed)


def test_an_answer_to_a_step_that_was_replaced_is_late() -> None:
    course = a_course()
    course.asked(step(1, 1))
    assert course.asked(step(2, 2)).work

    assert course.answers(answer(1)) is None
    assert course.answers(answer(2)) is not None


def test_an_answer_that_is_late_while_the_guard_is_asked_takes_no_other_step_s_place() -> None:
    course = a_course()
    course.asked(step(1, 1))
    late = course.answers(answer(1, b"of round 1"))
    assert late is not None
    course.asked(step(2, 2))

    assert course.keep(late, given=1) is None

    assert course.asked(step(3, 2)).answer is None
    right = course.answers(answer(2, b"of round 2"))
    assert right is not None
    assert course.keep(right, given=2) == 3


@pytest.mark.parametrize("number", [0, 2, 1], ids=["none", "of the future", "twice"])
def test_an_answer_that_nobody_asked_for_is_refused(number: int) -> None:
    course = a_course()
    course.asked(step(1, 1))
    if number == 1:
        course.answers(answer(1))

    with pytest.raises(ProtocolError, match="expected"):
        course.answers(PhaseStep(number=number, header=b"h"))


def test_a_step_of_an_older_number_is_refused() -> None:
    course = a_course()
    course.asked(step(4, 1))

    for number in (3, 4):
        with pytest.raises(ProtocolError, match="number above 4"):
            course.asked(step(number, 2))


@pytest.mark.parametrize(
    "other",
    [
        to_step(1, Envelope(header=instruction(a_study(rounds=49), 1))),
        step(1, 1, kind="phase"),
        to_step(1, Envelope(header=b"no instruction")),
    ],
    ids=["another study", "opens a phase", "no instruction"],
)
def test_a_step_that_is_no_instruction_of_this_study_is_refused(other: PhaseStep) -> None:
    with pytest.raises(ProtocolError):
        a_course().asked(other)


@given(
    asks=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 6), st.booleans()), max_size=30),
)
def test_each_instruction_is_worked_on_at_most_once_in_a_row_and_answered_once_per_number(
    asks: list[tuple[int, int, bool]],
) -> None:
    course, current, newest, heard = a_course(), 0, 0, set[int]()
    for number, round_number, answers in asks:
        try:
            asked = course.asked(step(number, round_number))
        except ProtocolError:
            assert number <= newest
            continue
        assert number > newest
        assert asked.work == (round_number != current)
        newest, current = number, round_number
        given = number if asked.work else 0
        if answers and given:
            sealed = course.answers(answer(given))
            assert sealed is not None
            assert course.keep(sealed, given=given) not in heard
            heard.add(number)
