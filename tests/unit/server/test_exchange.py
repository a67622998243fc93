"""Several exchanges in one round: what each site is asked, and who may answer."""

from fedward_common.ids import SiteId
from fedward_common.wire import Instruction, Kind
from fedward_server.exchange import AWAY_SECONDS, Ask, Exchanges
from fedward_server.ledger_heads import HeadsInMemory
from tests.support.studies import SITES
from tests.unit.server.test_study_run import World

FIRST, SECOND = SiteId(SITES[0]), SiteId(SITES[1])


def exchanges(world: World) -> Exchanges:
    return Exchanges(
        study=world.study,
        signed_study=b"signed",
        fleet=world.fleet,
        clock=world.clock,
        events=world.events,
        heads=HeadsInMemory(),
    )


def test_a_blob_for_one_site_reaches_that_site_only() -> None:
    world = World()

    exchanges(world).run(
        Ask(kind="train", round=1, model=b"m", own={FIRST: {"share": b"secret"}}), lambda *_: None
    )

    sent = world.fleet.sent[-1]
    assert sent[FIRST].blobs == {"share": b"secret", "study": b"signed", "model": b"m"}
    assert all("share" not in sent[site].blobs for site in sent if site != FIRST)


def test_a_later_exchange_asks_fewer_sites_under_the_cohort_of_the_first() -> None:
    world = World()
    cohort = tuple(SiteId(name) for name in SITES)
    taken: list[SiteId] = []

    state = exchanges(world).run(
        Ask(kind="evaluate", round=1, model=b"m", cohort=cohort, to=(FIRST, SECOND), quorum=2),
        lambda site, _: taken.append(site),
    )

    assert set(taken) == set(world.fleet.sent[-1]) == {FIRST, SECOND}
    assert state.has_quorum
    assert Instruction.parse(world.fleet.sent[-1][FIRST].header).cohort == cohort


def lost_seconds(kind: Kind, *, offline: bool, quorum: int = 3) -> float:
    """How long an exchange waits for one of four sites that does not answer."""
    world = World()
    silent = SiteId(SITES[3])
    world.fleet.sites[silent].silent_rounds.add(1)
    if offline:
        world.fleet.offline.add(silent)
    cohort = tuple(SiteId(name) for name in SITES)
    since = world.clock.now()

    state = exchanges(world).run(
        Ask(kind=kind, round=1, model=b"m", cohort=cohort, quorum=quorum), lambda *_: None
    )

    assert set(state.lost) == {silent}
    return world.clock.now() - since


def test_a_step_of_a_secret_sum_goes_on_without_a_site_that_is_gone() -> None:
    deadline = World().study.deadline_seconds

    assert AWAY_SECONDS < lost_seconds("sign", offline=True) < AWAY_SECONDS + 5 < deadline
    assert lost_seconds("sign", offline=False) >= deadline


def test_a_training_is_waited_for_also_when_its_site_is_gone() -> None:
    assert lost_seconds("train", offline=True) >= World().study.deadline_seconds


def test_nobody_is_given_up_before_there_is_a_quorum() -> None:
    assert lost_seconds("sign", offline=True, quorum=4) >= World().study.deadline_seconds
