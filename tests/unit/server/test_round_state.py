"""A round counts only with its quorum, answers once per site, and its order cannot be broken."""

import pytest

from fedward_common.errors import ProtocolError
from fedward_common.ids import SiteId
from fedward_server.round_state import Phase, RoundState

A, B, C = SiteId("a"), SiteId("b"), SiteId("c")


def a_round(quorum: int = 2) -> RoundState:
    return RoundState(
        number=3, cohort=(A, B, C), quorum=quorum, opened_at=100.0, deadline_seconds=10.0
    )


def test_a_round_stays_open_while_an_answer_may_come() -> None:
    state = a_round()
    state.accept(A)
    state.accept(B)

    assert not state.closed(105.0)
    assert state.missing == (C,)


def test_a_round_closes_when_everybody_answered() -> None:
    state = a_round()
    state.accept(A)
    state.refuse(B, "policy")
    state.lose(C, "deadline")

    assert state.closed(100.0)


def test_a_round_closes_at_its_deadline() -> None:
    assert a_round().closed(110.0)
    assert a_round().seconds_left(200.0) == 0.0


def test_a_round_closes_at_once_when_the_quorum_is_out_of_reach() -> None:
    state = a_round(quorum=2)
    state.refuse(A, "policy")
    state.refuse(B, "budget")

    assert state.closed(100.0)
    assert not state.has_quorum


def test_a_second_answer_of_one_site_is_refused() -> None:
    state = a_round()
    state.accept(A)

    with pytest.raises(ProtocolError, match="a second"):
        state.accept(A)


def test_an_answer_of_a_site_that_was_not_asked_is_refused() -> None:
    with pytest.raises(ProtocolError, match="found one of stranger"):
        a_round().accept(SiteId("stranger"))


def test_a_round_below_its_quorum_cannot_be_aggregated() -> None:
    state = a_round()
    state.accept(A)

    with pytest.raises(RuntimeError, match="cannot be aggregated"):
        state.aggregate()


def test_an_abandoned_round_takes_nothing_more() -> None:
    state = a_round()
    state.abandon()

    assert state.phase is Phase.ABANDONED
    with pytest.raises(ProtocolError, match="after abandoned"):
        state.accept(A)
    with pytest.raises(RuntimeError):
        state.commit()


def test_a_round_is_committed_only_after_it_was_aggregated() -> None:
    state = a_round()
    state.accept(A)
    state.accept(B)
    with pytest.raises(RuntimeError, match="cannot be committed"):
        state.commit()

    state.aggregate()
    state.commit()

    assert state.phase is Phase.COMMITTED
    with pytest.raises(RuntimeError, match="cannot be abandoned"):
        state.abandon()
