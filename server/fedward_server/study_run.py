"""A study from its first round to its evaluated model: decisions only, the world enters by ports.

Each round is an exchange with the cohort (`exchange`): replies enter the sum one by one, and it is
committed when the quorum is there. Below the quorum the round is abandoned loudly and its number is
burnt.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fedward_common.arrays import Array, Tensors, tensors_to_bytes
from fedward_common.errors import ConfigError, ProtocolError, StudyFailed
from fedward_common.ids import SiteId
from fedward_common.models.averages import ReleasedModels, released_models
from fedward_common.models.registry import model_shapes
from fedward_common.models.start import start_tensors
from fedward_common.study.evaluation import evaluation_of, validation_rounds
from fedward_common.study.inputs import input_size
from fedward_common.study.spec import StudySpec
from fedward_common.study.statistics import (
    StatisticsRelease,
    is_statistics,
    statistics_releases,
)
from fedward_common.wire import Octets
from fedward_server.evaluation import PooledCounts, PrivateFigures, evaluate
from fedward_server.exchange import Ask, Exchanges
from fedward_server.fleet import Clock, Fleet, InMemory, RunEvents, RunStore, Tray
from fedward_server.ledger_heads import HeadsInMemory, LedgerHeads
from fedward_server.progress import Opened, Progress, Resumed
from fedward_server.round_state import RoundState
from fedward_server.rounds import OpenRounds, Rounds, SecretRounds, again
from fedward_server.secure_round import SecureRounds
from fedward_server.statistics import StatisticsSum, Totals, opened_totals

Counts = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyResult:
    """What a study gives: the final model, the noised counts per site, and how its rounds went.

    `validations`: round and AUC of each, where the study may stop early; `stopped_after` its last
    round then, None where it came to its end.
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
    validations: tuple[tuple[int, float | None], ...] = ()
    stopped_after: int | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What the outcome of a run says besides model and counts, as a JSON value."""
        facts: dict[str, Any] = {
            "committed_rounds": self.committed_rounds,
            "abandoned_rounds": self.abandoned_rounds,
            "refusals": dict(self.refusals),
        }
        if self.validations:
            facts["validations"] = [list(one) for one in self.validations]
            facts["stopped_after"] = self.stopped_after
        if self.pooled is not None:
            facts["pooled"] = self.pooled.as_json()
        if self.statistics:
            facts["statistics"] = [t and t.as_json() for t in self.statistics]
        return facts


@dataclass(kw_only=True)
class StudyRun:
    """One run of one signed study over a fleet. `signed_study`: the bytes every site verifies.

    `site_keys` are the sites' Ed25519 keys in hexadecimal; only secure sums need them.
    `start_weights` is the file that the study names, where it does.
    """

    study: StudySpec
    signed_study: bytes
    fleet: Fleet
    clock: Clock
    store: RunStore
    events: RunEvents
    heads: LedgerHeads = field(default_factory=HeadsInMemory)
    site_keys: Mapping[SiteId, str] = field(default_factory=dict)
    tray: Tray = field(default_factory=InMemory)
    start_weights: bytes | None = None

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

        Goes on where an earlier run of the study ended. A round that was under way is asked again
        with the same key; one with secure sums is burnt, for its secrets are gone with the process.

        Raises:
            StudyFailed: so many sites refuse for good that the quorum is out of reach, or no round
                reached it.
            LedgerError: what an earlier run left is damaged.
        """
        start = self.store.resume(self.study.digest)
        self.exchanges.refusals.update(start.progress.refusals)
        start = self._tell(start)
        return self._statistics(start) if is_statistics(self.study) else self._training(start)

    def _tell(self, start: Resumed) -> Resumed:
        """Says that the run goes on, what its log lacks, and which secret sum is lost."""
        if start.untold:
            self.events.emit(
                "round.committed",
                round=start.progress.next_round - 1,
                sites=list(start.progress.sites),
            )
        if not start.fresh:
            self.events.emit("run.resumed", round=start.progress.next_round)
        if start.opened is None or not self.study.secure_sum:
            return start
        self.events.emit(
            "round.abandoned",
            round=start.opened.round,
            good=0,
            quorum=self.study.quorum,
            refused="none",
            lost="none",
            reason="the coordinator ended in mid-round",
        )
        return start.burnt()

    def _training(self, start: Resumed) -> StudyResult:
        study, progress = self.study, start.progress
        tail = released_models(study)
        rounds = self._rounds(start)
        model: Tensors = (
            progress.model
            if progress.committed
            else start_tensors(study.model, self._inputs, file=self.start_weights)
        )
        model = self.tray.keep(model).tensors
        if progress.committed:
            tail.restore(progress.average, model)
        asked = study.rounds
        for number in range(progress.next_round, study.rounds + 1):
            progress = self._validated(number - 1, progress, tail, start)
            if self._stops(progress):
                asked = number - 1
                self.events.emit("run.stopped-early", round=asked, rounds=study.rounds)
                break
            trained = rounds.train(number, model)
            if trained is None:
                continue
            state, model = trained
            tail.add(model)
            progress = replace(
                progress,
                next_round=number + 1,
                committed=progress.committed + 1,
                abandoned=number - progress.committed - 1,
                sites=tuple(state.accepted),
                model=model,
                optimiser=rounds.state(),
                average=tail.state(),
                refusals=dict(self.exchanges.refusals),
                attempts=self._attempts,
            )
            self._commit(state, progress)
        if not progress.committed:
            raise self._nothing_reached()
        final = tail.mean()
        weights = self.tray.keep(final).octets
        return StudyResult(
            model=final,
            counts={} if study.secure_sum else self._evaluate(weights, progress, start),
            pooled=self._evaluate_pooled(weights, progress, start) if study.secure_sum else None,
            committed_rounds=progress.committed,
            abandoned_rounds=asked - progress.committed,
            refusals=dict(self.exchanges.refusals),
            validations=progress.validations,
            stopped_after=None if asked == study.rounds else asked,
        )

    def _stops(self, progress: Progress) -> bool:
        release = evaluation_of(self.study)
        stopping = None if release is None else release.stopping
        return stopping is not None and stopping.stops([auc for _, auc in progress.validations])

    def _validated(
        self, number: int, progress: Progress, tail: ReleasedModels, start: Resumed
    ) -> Progress:
        """The progress with what a validation after round `number` found, where one is due there.

        What is counted is the model that would be released now. A round that was abandoned is in
        the checkpoint with it: what came before is not asked again.
        """
        known = {one for one, _ in progress.validations}
        if number not in validation_rounds(self.study) or number in known or not progress.committed:
            return progress
        found: tuple[RoundState, PrivateFigures] | None = None
        if number not in start.burnt_evaluations:
            found = self._figures(number, self.tray.keep(tail.mean()).octets, start)
        auc = None if found is None or found[1].auc is None else round(found[1].auc.value, 6)
        progress = replace(
            progress,
            next_round=number + 1,
            abandoned=number - progress.committed,
            validations=(*progress.validations, (number, auc)),
            attempts=self._attempts,
        )
        self.store.checkpoint(progress)
        if found is not None and self.study.secure_sum:
            self.exchanges.commit(found[0])
        self.events.emit("model.validated", round=number)
        return progress

    def _figures(
        self, number: int, model: Octets, start: Resumed
    ) -> tuple[RoundState, PrivateFigures] | None:
        """What the noised counts after round `number` say; None where they did not come."""
        if self.study.secure_sum:
            found = self._pooled(number, model)
            return None if found is None else (found[0], found[1].figures)
        counts = self._counts(number, model, start)
        release = evaluation_of(self.study)
        if counts is None or release is None:
            return None
        return counts[0], evaluate(counts[1], release=release).pooled

    def _rounds(self, start: Resumed) -> Rounds:
        """How this study's rounds go, where the run before it left off."""
        rounds: Rounds = (
            SecretRounds(self.secure)
            if self.study.secure_sum
            else OpenRounds(
                self.study, self.exchanges, inputs=self._inputs, opened=start.opened, tray=self.tray
            )
        )
        self._go_on(start)
        if start.progress.committed:
            rounds.restore(start.progress.optimiser)
        return rounds

    def _go_on(self, start: Resumed) -> None:
        if self.study.secure_sum:
            self.secure.attempts = start.attempts

    @property
    def _attempts(self) -> int:
        return self.secure.attempts if self.study.secure_sum else 0

    def _commit(self, state: RoundState, progress: Progress) -> None:
        """The round counts from here on: its outcome is durable before anybody hears of it."""
        self.store.checkpoint(progress)
        self.exchanges.commit(state)

    def _statistics(self, start: Resumed) -> StudyResult:
        """The totals of every release; one exchange each.

        Raises:
            StudyFailed: no release reached the quorum, or so many sites refuse for good.
        """
        progress, releases = start.progress, statistics_releases(self.study)
        self._go_on(start)
        totals: list[Totals | None] = [
            None if one is None else Totals.from_json(one) for one in progress.totals
        ]
        totals += [None] * (progress.next_round - 1 - len(totals))
        for number in range(progress.next_round, len(releases) + 1):
            answered = self._release(number, releases[number - 1], start.opened)
            totals.append(None if answered is None else answered[1])
            if answered is None:
                continue
            progress = replace(
                progress,
                next_round=number + 1,
                committed=progress.committed + 1,
                sites=tuple(answered[0].accepted),
                totals=tuple(None if t is None else t.as_json() for t in totals),
                refusals=dict(self.exchanges.refusals),
                attempts=self._attempts,
            )
            self._commit(answered[0], progress)
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

    def _release(
        self, number: int, release: StatisticsRelease, opened: Opened | None
    ) -> tuple[RoundState, Totals] | None:
        """The totals of one release and who is in them; None where it was abandoned."""
        nothing = tensors_to_bytes({})
        if self.study.secure_sum:
            found = self.secure.total("statistics", number, nothing)
            if found is None:
                return None
            count = len(found.survivors)
            return found.state, opened_totals(self.study, release, found.values, answered=count)
        added = StatisticsSum(self.study, release)
        ask = Ask(kind="statistics", round=number, model=nothing)
        state = self.exchanges.run(again(ask, opened), added.add)
        if not state.has_quorum:
            self.exchanges.abandon(state)
            return None
        state.aggregate()
        return state, added.totals()

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

    def _evaluate_pooled(
        self, model: Octets, progress: Progress, start: Resumed
    ) -> PooledCounts | None:
        """The noised counts over all sites; None without an evaluation or where it failed."""
        if progress.pooled is not None:
            return PooledCounts.from_json(progress.pooled)
        burnt = self.study.rounds in start.burnt_evaluations
        found = None if burnt else self._pooled(self.study.rounds, model)
        if found is None:
            return None
        self._commit(found[0], replace(progress, pooled=found[1].as_json()))
        return found[1]

    def _pooled(self, number: int, model: Octets) -> tuple[RoundState, PooledCounts] | None:
        """The noised counts over all sites after round `number`, opened and not committed yet."""
        release = evaluation_of(self.study)
        opened = None if release is None else self.secure.total("evaluate", number, model)
        if release is None or opened is None:
            return None
        return opened.state, PooledCounts(
            counts=opened.values.reshape(release.rows, release.bins),
            sites=opened.survivors,
            noise=opened.noise_std,
        )

    def _evaluate(self, model: Octets, progress: Progress, start: Resumed) -> dict[SiteId, Counts]:
        """The noised counts per site; empty without an evaluation or below its quorum."""
        if self.study.rounds in start.burnt_evaluations:
            return {}
        if progress.counts is not None:
            return {site: np.asarray(rows) for site, rows in progress.counts.items()}
        found = self._counts(self.study.rounds, model, start)
        if found is None:
            return {}
        rows = {site: counts.tolist() for site, counts in found[1].items()}
        self.store.checkpoint(replace(progress, counts=rows))
        return found[1]

    def _counts(
        self, number: int, model: Octets, start: Resumed
    ) -> tuple[RoundState, dict[SiteId, Counts]] | None:
        """The noised counts of each site after round `number`; None below the quorum."""
        release = evaluation_of(self.study)
        if release is None:
            return None
        counts: dict[SiteId, Counts] = {}

        def take(site: SiteId, payload: Octets) -> None:
            counts[site] = parse_counts(bytes(payload), rows=release.rows, bins=release.bins)

        ask = Ask(kind="evaluate", round=number, model=model)
        state = self.exchanges.run(again(ask, start.opened), take)
        if not state.has_quorum:
            self.exchanges.abandon(state)
            return None
        return state, counts


def parse_counts(payload: bytes, *, bins: int, rows: int = 2) -> Counts:
    """The counts [rows, bins] in an evaluation payload. Raises ProtocolError for anything else."""
    try:
        value: Any = json.loads(payload)
        counts = np.asarray(value["counts"], dtype=np.float64)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ProtocolError(
            "evaluation: expected {'counts': [[...], [...]]}, found something else"
        ) from error
    if counts.shape != (rows, bins) or not np.isfinite(counts).all():
        raise ProtocolError(
            f"evaluation: expected finite counts of shape ({rows}, {bins}), found {counts.shape}"
        )
    return counts
