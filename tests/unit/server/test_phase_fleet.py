"""Rounds as steps of a phase: streams where they are, messages where not, each answer once."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from fedward_common.channel.phase_pb2 import PhaseEvent, PhaseStep
from fedward_common.channel.phases import from_step, to_step
from fedward_common.errors import ChannelError
from fedward_common.ids import SiteId
from fedward_common.trust.signing import SigningKey
from fedward_common.wire import Envelope, Instruction
from fedward_server.fleet import Answer
from fedward_server.phase_fleet import (
    MAX_HANDED,
    REJOIN_SECONDS,
    REOPEN_SECONDS,
    PhaseFleet,
)
from tests.support.federation import FakeClock, FakeSite
from tests.support.guard_site import a_study, instruction

STUDY = a_study(rounds=9, local_steps=1)
SITES = [SiteId(site.id) for site in STUDY.sites]
NORTH, SOUTH, WEST = SITES
BIG = bytes(5 << 20)


@dataclass(kw_only=True)
class FakeMessages:
    """Messages in memory: what was sent, and answers that the test puts in."""

    clock: FakeClock
    sent: list[dict[SiteId, Envelope]] = field(default_factory=list)
    inbox: list[Answer] = field(default_factory=list)

    def online(self) -> frozenset[SiteId]:
        return frozenset(SITES)

    def send(self, envelopes: Mapping[SiteId, Envelope]) -> None:
        self.inbox.clear()
        self.add(envelopes)

    def add(self, envelopes: Mapping[SiteId, Envelope]) -> None:
        if envelopes:
            self.sent.append(dict(envelopes))

    def receive(self, *, timeout_seconds: float) -> list[Answer]:
        if not self.inbox:
            self.clock.sleep(timeout_seconds)
        answers, self.inbox = self.inbox, []
        return answers


@dataclass(kw_only=True)
class FakeLink:
    """An edge in memory; `joining` are the sites whose stream comes as soon as it is open."""

    clock: FakeClock
    joining: list[SiteId] = field(default_factory=lambda: list(SITES))
    there: bool = True
    is_open: bool = False
    handed: list[tuple[PhaseStep, list[SiteId]]] = field(default_factory=list)
    waiting: list[PhaseEvent] = field(default_factory=list)
    closed: int = 0

    def open(self, study: str, sites: Collection[SiteId]) -> bool:
        assert study == STUDY.digest
        assert list(sites) == SITES
        self.is_open = self.there
        if self.is_open:
            self.waiting += [PhaseEvent(site=site, present=True) for site in self.joining]
        return self.is_open

    def hand(self, step: PhaseStep, sites: Collection[SiteId]) -> None:
        self._require()
        self.handed.append((step, list(sites)))

    def events(self, *, timeout_seconds: float) -> list[PhaseEvent]:
        self._require()
        if not self.waiting:
            self.clock.sleep(timeout_seconds)
        events, self.waiting = self.waiting, []
        return events

    def close(self) -> None:
        self.is_open = False
        self.closed += 1

    def _require(self) -> None:
        if not self.there:
            self.is_open = False
            raise ChannelError("gone")

    def answer(self, site: SiteId, *, number: int | None = None, text: bytes = b"a") -> None:
        newest = self.handed[-1][0].number if number is None else number
        step = to_step(newest, Envelope(header=text))
        self.waiting.append(PhaseEvent(site=site, answer=step))


@dataclass(kw_only=True)
class World:
    clock: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self.messages = FakeMessages(clock=self.clock)
        self.openings = FakeMessages(clock=self.clock)
        self.link = FakeLink(clock=self.clock)
        self.fleet = PhaseFleet(
            study=STUDY,
            messages=self.messages,
            openings=self.openings,
            link=self.link,
            clock=self.clock.now,
        )

    def send(self, number: int = 1, *, model: bytes = b"m", **changes: object) -> None:
        header = instruction(STUDY, number, **changes)
        self.fleet.send(
            {s: Envelope(header=header, blobs={"study": b"s", "model": model}) for s in SITES}
        )

    def collect(self, seconds: float = 0.5) -> list[tuple[SiteId, bytes]]:
        limit, came = self.clock.now() + seconds, list[Answer]()
        while self.clock.now() < limit:
            came += self.fleet.receive(timeout_seconds=limit - self.clock.now())
        return [(a.site, b"" if a.envelope is None else a.envelope.header) for a in came]


def test_one_message_opens_the_phase_and_every_round_is_a_step() -> None:
    world = World()

    for number in (1, 2, 3):
        world.send(number)
        for site in SITES:
            world.link.answer(site)
        assert sorted(site for site, _ in world.collect()) == sorted(SITES)

    assert [set(sent) for sent in world.openings.sent] == [set(SITES)]
    opening = Instruction.parse(world.openings.sent[0][NORTH].header)
    assert (opening.kind, opening.study) == ("phase", STUDY.digest)
    assert world.messages.sent == []
    assert [sites for _, sites in world.link.handed] == [SITES] * 3


def test_a_step_carries_all_that_a_message_would_but_the_study() -> None:
    world = World()

    world.send(2, model=b"the model")

    carried = from_step(world.link.handed[0][0])
    assert carried == Envelope(header=instruction(STUDY, 2), blobs={"model": b"the model"})


def test_blobs_of_one_site_go_to_that_site_only() -> None:
    world = World()
    header, model = instruction(STUDY, 1), b"m"
    own = {s: Envelope(header=header, blobs={"study": b"s", "model": model}) for s in SITES}
    own[NORTH] = Envelope(header=header, blobs={**own[NORTH].blobs, "shares": b"for north"})

    world.fleet.send(own)

    assert {tuple(sites): set(from_step(step).blobs) for step, sites in world.link.handed} == {
        (NORTH,): {"model", "shares"},
        (SOUTH, WEST): {"model"},
    }


def test_a_site_without_a_stream_gets_a_message() -> None:
    world = World()
    world.link.joining = [NORTH, SOUTH]

    world.send()
    world.messages.inbox.append(Answer(site=WEST, envelope=Envelope(header=b"by message")))
    world.link.answer(NORTH)

    assert [set(sent) for sent in world.messages.sent] == [{WEST}]
    assert sorted(world.collect()) == [(NORTH, b"a"), (WEST, b"by message")]


def test_a_site_that_refuses_phases_is_not_asked_for_one_again() -> None:
    world = World()
    world.link.joining = [NORTH, SOUTH]
    west = FakeSite(name=WEST, key=SigningKey.generate(), refusal="policy")
    refused = west.answer(Envelope(header=instruction(STUDY, kind="phase")))
    world.openings.inbox.append(Answer(site=WEST, envelope=refused))

    for number in (1, 2):
        world.send(number)
        world.clock.sleep(100)

    assert [set(sent) for sent in world.openings.sent] == [set(SITES)]
    assert [set(sent) for sent in world.messages.sent] == [{WEST}] * 2


def test_without_an_edge_everything_goes_by_messages() -> None:
    world = World()
    world.link.there = False

    world.send()
    world.messages.inbox += [Answer(site=s, envelope=Envelope(header=b"m")) for s in SITES]

    assert world.openings.sent == []
    assert len(world.collect()) == 3


def test_an_answer_counts_once_and_only_to_the_step_that_waits() -> None:
    world = World()
    world.send(1)
    first = world.link.handed[-1][0].number
    world.link.answer(NORTH)
    world.link.answer(NORTH)
    assert world.collect() == [(NORTH, b"a")]

    world.send(2)
    world.link.answer(SOUTH, number=first, text=b"late")
    world.link.answer(SOUTH, number=first + 7, text=b"of the future")
    world.link.answer(SOUTH)

    assert world.collect() == [(SOUTH, b"a")]


def test_a_stream_that_comes_back_is_asked_the_same_again() -> None:
    world = World()
    world.send(1)
    world.link.waiting += [
        PhaseEvent(site=NORTH, present=False),
        PhaseEvent(site=NORTH, present=True),
    ]
    world.collect()

    (first, _), (again, sites) = world.link.handed
    world.link.answer(NORTH)

    assert sites == [NORTH]
    assert again.number > first.number
    assert from_step(again) == from_step(first)
    assert world.collect() == [(NORTH, b"a")]


def test_a_site_that_joins_again_and_again_gets_a_step_three_times_and_holds_nobody_up() -> None:
    world = World()
    world.send(1)
    world.link.waiting += [
        PhaseEvent(site=NORTH, present=there) for _ in range(50) for there in (False, True)
    ]
    world.link.answer(SOUTH)

    came = world.collect()

    assert came == [(NORTH, b""), (SOUTH, b"a")]
    assert sum(NORTH in sites for _, sites in world.link.handed) == MAX_HANDED


def test_a_site_whose_guard_forgot_the_phase_gets_another_opening() -> None:
    world = World()
    world.send(1)
    world.link.waiting.append(PhaseEvent(site=NORTH, present=False))
    world.collect(REOPEN_SECONDS / 2)

    world.send(2)
    world.collect(REOPEN_SECONDS)
    world.send(3)

    first, *later = world.openings.sent
    assert set(first) == set(SITES)
    assert [set(sent) for sent in later] == [{NORTH}]


def test_a_stream_that_stays_away_is_replaced_by_a_message() -> None:
    world = World()
    world.send(1)
    world.link.waiting.append(PhaseEvent(site=NORTH, present=False))

    world.collect(REJOIN_SECONDS / 2)
    assert world.messages.sent == []
    world.collect(REJOIN_SECONDS)

    ((site, envelope),) = world.messages.sent[0].items()
    assert (site, envelope.header) == (NORTH, instruction(STUDY, 1))
    world.messages.inbox.append(Answer(site=NORTH, envelope=Envelope(header=b"by message")))
    world.link.answer(NORTH)
    assert world.collect() == [(NORTH, b"by message")]


def test_an_edge_that_dies_and_comes_back_costs_no_step() -> None:
    world = World()
    world.send(1)
    world.link.there = False
    world.collect(REJOIN_SECONDS / 2)
    world.link.there = True
    world.collect(1.0)

    for site in SITES:
        world.link.answer(
            site,
            number=next(
                step.number for step, sites in reversed(world.link.handed) if site in sites
            ),
        )

    assert sorted(site for site, _ in world.collect()) == sorted(SITES)
    assert world.messages.sent == []


def test_an_evaluation_ends_the_phase_and_goes_by_messages() -> None:
    world = World()
    world.send(1)
    world.openings.inbox += [Answer(site=s, envelope=Envelope(header=b"{}")) for s in SITES]

    world.send(9, kind="evaluate")

    assert not world.link.is_open
    assert [set(sent) for sent in world.messages.sent] == [set(SITES)]
    assert len(world.link.handed) == 1


def test_a_model_that_is_too_large_for_a_step_goes_by_messages() -> None:
    world = World()

    world.send(1, model=BIG)

    assert world.link.handed == []
    assert [set(sent) for sent in world.messages.sent] == [set(SITES)]


def test_who_is_no_member_is_not_online_though_its_stream_is_there() -> None:
    world = World()
    world.send(1)
    world.fleet.member = lambda site: site != WEST
    world.messages.online = lambda: frozenset({NORTH, SOUTH})  # type: ignore[method-assign]

    assert world.fleet.online() == {NORTH, SOUTH}


def test_an_answer_that_comes_while_it_is_asked_who_is_there_is_not_dropped() -> None:
    world = World()
    world.send(1)
    world.link.answer(NORTH)

    assert world.fleet.online() == set(SITES)
    world.link.answer(SOUTH)

    assert world.collect() == [(NORTH, b"a"), (SOUTH, b"a")]


def test_such_an_answer_belongs_to_its_round_alone() -> None:
    world = World()
    world.send(1)
    world.link.answer(NORTH)
    world.fleet.online()

    world.send(2)

    assert world.collect() == []
