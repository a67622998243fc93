"""A study run over fake sites: rounds, quorum, refusals, and replies that must not be believed."""

from dataclasses import replace

import numpy as np
import pytest

from fedward_common.arrays import tensors_from_bytes, tensors_to_bytes
from fedward_common.canonical import canonical_json
from fedward_common.errors import ProtocolError, StudyFailed
from fedward_common.ids import SiteId
from fedward_common.study.files import SiteKeys
from fedward_common.study.spec import StudySpec
from fedward_common.trust.signing import SigningKey, key_sha256
from fedward_common.wire import Envelope
from fedward_server.fleet import Silent
from fedward_server.study_run import StudyResult, StudyRun, parse_counts
from tests.support.federation import FakeClock, FakeFleet, FakeSite, FakeStore
from tests.support.studies import SITES, key_digest, make_spec


class World:
    """Four fake sites, a study that names their keys, and everything a run needs."""

    def __init__(self, **changes: object) -> None:
        keys = {SiteId(name): SigningKey.generate() for name in SITES}
        named = {
            name: SiteKeys(
                key_sha256=key_sha256(key.public_hex), node_key_sha256=key_digest(number + 500)
            )
            for number, (name, key) in enumerate(keys.items())
        }
        self.study: StudySpec = make_spec(keys=named, **{"quorum": 3, **changes})
        self.sites = {
            name: FakeSite(name=name, key=key, counts=[[1.0] * 4, [2.0] * 4])
            for name, key in keys.items()
        }
        self.clock, self.store, self.events = FakeClock(), FakeStore(), Silent()
        self.fleet = FakeFleet(sites=self.sites, clock=self.clock)

    def run(self) -> StudyResult:
        return StudyRun(
            study=self.study,
            signed_study=b"signed",
            fleet=self.fleet,
            clock=self.clock,
            store=self.store,
            events=self.events,
        ).run()

    def heard(self, action: str) -> list[dict[str, object]]:
        return [fields for name, fields in self.events.heard if name == action]


def plus_one(model: bytes) -> bytes:
    return tensors_to_bytes({n: t + np.float32(1) for n, t in tensors_from_bytes(model).items()})


def test_every_round_is_committed_and_checkpointed() -> None:
    world = World()
    for site in world.sites.values():
        site.train = plus_one

    result = world.run()

    assert result.committed_rounds == world.study.rounds
    assert sorted(world.store.checkpoints) == list(range(1, world.study.rounds + 1))
    for tensor in result.model.values():
        np.testing.assert_allclose(tensor, world.study.rounds)


def test_the_mean_of_the_sites_is_weighted_by_the_public_constants() -> None:
    world = World(rounds=1)
    values = {name: float(number) for number, name in enumerate(world.sites)}
    for name, site in world.sites.items():
        value = values[name]
        site.train = lambda model, value=value: tensors_to_bytes(
            {n: np.full_like(t, value) for n, t in tensors_from_bytes(model).items()}
        )

    result = world.run()

    expected = sum(world.study.weight(name) * value for name, value in values.items())
    for tensor in result.model.values():
        np.testing.assert_allclose(tensor, expected, rtol=1e-6)


def test_the_model_is_evaluated_once_and_the_counts_are_kept_per_site() -> None:
    world = World()

    result = world.run()

    assert set(result.counts) == set(world.sites)
    for site in world.sites.values():
        assert [i.kind for i in site.seen].count("evaluate") == 1


def test_a_silent_site_costs_the_deadline_and_not_the_round() -> None:
    world = World(rounds=2)
    silent = next(iter(world.sites.values()))
    silent.silent_rounds = {1}
    started = world.clock.now()

    result = world.run()

    assert result.committed_rounds == 2
    assert world.clock.now() - started >= world.study.deadline_seconds
    assert {"kind": "train", "round": 1, "site": silent.name, "reason": "deadline"} in world.heard(
        "site.lost"
    )


def test_a_round_below_the_quorum_is_abandoned_loudly_and_its_number_is_burnt() -> None:
    world = World(rounds=3)
    for site in list(world.sites.values())[:2]:
        site.silent_rounds = {2}
        site.train = plus_one

    result = world.run()

    assert (result.committed_rounds, result.abandoned_rounds) == (2, 1)
    assert sorted(world.store.checkpoints) == [1, 3]
    abandoned = world.heard("round.abandoned")
    assert [(e["round"], e["good"], e["quorum"]) for e in abandoned] == [(2, 2, 3)]
    assert [i.round for i in site.seen if i.kind == "train"] == [1, 2, 3]


def test_when_no_round_reaches_the_quorum_the_study_fails() -> None:
    world = World(rounds=2)
    for site in world.sites.values():
        site.silent_rounds = {1, 2}

    with pytest.raises(StudyFailed, match="none of 2 rounds reached the quorum"):
        world.run()


def test_when_all_sites_refuse_the_study_fails_at_once_and_names_the_reasons() -> None:
    world = World(rounds=3)
    for site in world.sites.values():
        site.refusal = "policy"

    with pytest.raises(StudyFailed, match=r"east: policy.*north: policy"):
        world.run()

    assert all(len(site.seen) == 1 for site in world.sites.values())


def test_a_site_that_refuses_for_good_is_not_asked_again() -> None:
    world = World()
    refusing = world.sites[SiteId(SITES[0])]
    refusing.refusal = "budget"

    result = world.run()

    assert result.refusals == {refusing.name: "budget"}
    assert len(refusing.seen) == 1


def test_a_study_without_a_quorum_pauses_says_so_and_goes_on_when_the_sites_are_back() -> None:
    world = World(rounds=1)
    away = set(list(world.sites)[:2])
    world.fleet.offline = set(away)
    world.fleet.until = {site: world.clock.now() + 3 * 86400 for site in away}

    result = world.run()

    assert (result.committed_rounds, result.abandoned_rounds) == (1, 0)
    (paused,) = world.heard("study.paused")
    assert paused["quorum"] == 3
    assert len(world.heard("study.continued")) == 1
    assert all(len(site.seen) == 2 for site in world.sites.values())


def test_a_study_that_waits_for_weeks_ends_and_asked_nobody() -> None:
    world = World(rounds=1)
    world.fleet.offline = set(list(world.sites)[:2])

    with pytest.raises(StudyFailed, match="for 14 days"):
        world.run()

    assert all(site.seen == [] for site in world.sites.values())


def test_rounds_that_fail_in_a_row_are_opened_ever_more_rarely() -> None:
    world = World(rounds=6)
    for site in list(world.sites.values())[:2]:
        site.silent_rounds = {1, 2, 3, 4}

    result = world.run()

    pauses = [event["seconds"] for event in world.heard("study.paused")]
    deadline = world.study.deadline_seconds
    assert pauses == [min(3600, deadline * 2**n) for n in range(3)]
    assert (result.committed_rounds, result.abandoned_rounds) == (2, 4)


def test_rounds_that_refusals_end_are_not_waited_for() -> None:
    """What two sites answered before they answer no more, however long one waits."""
    world = World(rounds=6)
    for site in list(world.sites.values())[:2]:
        site.refusal = "protocol"

    with pytest.raises(StudyFailed, match="none of 6 rounds"):
        world.run()

    assert world.heard("study.paused") == []
    assert any(event["lost"] for event in world.heard("round.abandoned"))


def test_a_site_that_is_slow_three_times_in_a_row_is_reported() -> None:
    world = World(rounds=4)
    slow = next(iter(world.sites.values()))
    slow.silent_rounds = {1, 2, 3}

    world.run()

    assert world.heard("site.slow") == [{"round": 3, "site": slow.name, "count": 3}]


def test_an_instruction_that_the_way_lost_is_sent_again_and_charged_once() -> None:
    world = World(rounds=1)
    for site in world.sites.values():
        site.remembers = True
    unlucky = SiteId(SITES[0])
    world.fleet.lose = {unlucky: 2}

    result = world.run()

    assert result.committed_rounds == 1
    assert world.heard("round.committed")[0]["sites"].count(unlucky) == 1  # type: ignore[attr-defined]
    assert len(world.heard("site.asked-again")) == 2
    assert [slot.split("/")[1] for slot in world.sites[unlucky].charged] == ["train", "evaluate"]


def test_an_instruction_that_is_lost_again_and_again_costs_that_site_the_round_only() -> None:
    world = World(rounds=1)
    world.fleet.lose = {SiteId(SITES[0]): 99}

    result = world.run()

    assert result.committed_rounds == 1
    assert "flower error 5" in lost_reasons(world)


def test_a_late_reply_is_told_and_not_counted() -> None:
    world = World(rounds=1)
    late = SiteId(SITES[0])
    world.fleet.come_late = [late]

    world.run()

    assert world.heard("site.late") == [{"round": 1, "site": late}]


def first_reply_tampered(world: World, change: object) -> None:
    site = world.sites[SiteId(SITES[0])]
    site.tamper = change  # type: ignore[assignment]


def lost_reasons(world: World) -> list[str]:
    return [str(event["reason"]) for event in world.heard("site.lost")]


def test_a_payload_that_is_not_the_signed_one_is_not_believed() -> None:
    world = World(rounds=1)
    first_reply_tampered(world, lambda e: replace(e, blobs={"payload": e.blobs["payload"] + b"x"}))

    world.run()

    assert any("expected the signed payload" in reason for reason in lost_reasons(world))


def test_a_reply_signed_by_another_key_is_not_believed() -> None:
    world = World(rounds=1)
    world.sites[SiteId(SITES[0])].key = SigningKey.generate()

    world.run()

    assert any("expected the key named in the study" in reason for reason in lost_reasons(world))


def test_a_reply_of_one_site_under_the_name_of_another_is_not_believed() -> None:
    world = World(rounds=1)
    first, second = (world.sites[SiteId(name)] for name in SITES[:2])
    first.name = second.name

    world.run()

    assert any("found another's" in reason for reason in lost_reasons(world))


def test_an_old_reply_is_not_believed_in_a_later_round() -> None:
    world = World(rounds=2)
    kept: list[Envelope] = []

    def replay(envelope: Envelope) -> Envelope:
        kept.append(envelope)
        return kept[0]

    first_reply_tampered(world, replay)

    world.run()

    assert any("found another's" in reason for reason in lost_reasons(world))


@pytest.mark.parametrize("payload", [b"", b"not tensors", b"\x08" + b"\0" * 7 + b"{}      "])
def test_a_payload_that_is_not_the_models_tensors_is_not_added(payload: bytes) -> None:
    world = World(rounds=1)
    world.sites[SiteId(SITES[0])].train = lambda _: payload

    result = world.run()

    assert result.committed_rounds == 1
    assert lost_reasons(world)


def test_a_model_with_nan_is_not_added() -> None:
    world = World(rounds=1)
    world.sites[SiteId(SITES[0])].train = lambda model: tensors_to_bytes(
        {n: np.full_like(t, np.nan) for n, t in tensors_from_bytes(model).items()}
    )

    result = world.run()

    assert all(np.isfinite(tensor).all() for tensor in result.model.values())
    assert any("finite" in reason for reason in lost_reasons(world))


def test_an_envelope_that_is_no_reply_is_lost() -> None:
    world = World(rounds=1)
    first_reply_tampered(world, lambda e: replace(e, header=b"{}"))

    world.run()

    assert any("expected a Reply" in reason for reason in lost_reasons(world))


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"counts": [[1, 2], [3]]},
        {"counts": [[1, 2, 3], [1, 2, 3]]},
        {"counts": [[1e400, 2], [1, 2]]},
        {"counts": "many"},
        [],
    ],
)
def test_counts_of_another_form_are_refused(value: object) -> None:
    payload = str(value).replace("'", '"').replace("inf", "1e999").encode()

    with pytest.raises(ProtocolError):
        parse_counts(payload, bins=2)


def test_counts_come_back_as_they_were_sent() -> None:
    counts = parse_counts(canonical_json({"counts": [[1.5, -2.0], [0.0, 4.0]]}), bins=2)

    np.testing.assert_array_equal(counts, [[1.5, -2.0], [0.0, 4.0]])


def test_a_site_with_numbers_at_the_end_of_float32_is_lost_by_name() -> None:
    world = World()
    hostile, *_ = world.sites
    world.sites[hostile].train = lambda model: tensors_to_bytes(
        {n: np.full_like(t, 3.4e38) for n, t in tensors_from_bytes(model).items()}
    )

    result = world.run()

    lost = [fields for fields in world.heard("site.lost") if fields.get("kind") == "train"]
    assert {fields["site"] for fields in lost} == {hostile}
    assert result.committed_rounds == world.study.rounds


def test_a_round_whose_model_is_not_finite_is_not_committed_and_leaves_no_trace() -> None:
    """A server step of 1e38: what is bounded before may not be after it."""
    world = World(
        aggregation={"name": "fedadam", "learning_rate": 1e38, "tau": 1e-30, "beta1": 0.0}
    )
    for site in world.sites.values():
        site.train = lambda model: tensors_to_bytes(
            {n: t + np.float32(1e25) for n, t in tensors_from_bytes(model).items()}
        )

    with pytest.raises(StudyFailed):
        world.run()

    assert {fields["reason"] for fields in world.heard("round.abandoned")} == {
        "expected a finite model, found another"
    }
    assert world.store.checkpoints == {}
