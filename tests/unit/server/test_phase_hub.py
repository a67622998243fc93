"""The edge's phases: who may join, one stream per site, one answer per step."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_common.channel.phase_pb2 import PhaseDown, PhaseEvent, PhaseStep
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.ids import SiteId
from fedward_server.edge.phase_hub import MAX_PHASES, PhaseHub, Seat
from fedward_server.edge.phase_orders import News

NORTH, SOUTH = SiteId("north"), SiteId("south")
STUDY = "a" * 64


def present(site: str, *, is_there: bool) -> PhaseEvent:
    return PhaseEvent(site=site, present=is_there)


def test_only_sites_of_an_open_phase_may_join() -> None:
    hub = PhaseHub()
    with pytest.raises(CallRefused) as nothing_open:
        hub.join(STUDY, NORTH)
    hub.open(STUDY, [NORTH], lambda _event: None)

    for study, site in ((STUDY, SOUTH), ("b" * 64, NORTH)):
        with pytest.raises(CallRefused) as refused:
            hub.join(study, site)
        assert refused.value.refusal is nothing_open.value.refusal is Refusal.PHASE


def test_the_server_app_hears_who_came_and_went() -> None:
    hub, heard = PhaseHub(), list[PhaseEvent]()
    hub.open(STUDY, [NORTH], heard.append)

    phase, seat = hub.join(STUDY, NORTH)
    hub.leave(phase, seat)

    assert heard == [present(NORTH, is_there=True), present(NORTH, is_there=False)]


def test_a_second_stream_of_a_site_ends_the_first_and_the_site_stays_present() -> None:
    async def run() -> None:
        hub, heard = PhaseHub(), list[PhaseEvent]()
        hub.open(STUDY, [NORTH], heard.append)
        phase, first = hub.join(STUDY, NORTH)
        _, second = hub.join(STUDY, NORTH)
        hub.leave(phase, first)

        assert await first.next() == PhaseDown(ended=True)
        assert phase.seats == {NORTH: second}
        assert heard == [present(NORTH, is_there=True)] * 2

    asyncio.run(run())


def test_a_phase_that_ends_ends_every_stream() -> None:
    async def run() -> None:
        hub = PhaseHub()
        phase = hub.open(STUDY, [NORTH, SOUTH], lambda _event: None)
        seats = [hub.join(STUDY, site)[1] for site in (NORTH, SOUTH)]

        hub.close(phase)

        assert [await seat.next() for seat in seats] == [PhaseDown(ended=True)] * 2
        with pytest.raises(CallRefused):
            hub.join(STUDY, NORTH)

    asyncio.run(run())


def test_a_newer_server_app_takes_a_study_over() -> None:
    async def run() -> None:
        hub = PhaseHub()
        heard = list[PhaseEvent]()
        older = hub.open(STUDY, [NORTH], heard.append)
        _, seat = hub.join(STUDY, NORTH)

        newer = hub.open(STUDY, [NORTH], lambda _event: None)
        hub.close(older)

        assert await seat.next() == PhaseDown(ended=True)
        assert heard == [present(NORTH, is_there=True), present(NORTH, is_there=False)]
        assert hub.join(STUDY, NORTH)[0] is newer

    asyncio.run(run())


def test_only_the_newest_step_waits_for_a_slow_site() -> None:
    async def run() -> None:
        seat = Seat(site=NORTH)
        for number in (1, 2, 3):
            seat.hand(PhaseStep(number=number))

        assert await seat.next() == PhaseDown(step=PhaseStep(number=3))

    asyncio.run(run())


def test_phases_are_limited() -> None:
    hub = PhaseHub()
    for number in range(MAX_PHASES):
        hub.open(f"{number:064}", [NORTH], lambda _event: None)

    with pytest.raises(CallRefused) as refused:
        hub.open(STUDY, [NORTH], lambda _event: None)

    assert refused.value.refusal is Refusal.RATE


@given(
    moves=st.lists(st.tuples(st.sampled_from(["hand", "answer"]), st.integers(1, 12)), max_size=40)
)
def test_a_step_is_answered_at_most_once_and_only_after_it_was_handed_out(
    moves: list[tuple[str, int]],
) -> None:
    async def run() -> None:
        seat, handed, taken = Seat(site=NORTH), 0, list[int]()
        for move, number in moves:
            if move == "hand":
                handed = max(handed + 1, number)
                seat.hand(PhaseStep(number=handed))
                await seat.next()
                continue
            if number > handed or (taken and number <= taken[-1]):
                with pytest.raises(CallRefused, match="malformed"):
                    seat.takes(number)
                continue
            assert seat.takes(number) == (number == handed)
            taken.append(number)
        assert taken == sorted(set(taken))

    asyncio.run(run())


def test_what_a_server_app_has_not_heard_yet_grows_with_its_sites_only() -> None:
    async def run() -> None:
        news, answer = News(), PhaseEvent(site=SOUTH, answer=PhaseStep(number=1))
        for _ in range(100):
            news.add(present(NORTH, is_there=False))
            news.add(present(NORTH, is_there=True))
        news.add(answer)
        news.add(present(NORTH, is_there=False))

        assert len(news) == 2
        assert [await news.next(), await news.next()] == [answer, present(NORTH, is_there=False)]
        assert len(news) == 0

    asyncio.run(run())
