"""Studies with secret sums, over real guards and workers: the model is the central mechanism's."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pytest

from fedward_common.arrays import tensors_from_bytes
from fedward_common.errors import StudyFailed
from fedward_common.ids import SiteId
from fedward_common.privacy.collusion import collusion_facts
from fedward_common.privacy.mechanism import encode_event
from fedward_common.privacy.randomness import RandomSource
from fedward_common.wire import Instruction
from tests.support.federation import FakeStore
from tests.support.secure_federation import Federation, federation

Vector = npt.NDArray[np.float64]


class Seeded:
    """A `RandomSource` that a test can repeat."""

    def __init__(self, *seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def uniform(self, count: int) -> Vector:
        return self._generator.random(count)

    def normal(self, count: int) -> Vector:
        return self._generator.standard_normal(count)


def seeded(kind: int) -> Callable[[int], Callable[[], RandomSource]]:
    """For each site a factory whose n-th source is seeded by (kind, site, n)."""

    def of_site(number: int) -> Callable[[], RandomSource]:
        calls = iter(range(10**6))
        return lambda: Seeded(kind, number, next(calls))

    return of_site


@pytest.fixture
def opened() -> Iterator[list[Federation]]:
    found: list[Federation] = []
    yield found
    for one in found:
        one.close()


Whom = Callable[[int], set[str]]


def pooled_dp_sgd(
    one: Federation,
    *,
    without: Whom = lambda _: set(),
    unasked: Whom = lambda _: set(),
    parts: Sequence[float] = (),
) -> Any:
    """Plain numpy DP-SGD over all hospitals' patients, with the sites' own draws and noise.

    `without` are the sites that are not in a round's sum, `unasked` those that drew nothing for it;
    `parts`: of the learning rate, round by round.
    """
    study, dp, weights = one.study, one.study.dp, np.zeros(3)
    draws = {s: seeded(1)(n) for n, s in enumerate(one.hospitals)}
    noise = {s: seeded(2)(n) for n, s in enumerate(one.hospitals)}
    share = dp.noise_multiplier * dp.clip_norm / np.sqrt(study.thresholds.noisy_sites)
    for number in range(1, study.rounds + 1):
        total, patients = np.zeros(3), 0
        for site, hospital in one.hospitals.items():
            if site in unasked(number):
                continue
            sampling, _ = draws[site](), draws[site]()
            drawn = sampling.uniform(60) < dp.sampling_probability
            features = np.c_[hospital.patients.features, np.ones(60)][drawn]
            error = 1 / (1 + np.exp(-features @ weights)) - hospital.patients.labels[drawn]
            gradients = error[:, None] * features
            norms = np.linalg.norm(gradients, axis=1, keepdims=True)
            clipped = gradients * np.minimum(1, dp.clip_norm / np.maximum(norms, 1e-300))
            # The wire's order is by name: linear.bias before linear.weight.
            drawn_noise = noise[site]().normal(3)[[1, 2, 0]]
            if site in without(number):
                continue
            total += clipped.sum(axis=0) + share * drawn_noise
            patients += study.site(site).patients
        gradient = total / (dp.sampling_probability * patients)
        part = parts[number - 1] if parts else 1.0
        weights = weights - part * study.training.learning_rate * gradient
    return weights


def noise_in(text: str) -> float:
    """The noise multiplier in the text of an event."""
    found = re.search(r'"noise_multiplier":([0-9.]+)', text)
    assert found is not None
    return float(found.group(1))


def learned(model: Any) -> Vector:
    return np.append(model["linear.weight"][0], model["linear.bias"]).astype(np.float64)


def deterministic(folder: Path, opened: list[Federation], **study: Any) -> Federation:
    one = federation(folder, draws=seeded(1), noise=seeded(2), **study)
    opened.append(one)
    return one


def test_masks_on_equals_plain_numpy_pooled_dp_sgd_with_the_same_draws(
    tmp_path: Path, opened: list[Federation]
) -> None:
    """To fixed-point accuracy: 60 patients, 3 sites and float32 weights are within 1e-5."""
    one = deterministic(tmp_path, opened)

    result = one.run().run()

    assert result.committed_rounds == 3
    np.testing.assert_allclose(learned(result.model), pooled_dp_sgd(one), atol=1e-5)


def test_a_schedule_s_rates_are_those_of_plain_numpy_round_by_round(
    tmp_path: Path, opened: list[Federation]
) -> None:
    """Half a cosine over three rounds, by hand: the whole rate, half of it, none."""
    training = {"learning_rate": 0.5, "schedule": {"kind": "cosine"}}
    one = deterministic(tmp_path, opened, change={"training": training})

    result = one.run().run()

    expected = pooled_dp_sgd(one, parts=(1.0, 0.5, 0.0))
    np.testing.assert_allclose(learned(result.model), expected, atol=1e-5)


def test_local_noise_in_a_secret_sum_follows_the_schedule_too(
    tmp_path: Path, opened: list[Federation]
) -> None:
    """Of two rounds of one step the second has the rate 0 and moves nothing."""
    training = {"learning_rate": 0.5, "schedule": {"kind": "cosine"}}
    change = {"training": training}
    two = federation(tmp_path / "two", placement="local", rounds=2, change=change)
    opened.append(two)
    store = FakeStore()
    run = two.run()
    run.store = store

    result = run.run()

    first, second = (tensors_from_bytes(store.checkpoints[number]) for number in (1, 2))
    assert result.committed_rounds == 2
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    assert any(np.abs(value).max() > 0 for value in first.values())


def test_validations_are_sums_of_their_own_and_each_guard_charges_every_one(
    tmp_path: Path, opened: list[Federation]
) -> None:
    """Six rounds; no second validation gains 0.9, so that it ends after the second that says
    something, and what was reserved is the whole plan.
    """
    release = {
        "kind": "binned-scores",
        "bins": 5,
        "noise_multiplier": 2.0,
        "early_stopping": {"every": 1, "validations": 4, "patience": 1, "least_gain": 0.9},
    }
    one = federation(
        tmp_path,
        sites=4,
        rounds=6,
        epsilon=9.0,
        policy={"max_evaluations": 5},
        change={"releases": [release]},
    )
    opened.append(one)

    result = one.run().run()

    assert result.stopped_after == result.committed_rounds == 2
    assert [number for number, auc in result.validations if auc is not None] == [1, 2]
    assert result.pooled is not None
    for hospital in one.hospitals.values():
        (account,) = hospital.service.ledger.accounts()
        assert (account.charged("round"), account.charged("release")) == (2, 3)
        assert (account.reservation.rounds, account.reservation.releases) == (6, 5)
    numbers = [asked.round for site, asked, _ in one.seen if asked.kind == "unmask"]
    assert sorted(set(numbers)) == [1, 2, 3, 4, 11]


def lost_in(kind: str, number: int, who: str) -> Callable[[SiteId, Instruction], bool]:
    return lambda site, asked: site == who and asked.kind == kind and asked.round == number


UNASKED = (("advertise", 1), ("share", 1))
"""A site that is lost in the set-up is not asked to train."""


@pytest.mark.parametrize(
    ("kind", "number", "counts"),
    [
        ("advertise", 1, False),
        ("share", 1, False),
        ("train", 2, False),
        ("sign", 2, True),
        ("unmask", 2, True),
    ],
)
def test_a_site_lost_in_an_exchange_is_in_the_model_or_not_as_the_survivor_list_says(
    tmp_path: Path, opened: list[Federation], kind: str, number: int, counts: bool
) -> None:
    """Lost before its vector came: the model is that of the others. Lost later: it is in the sum.

    Either way the round completes, and the site is back in the next one by a full set-up.
    """
    one = deterministic(tmp_path, opened, sites=4)
    one.lost = lost_in(kind, number, "s4")

    result = one.run().run()

    gone = set() if counts else {"s4"}
    expected = pooled_dp_sgd(
        one,
        without=lambda found: gone if found == number else set(),
        unasked=lambda found: gone if (kind, found) in UNASKED else set(),
    )
    sites = [len(c["sites"]) for c in one.actions("round.committed")][:3]
    assert result.committed_rounds == 3
    np.testing.assert_allclose(learned(result.model), expected, atol=1e-5)
    assert sites == [4 - len(gone) if found == number else 4 for found in (1, 2, 3)]


def test_a_round_that_cannot_be_unmasked_is_abandoned_by_name_and_the_next_one_works(
    tmp_path: Path, opened: list[Federation]
) -> None:
    """Three sites bear no loss: the second round is burnt, its charge stays, the third counts."""
    one = deterministic(tmp_path, opened)
    one.lost = lost_in("unmask", 2, "s3")

    result = one.run().run()

    (burnt,) = one.actions("round.abandoned")
    assert burnt["round"] == 2
    assert "expected shares of T survivors" in burnt["reason"]
    assert (result.committed_rounds, result.abandoned_rounds) == (2, 1)
    for hospital in one.hospitals.values():
        (account,) = hospital.service.ledger.accounts()
        assert (account.charged("round"), account.charged("release")) == (3, 1)


def test_a_guard_that_restarts_within_a_round_counts_as_dropped_and_comes_back(
    tmp_path: Path, opened: list[Federation]
) -> None:
    """Secrets are in memory only; after the restart it signs and opens nothing of that round."""
    one = deterministic(tmp_path, opened, sites=4)

    def restart(site: SiteId, instruction: Instruction) -> bool:
        if (site, instruction.kind, instruction.round) == ("s4", "train", 2):
            one.hospitals[site].restart()
        return False

    one.lost = restart

    result = one.run().run()

    assert result.committed_rounds == 3
    np.testing.assert_allclose(learned(result.model), pooled_dp_sgd(one), atol=1e-5)
    asked = [(site, a.kind, a.round) for site, a, _ in one.seen]
    assert ("s4", "advertise", 3) in asked


@pytest.mark.parametrize("kind", ["share", "train", "sign", "unmask", "evaluate"])
def test_a_coordinator_killed_within_a_secret_sum_burns_it_and_no_site_answers_twice(
    tmp_path: Path, opened: list[Federation], kind: str
) -> None:
    """Rules 5: its secrets are gone with the process; charges are those of the rounds begun."""
    one = deterministic(tmp_path, opened, sites=4)
    first, second = one.run(), one.run()
    first.store = second.store = FakeStore(events=one.events)
    number = {"share": 1, "evaluate": 3}.get(kind, 2)

    def cut(_site: SiteId, asked: Instruction) -> bool:
        if (asked.kind, asked.round) == (kind, number):
            raise KeyboardInterrupt
        return False

    one.lost = cut
    with pytest.raises(KeyboardInterrupt):
        first.run()
    one.lost = lambda _site, _asked: False

    result = second.run()

    burnt = [] if kind == "share" else [number]
    assert [event["round"] for event in one.actions("round.abandoned")] == burnt
    trained = 3 if kind in ("share", "evaluate") else 2
    assert (result.committed_rounds, result.abandoned_rounds) == (trained, 3 - trained)
    for hospital in one.hospitals.values():
        (account,) = hospital.service.ledger.accounts()
        slots = [charge.slot for charge in account.charges]
        assert len(slots) == len(set(slots))
    began = one.actions("round.opened")
    assert len(began) == 4


def test_both_events_of_distributed_noise_are_charged(
    tmp_path: Path, opened: list[Federation]
) -> None:
    """`declared` with sigma, `alone` with the site's share of it, for training and evaluation."""
    one = deterministic(tmp_path, opened, sites=4)

    one.run().run()

    (account,) = one.hospitals[SiteId("s1")].service.ledger.accounts()
    share = 1 / np.sqrt(2)  # n = 4, d = 1, c = 1
    rounds = [c for c in account.charges if c.purpose == "round"]
    assert len(rounds) == 3
    for charge in account.charges:
        sigma = 3.0 if charge.purpose == "round" else 20.0
        assert noise_in(encode_event(charge.event)) == sigma
        assert charge.alone is not None
        assert noise_in(encode_event(charge.alone)) == pytest.approx(sigma * share)


def test_a_site_that_does_not_allow_what_its_own_share_costs_refuses_the_study(
    tmp_path: Path, opened: list[Federation]
) -> None:
    """Without a limit of its own the case of collusion has the limit of all studies."""
    spec = federation(tmp_path / "free", sites=4)
    opened.append(spec)
    facts = collusion_facts(spec.study)
    assert facts is not None
    between = (facts["epsilon_declared"] + facts["epsilon_if_all_others_collude"]) / 2
    limits = {"max_epsilon_total": between, "max_epsilon_per_study": between}
    one = federation(
        tmp_path / "tight",
        sites=4,
        epsilon=facts["epsilon_declared"] * 1.01,
        policy=limits | {"max_epsilon_if_all_others_collude": between},
    )
    opened.append(one)

    with pytest.raises(StudyFailed, match="budget"):
        one.run().run()


@pytest.mark.parametrize("optimiser", ["fedavg", "fedprox", "fedadam"])
def test_local_noise_hides_each_sites_update_in_the_same_model(
    tmp_path: Path, opened: list[Federation], optimiser: str
) -> None:
    """The opened mean of updates is the plain one to a millionth, whatever the server does."""
    aggregation = {
        "fedavg": {"name": "fedavg"},
        "fedprox": {"name": "fedprox", "mu": 0.1},
        "fedadam": {"name": "fedadam", "learning_rate": 0.1},
    }[optimiser]
    change = {"aggregation": aggregation}
    secure = deterministic(tmp_path / "a", opened, placement="local", local_steps=2, change=change)
    plain = deterministic(
        tmp_path / "b",
        opened,
        placement="local",
        local_steps=2,
        change=change | {"secure_sum": False},
    )

    hidden, shown = secure.run().run(), plain.run().run()

    np.testing.assert_allclose(learned(hidden.model), learned(shown.model), atol=2e-5)


def test_evaluation_is_opened_over_all_sites_only(tmp_path: Path, opened: list[Federation]) -> None:
    """The pooled counts carry at least the declared noise; no site's own counts exist."""
    one = deterministic(tmp_path, opened, sites=4)

    result = one.run().run()

    assert result.counts == {}
    assert result.pooled is not None
    assert result.pooled.noise == pytest.approx(20 * np.sqrt(4 / 2))
    assert result.pooled.sites == ("s1", "s2", "s3", "s4")
    assert abs(result.pooled.counts.sum() - 4 * 60) < 6 * result.pooled.noise * np.sqrt(10)


def long_study(one: Federation, *, one_in: int) -> None:
    """Every round completes or is abandoned by name, whoever is lost; no site charges twice."""
    one.lost = lambda site, asked: (
        crc32(f"{site} {asked.kind} {asked.round}".encode()) % one_in == 0
    )

    result = one.run().run()

    burnt = one.actions("round.abandoned")
    assert result.committed_rounds + result.abandoned_rounds == one.study.rounds
    assert all(fields["reason"] for fields in burnt)
    assert result.committed_rounds > 0.9 * one.study.rounds
    for hospital in one.hospitals.values():
        (account,) = hospital.service.ledger.accounts()
        assert account.charged("round") <= one.study.rounds


def test_seven_sites_bear_losses_in_any_exchange(tmp_path: Path, opened: list[Federation]) -> None:
    one = federation(tmp_path, sites=7, rounds=2, change={"releases": []})
    opened.append(one)

    long_study(one, one_in=29)


@pytest.mark.slow
def test_sixteen_sites_and_five_hundred_steps_end_without_an_error(
    tmp_path: Path, opened: list[Federation]
) -> None:
    one = federation(tmp_path, sites=16, rounds=500, noise_multiplier=12.0)
    opened.append(one)

    long_study(one, one_in=97)


def test_statistics_are_opened_over_all_sites_only(
    tmp_path: Path, opened: list[Federation]
) -> None:
    """Counts and means of 3 x 60 patients, within six deviations; each release charged once."""
    columns = [
        {"name": name, "type": "number", "unit": "u", "low": 0.0, "high": 120.0}
        for name in ("age", "pressure")
    ]
    one = federation(
        tmp_path,
        policy={"allowed_tasks": ["federated-statistics"], "allow_statistics": True},
        rounds=1,
        change={
            "task": {"kind": "federated-statistics"},
            "model": {"name": "none"},
            "data": {"kind": "table", "patient_key": "patient", "columns": columns},
            "dp": {
                "kind": "releases-only",
                "placement": "distributed",
                "epsilon": 5.0,
                "delta": 1e-4,
            },
            "releases": [
                {
                    "kind": "column-statistics",
                    "columns": ["age"],
                    "statistics": ["count", "mean"],
                    "noise_multiplier": 3.0,
                }
            ],
        },
    )
    opened.append(one)

    result = one.run().run()

    (totals,) = result.statistics
    assert totals is not None
    deviation = 3.0 * np.sqrt(2) * np.sqrt(3 / 2)
    assert abs(totals.values[0] - 180) < 6 * deviation
    assert totals.shown == (3, 3)
    for hospital in one.hospitals.values():
        (account,) = hospital.service.ledger.accounts()
        assert account.charged("release") == 1
        assert account.reservation.alone is not None
