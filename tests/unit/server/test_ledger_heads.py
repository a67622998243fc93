"""A site whose ledger goes back, as after a restored backup, is found by the coordinator."""

from pathlib import Path
from typing import Any

import pytest

from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.errors import ConfigError, LedgerError, ProtocolError
from fedward_common.ids import SiteId
from fedward_common.privacy.ledger_values import Head
from fedward_common.study.files import SiteKeys
from fedward_common.trust.signing import SigningKey, key_sha256
from fedward_common.wire import KNOWN_ROWS, KnownRows, Reply
from fedward_server.adapters.ledger_heads import NAME, HeadsFile
from fedward_server.fleet import Silent
from fedward_server.ledger_heads import KEPT, HeadsInMemory, LedgerHeads
from fedward_server.study_run import StudyRun
from tests.support.federation import FakeClock, FakeFleet, FakeStore
from tests.support.statistics import CountingSite
from tests.support.studies import SITES, key_digest, make_spec

NORTH = SiteId("north")


def head(seq: int, history: str = "true") -> Head:
    return Head(seq=seq, sha256=sha256_hex(f"{history} {seq}".encode()))


@pytest.fixture(params=["memory", "file"])
def heads(request: pytest.FixtureRequest, tmp_path: Path) -> LedgerHeads:
    return HeadsInMemory() if request.param == "memory" else HeadsFile(tmp_path / "state")


def observe(heads: LedgerHeads, *found: Head) -> None:
    for one in found:
        heads.observe(NORTH, one, floor=heads.newest().get(NORTH, Head()).seq)


def test_a_ledger_that_grows_is_what_is_expected(heads: LedgerHeads) -> None:
    observe(heads, head(2), head(3), head(7))

    assert heads.newest() == {NORTH: head(7)}


def test_an_answer_that_comes_again_shows_a_head_that_is_known(heads: LedgerHeads) -> None:
    observe(heads, head(2), head(3), head(2))

    assert heads.newest() == {NORTH: head(3)}


@pytest.mark.parametrize(
    ("back", "message"),
    [(head(3, "restored"), "another row under that number"), (head(4), "after row 7 before")],
    ids=["a row rewritten", "a row below"],
)
def test_a_ledger_that_went_back_is_refused(heads: LedgerHeads, back: Head, message: str) -> None:
    observe(heads, head(2), head(3), head(7))

    with pytest.raises(LedgerError, match=message):
        observe(heads, back)

    assert heads.newest() == {NORTH: head(7)}


def test_a_ledger_that_went_back_stays_out_although_it_grows_past_what_was_seen(
    heads: LedgerHeads,
) -> None:
    observe(heads, *(head(number) for number in range(1, 43)))

    for number in (40, 41, 42, 43, 44):
        with pytest.raises(LedgerError):
            observe(heads, head(number, "restored"))

    assert heads.went_back() == {NORTH}
    assert heads.newest() == {NORTH: head(42)}


def test_answers_to_two_runs_may_overtake_each_other(heads: LedgerHeads) -> None:
    observe(heads, head(2))
    heads.observe(NORTH, head(5), floor=2)

    heads.observe(NORTH, head(4), floor=2)

    assert heads.newest() == {NORTH: head(5)}


def test_sites_are_apart(heads: LedgerHeads) -> None:
    observe(heads, head(9))

    heads.observe(SiteId("south"), head(1), floor=0)

    assert heads.newest() == {NORTH: head(9), SiteId("south"): head(1)}


def test_no_more_than_the_newest_heads_are_kept(heads: LedgerHeads) -> None:
    memory = HeadsInMemory(seen={NORTH: {n: head(n).sha256 for n in range(1, KEPT + 1)}})

    observe(memory, head(KEPT + 1))

    assert len(memory.seen[NORTH]) == KEPT
    assert min(memory.seen[NORTH]) == 2


def test_what_is_remembered_outlives_the_process(tmp_path: Path) -> None:
    observe(HeadsFile(tmp_path), head(7))

    with pytest.raises(LedgerError):
        observe(HeadsFile(tmp_path), head(6))


def test_that_a_ledger_went_back_outlives_the_process(tmp_path: Path) -> None:
    observe(HeadsFile(tmp_path), head(7))
    with pytest.raises(LedgerError):
        observe(HeadsFile(tmp_path), head(7, "restored"))

    with pytest.raises(LedgerError, match="forget-ledger"):
        observe(HeadsFile(tmp_path), head(8))


def test_an_operator_may_let_a_site_begin_anew(tmp_path: Path) -> None:
    heads = HeadsFile(tmp_path)
    observe(heads, head(7))
    with pytest.raises(LedgerError):
        observe(heads, head(6))

    heads.forget(NORTH)

    observe(heads, head(1, "new"))
    assert not heads.went_back()
    with pytest.raises(ConfigError, match="south"):
        heads.forget(SiteId("south"))


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format":"x","sites":{}}', b'{"sites":3}'])
def test_a_damaged_memory_is_not_taken_for_an_empty_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)

    with pytest.raises(LedgerError):
        HeadsFile(tmp_path).newest()


def world(heads: LedgerHeads) -> tuple[StudyRun, dict[SiteId, CountingSite], Silent]:
    """A training study over four sites that show heads."""
    keys = {SiteId(name): SigningKey.generate() for name in SITES}
    named = {
        name: SiteKeys(
            key_sha256=key_sha256(key.public_hex), node_key_sha256=key_digest(number + 500)
        )
        for number, (name, key) in enumerate(keys.items())
    }
    sites = {
        name: CountingSite(
            name=name, key=key, counts=[[1.0] * 4, [2.0] * 4], head=(10, head(10).sha256)
        )
        for name, key in keys.items()
    }
    clock, events = FakeClock(), Silent()
    run = StudyRun(
        study=make_spec(keys=named, quorum=3),
        signed_study=b"signed",
        fleet=FakeFleet(sites=sites, clock=clock),
        clock=clock,
        store=FakeStore(),
        events=events,
        heads=heads,
    )
    return run, sites, events


def lost(events: Silent) -> list[dict[str, Any]]:
    return [fields for name, fields in events.heard if name == "site.lost"]


def test_a_run_remembers_the_head_of_every_site() -> None:
    heads = HeadsInMemory()
    run, _, events = world(heads)

    run.run()

    assert heads.newest() == {SiteId(name): head(10) for name in SITES}
    assert not lost(events)


def test_a_site_that_was_restored_from_a_backup_is_named_and_asked_no_more() -> None:
    heads = HeadsInMemory()
    observe(heads, head(10), head(12))
    run, sites, events = world(heads)
    sites[NORTH].head = (11, head(11, "restored").sha256)

    result = run.run()

    (event,) = lost(events)
    assert event["site"] == NORTH
    assert "older ledger was put back" in str(event["reason"])
    assert result.refusals == {NORTH: "ledger"}
    assert len(sites[NORTH].seen) == 1
    assert result.committed_rounds == run.study.rounds


def test_a_site_whose_ledger_went_back_is_asked_nothing_by_the_next_run() -> None:
    heads = HeadsInMemory()
    observe(heads, head(10))
    with pytest.raises(LedgerError):
        observe(heads, head(9))
    run, sites, events = world(heads)

    result = run.run()

    assert result.refusals == {NORTH: "ledger"}
    assert not sites[NORTH].seen
    told = [fields for name, fields in events.heard if name == "site.refused"]
    assert told == [{"site": NORTH, "code": "ledger"}]


def test_each_instruction_that_costs_something_brings_the_newest_row_that_is_known() -> None:
    heads = HeadsInMemory()
    observe(heads, head(9), head(10))
    run, sites, _ = world(heads)
    sites[NORTH].head = (11, head(11).sha256)

    run.run()

    first, *_, last = run.fleet.sent  # type: ignore[attr-defined]
    assert KnownRows.parse(first[NORTH].blobs[KNOWN_ROWS]).rows == {"north": head(10).sha256}
    assert KnownRows.parse(last[NORTH].blobs[KNOWN_ROWS]).rows["north"] == head(11).sha256
    assert {envelope.blobs[KNOWN_ROWS] for envelope in first.values()} == {
        first[NORTH].blobs[KNOWN_ROWS]
    }


def test_a_site_that_stops_showing_its_head_is_not_counted() -> None:
    heads = HeadsInMemory()
    observe(heads, head(10))
    run, sites, events = world(heads)
    sites[NORTH].head = None

    result = run.run()

    assert result.refusals == {NORTH: "ledger"}
    assert "found none" in str(lost(events)[0]["reason"])


def a_reply(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "train",
        "site": "north",
        "key": "1" * 64,
        "payload_sha256": "2" * 64,
        "public_key": "3" * 64,
    } | changes


def test_a_reply_without_a_head_has_the_bytes_of_before() -> None:
    reply = Reply.model_validate(a_reply())

    assert b"ledger" not in reply.canonical
    assert b"ledger" not in reply.signed_bytes
    assert Reply.parse(reply.canonical) == reply


def test_the_head_is_under_the_signature() -> None:
    one, other = (
        Reply.model_validate(a_reply(ledger_seq=seq, ledger_sha256="4" * 64)) for seq in (7, 8)
    )

    assert one.signed_bytes != other.signed_bytes
    assert b"signature" not in one.signed_bytes
    assert Reply.parse(one.canonical) == one


@pytest.mark.parametrize("half", [{"ledger_seq": 7}, {"ledger_sha256": "4" * 64}])
def test_half_a_head_is_none(half: dict[str, Any]) -> None:
    document = {**Reply.model_validate(a_reply()).model_dump(mode="json"), **half}

    with pytest.raises(ProtocolError, match="whole ledger head"):
        Reply.parse(canonical_json(document))
