"""Several exchanges in one round: what each site is asked, and who may answer."""

from fedward_common.ids import SiteId
from fedward_common.wire import Instruction
from fedward_server.exchange import Ask, Exchanges
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
