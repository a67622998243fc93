"""A study from its first round to its evaluated model: decisions only, the world enters by ports.

Each round is an exchange with the cohort (`exchange`): replies enter the sum one by one, and it is
committed when the quorum is there. Below the quorum the round is abandoned loudly and its number is
burnt.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fedward_common.arrays import Array, tensors_from_bytes, tensors_to_bytes
from fedward_common.errors import ConfigError, ProtocolError, StudyFailed
from fedward_common.ids import SiteId
from fedward_common.models.averages import released_models
from fedward_common.models.registry import initial_tensors, model_shapes
from fedward_common.study.inputs import input_size
from fedward_common.study.spec import StudySpec
from fedward_common.study.statistics import (
    ColumnStatistics,
    is_statistics,
    statistics_releases,
)
from fedward_common.study.tabular import BinnedScores
from fedward_server.aggregation import plain_sum, server_optimiser
from fedward_server.evaluation import PooledCounts
from fedward_server.exchange import Ask, Exchanges
from fedward_server.fleet import Clock, Fleet, RunEvents, RunStore
from fedward_server.ledger_heads import HeadsInMemory, LedgerHeads
from fedward_server.secure_round import SecureRounds
from fedward_server.statistics import StatisticsSum, Totals, opened_totals

Counts = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyResult:
    """What a study gives: the final model, the noised counts per site, and how its rounds went.

    With secure sums there are no counts of a site, but `pooled` ones. A study of statistics has no
    model; `statistics` then holds the totals of each release, None
    for a release that did not reach the quorum.
    """

    model: dict[str, Array]
    counts: dict[SiteId, Counts]
    committed_rounds: int
    abandoned_rounds: int
    refusals: dict[SiteId, str]
    statistics: tuple[Totals | None, ...] = ()
    pooled: PooledCounts | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What the outcome of a run says besides model and counts, as a JSON value."""
        facts: dict[str, Any] = {
            "committed_rounds": self.committed_rounds,
            "abandoned_rounds": self.abandoned_rounds,
            "refusals": dict(self.refusals),
        }
        if self.pooled is not None:
            facts["pooled"] = self.pooled.as_json()
        if self.statistics:
            facts["statistics"] = [t and t.as_json() for t in self.statistics]
        return facts


@dataclass(kw_only=True)
class StudyRun:
    """One run of one signed study over a fleet. `signed_study`: the bytes every site verifies.

    `site_keys` are the sites' Ed25519 keys in hexadecimal; only secure sums need them.
    """

    study: StudySpec
    signed_study: bytes
    fleet: Fleet
    clock: Clock
    store: RunStore
    events: RunEvents
    heads: LedgerHeads = field(default_factory=HeadsInMemory)
    site_keys: Mapping[SiteId, str] = field(default_factory=dict)

    @cached_property
    def exchanges(self) -> Exchanges:
        """What this run asks of its sites, and who refused for good."""
        return Exchanges(
            study=self.study,
            signed_study=self.signed_study,
            fleet=self.fleet,
            clock=self.clock,
            events=self.events,
            heads=self.heads,
        )

    @cached_property
    def secure(self) -> SecureRounds:
        """The secret sums of this run."""
        statistics = is_statistics(self.study)
        return SecureRounds(
            study=self.study,
            exchanges=self.exchanges,
            keys=self.site_keys,
            shapes={} if statistics else model_shapes(self.study.model, inputs=self._inputs),
        )

    def run(self) -> StudyResult:
        """The evaluated model after the study's rounds, or the totals of its statistics.

        Raises:
            StudyFailed: so many sites refuse for good that the quorum is out of reach, or no round
                reached it.
        """
        study = self.study
        if is_statistics(study):
            return self._statistics()
        optimiser, tail = server_optimiser(study), released_models(study)
        model = initial_tensors(study.model, inputs=self._inputs)
        committed = 0
        for number in range(1, study.rounds + 1):
            mean = (
                self.secure.mean(number, model)
                if study.secure_sum
                else self._train_round(number, tensors_to_bytes(model))
            )
            if mean is None:
                continue
            committed += 1
            model = optimiser.step(model, mean)
            tail.add(model)
            self.store.checkpoint(round_number=number, model=tensors_to_bytes(model))
        if not committed:
            raise self._nothing_reached()
        final = tail.mean()
        weights = tensors_to_bytes(final)
        return StudyResult(
            model=final,
            counts={} if study.secure_sum else self._evaluate(weights),
            pooled=self._evaluate_pooled(weights) if study.secure_sum else None,
            committed_rounds=committed,
            abandoned_rounds=study.rounds - committed,
            refusals=dict(self.exchanges.refusals),
        )

    def _statistics(self) -> StudyResult:
        """The totals of every release; one exchange each.

        Raises:
            StudyFailed: no release reached the quorum, or so many sites refuse for good.
        """
        totals: list[Totals | None] = []
        for number, release in enumerate(statistics_releases(self.study), start=1):
            if self.study.secure_sum:
                totals.append(self._statistics_total(number, release))
                continue
            added = StatisticsSum(self.study, release)
            state = self.exchanges.run(
                Ask(kind="statistics", round=number, model=tensors_to_bytes({})), added.add
            )
            if not state.has_quorum:
                self.exchanges.abandon(state)
                totals.append(None)
                continue
            state.aggregate()
            totals.append(added.totals())
            self.exchanges.commit(state)
        committed = sum(total is not None for total in totals)
        if not committed:
            raise self._nothing_reached()
        return StudyResult(
            model={},
            counts={},
            committed_rounds=committed,
            abandoned_rounds=len(totals) - committed,
            refusals=dict(self.exchanges.refusals),
            statistics=tuple(totals),
        )

    def _nothing_reached(self) -> StudyFailed:
        """Why a study ends with nothing. Raises StudyFailed itself when too many sites refused."""
        self.exchanges.willing()
        return StudyFailed(
            f"study {self.study.id}: none of {self.study.rounds} rounds reached the quorum of "
            f"{self.study.quorum}; see the run's log for the sites that did not answer"
        )

    @property
    def _inputs(self) -> int:
        try:
            return input_size(self.study.data)
        except ConfigError as error:
            raise StudyFailed(f"study {self.study.id}: {error}") from error

    def _train_round(self, number: int, model: bytes) -> dict[str, Array] | None:
        """The mean of the sites' models, or None for an abandoned round."""
        shapes, total = model_shapes(self.study.model, inputs=self._inputs), plain_sum(self.study)

        def take(site: SiteId, payload: bytes) -> None:
            total.add(site, tensors_from_bytes(payload, shapes=shapes))

        state = self.exchanges.run(Ask(kind="train", round=number, model=model), take)
        if not state.has_quorum:
            self.exchanges.abandon(state)
            return None
        state.aggregate()
        mean = total.mean()
        self.exchanges.commit(state)
        return mean

    def _statistics_total(self, number: int, release: ColumnStatistics) -> Totals | None:
        """The opened sum of a release; None where it was abandoned."""
        opened = self.secure.total("statistics", number, tensors_to_bytes({}))
        if opened is None:
            return None
        return opened_totals(self.study, release, opened.values, answered=len(opened.survivors))

    def _evaluate_pooled(self, model: bytes) -> PooledCounts | None:
        """The noised counts over all sites; None without an evaluation or where it failed."""
        release = next((r for r in self.study.releases if isinstance(r, BinnedScores)), None)
        opened = (
            None if release is None else self.secure.total("evaluate", self.study.rounds, model)
        )
        if release is None or opened is None:
            return None
        return PooledCounts(
            counts=opened.values.reshape(2, release.bins),
            sites=opened.survivors,
            noise=opened.noise_std,
        )

    def _evaluate(self, model: bytes) -> dict[SiteId, Counts]:
        """The noised counts per site; empty without an evaluation or below its quorum."""
        release = next((r for r in self.study.releases if isinstance(r, BinnedScores)), None)
        if release is None:
            return {}
        counts: dict[SiteId, Counts] = {}

        def take(site: SiteId, payload: bytes) -> None:
            counts[site] = parse_counts(payload, bins=release.bins)

        state = self.exchanges.run(Ask(kind="evaluate", round=self.study.rounds, model=model), take)
        if not state.has_quorum:
            self.exchanges.abandon(state)
            return {}
        return counts


def parse_counts(payload: bytes, *, bins: int) -> Counts:
    """The counts [2, bins] in an evaluation payload. Raises ProtocolError for anything else."""
    try:
        value: Any = json.loads(payload)
        counts = np.asarray(value["counts"], dtype=np.float64)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ProtocolError(
            "evaluation: expected {'counts': [[...], [...]]}, found something else"
        ) from error
    if counts.shape != (2, bins) or not np.isfinite(counts).all():
        raise ProtocolError(
            f"evaluation: expected finite counts of shape (2, {bins}), found {counts.shape}"
        )
    return counts
