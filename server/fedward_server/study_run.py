"""A study from its first round to its evaluated model: decisions only, the world enters by ports.

Each round: choose the cohort, send the instruction, take replies one by one into the sum, commit
when the quorum is there. Below the quorum the round is abandoned loudly and its number is burnt.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fedward_common.arrays import Array, tensors_from_bytes, tensors_to_bytes
from fedward_common.canonical import sha256_hex
from fedward_common.errors import (
    FedwardError,
    LedgerError,
    ProtocolError,
    SignatureRefused,
    StudyFailed,
)
from fedward_common.ids import SiteId
from fedward_common.models.averages import released_models
from fedward_common.models.registry import initial_tensors, model_shapes
from fedward_common.privacy.ledger import Head
from fedward_common.study.spec import StudySpec
from fedward_common.study.statistics import is_statistics, statistics_releases
from fedward_common.study.tabular import BinnedScores, TabularData
from fedward_common.trust.signing import key_sha256, verify
from fedward_common.wire import Envelope, Instruction, Kind, Reply
from fedward_server.aggregation import plain_sum, server_optimiser
from fedward_server.fleet import Answer, Clock, Fleet, RunEvents, RunStore
from fedward_server.ledger_heads import HeadsInMemory, LedgerHeads
from fedward_server.round_state import RoundState, describe
from fedward_server.statistics import StatisticsSum, Totals

Counts = npt.NDArray[np.float64]
Take = Callable[[SiteId, bytes], None]
"""Consumes one good payload."""

FINAL_REFUSALS: Final = frozenset(
    {
        *("config", "policy", "budget", "signature", "ledger", "model", "data"),
        *("ethics", "not-approved"),
    }
)
"""Refusals that a later round cannot change: the site is not asked again in this run. One that is
paused or outside its hours may answer the next round."""

POLL_SECONDS: Final = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyResult:
    """What a study gives: the final model, the noised counts per site, and how its rounds went.

    A study of statistics has no model; `statistics` then holds the totals of each release, None
    for a release that did not reach the quorum.
    """

    model: dict[str, Array]
    counts: dict[SiteId, Counts]
    committed_rounds: int
    abandoned_rounds: int
    refusals: dict[SiteId, str]
    statistics: tuple[Totals | None, ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """What the outcome of a run says besides model and counts, as a JSON value."""
        facts: dict[str, Any] = {
            "committed_rounds": self.committed_rounds,
            "abandoned_rounds": self.abandoned_rounds,
            "refusals": dict(self.refusals),
        }
        if self.statistics:
            facts["statistics"] = [t and t.as_json() for t in self.statistics]
        return facts


@dataclass(kw_only=True)
class StudyRun:
    """One run of one signed study over a fleet. `signed_study`: the bytes every site verifies."""

    study: StudySpec
    signed_study: bytes
    fleet: Fleet
    clock: Clock
    store: RunStore
    events: RunEvents
    heads: LedgerHeads = field(default_factory=HeadsInMemory)
    refusals: dict[SiteId, str] = field(default_factory=dict)
    _floors: Mapping[SiteId, int] = field(default_factory=dict)

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
            mean = self._train_round(number, tensors_to_bytes(model))
            if mean is None:
                continue
            committed += 1
            model = optimiser.step(model, mean)
            tail.add(model)
            self.store.checkpoint(round_number=number, model=tensors_to_bytes(model))
        if not committed:
            raise self._nothing_reached()
        final = tail.mean()
        return StudyResult(
            model=final,
            counts=self._evaluate(tensors_to_bytes(final)),
            committed_rounds=committed,
            abandoned_rounds=study.rounds - committed,
            refusals=dict(self.refusals),
        )

    def _statistics(self) -> StudyResult:
        """The totals of every release; one exchange each.

        Raises:
            StudyFailed: no release reached the quorum, or so many sites refuse for good.
        """
        totals: list[Totals | None] = []
        for number, release in enumerate(statistics_releases(self.study), start=1):
            added = StatisticsSum(self.study, release)
            state = self._exchange("statistics", number, tensors_to_bytes({}), added.add)
            if not state.has_quorum:
                self._abandon(state)
                totals.append(None)
                continue
            state.aggregate()
            totals.append(added.totals())
            state.commit()
            self.events.emit("round.committed", round=number, sites=list(state.accepted))
        committed = sum(total is not None for total in totals)
        if not committed:
            raise self._nothing_reached()
        return StudyResult(
            model={},
            counts={},
            committed_rounds=committed,
            abandoned_rounds=len(totals) - committed,
            refusals=dict(self.refusals),
            statistics=tuple(totals),
        )

    def _nothing_reached(self) -> StudyFailed:
        """Why a study ends with nothing. Raises StudyFailed itself when too many sites refused."""
        self._willing()
        return StudyFailed(
            f"study {self.study.id}: none of {self.study.rounds} rounds reached the quorum of "
            f"{self.study.quorum}; see the run's log for the sites that did not answer"
        )

    @property
    def _inputs(self) -> int:
        if not isinstance(self.study.data, TabularData):
            raise StudyFailed(
                f"study {self.study.id}: expected data of kind 'tabular', found "
                f"{self.study.data.kind!r}, which this coordinator cannot run"
            )
        return self.study.data.input_size

    def _train_round(self, number: int, model: bytes) -> dict[str, Array] | None:
        """The mean of the sites' models, or None for an abandoned round."""
        shapes, total = model_shapes(self.study.model, inputs=self._inputs), plain_sum(self.study)

        def take(site: SiteId, payload: bytes) -> None:
            total.add(site, tensors_from_bytes(payload, shapes=shapes))

        state = self._exchange("train", number, model, take)
        if not state.has_quorum:
            self._abandon(state)
            return None
        state.aggregate()
        mean = total.mean()
        state.commit()
        self.events.emit("round.committed", round=number, sites=list(state.accepted))
        return mean

    def _evaluate(self, model: bytes) -> dict[SiteId, Counts]:
        """The noised counts per site; empty without an evaluation or below its quorum."""
        release = next((r for r in self.study.releases if isinstance(r, BinnedScores)), None)
        if release is None:
            return {}
        counts: dict[SiteId, Counts] = {}

        def take(site: SiteId, payload: bytes) -> None:
            counts[site] = parse_counts(payload, bins=release.bins)

        state = self._exchange("evaluate", self.study.rounds, model, take)
        if not state.has_quorum:
            self._abandon(state)
            return {}
        return counts

    def _exchange(self, kind: Kind, number: int, model: bytes, take: Take) -> RoundState:
        """Sends one instruction to the cohort and collects until the round is closed."""
        opened = self.clock.now()
        cohort = self._cohort(opened)
        state = RoundState(
            number=number,
            cohort=cohort,
            quorum=self.study.quorum,
            opened_at=opened,
            deadline_seconds=self.study.deadline_seconds,
        )
        instruction = Instruction(
            kind=kind,
            study=self.study.digest,
            round=number,
            attempt=0,
            model_sha256=sha256_hex(model),
            cohort=cohort,
            roster_sha256=self.study.roster_sha256,
        )
        envelope = Envelope(
            header=instruction.canonical, blobs={"study": self.signed_study, "model": model}
        )
        self.events.emit(
            "round.opened", kind=kind, round=number, rounds=self.study.rounds, sites=list(cohort)
        )
        self._floors = self.heads.newest()
        self.fleet.send(dict.fromkeys(cohort, envelope))
        while not state.closed(now := self.clock.now()):
            for answer in self.fleet.receive(
                timeout_seconds=min(POLL_SECONDS, state.seconds_left(now))
            ):
                self._take(state, instruction, answer, take)
        for site in state.missing:
            state.lose(site, "deadline")
            self.events.emit("site.lost", kind=kind, round=number, site=site, reason="deadline")
        return state

    def _cohort(self, opened: float) -> tuple[SiteId, ...]:
        """The sites to ask: online, not refused for good; waits for the quorum, not forever."""
        willing = self._willing()
        while True:
            online = self.fleet.online()
            cohort = tuple(site for site in willing if site in online)
            if len(cohort) == len(willing) or self.clock.now() - opened >= self._patience(
                len(cohort)
            ):
                return cohort or tuple(willing)
            self.clock.sleep(0.2)

    def _willing(self) -> list[SiteId]:
        """The sites that have not refused for good.

        Raises:
            StudyFailed: fewer than the quorum; names who refused, and their word.
        """
        willing = [SiteId(s.id) for s in self.study.sites if SiteId(s.id) not in self.refusals]
        if len(willing) < self.study.quorum:
            reasons = "; ".join(f"{site}: {code}" for site, code in sorted(self.refusals.items()))
            raise StudyFailed(
                f"study {self.study.id}: expected at least {self.study.quorum} sites that take "
                f"part, found {len(willing)} ({reasons}). Ask those sites: their worker.log "
                "and guard.log say why"
            )
        return willing

    def _patience(self, online: int) -> float:
        """Seconds to wait for more sites: the deadline below the quorum, a moment above it."""
        return (
            self.study.deadline_seconds
            if online < self.study.quorum
            else min(2.0, self.study.deadline_seconds)
        )

    def _take(
        self, state: RoundState, instruction: Instruction, answer: Answer, take: Take
    ) -> None:
        """Counts one answer; a bad one loses that site for this round, never the round itself."""
        site, number = answer.site, state.number
        try:
            state.expects(site)
            if answer.envelope is None:
                raise ProtocolError(answer.lost or "no reply")
            reply = self._verified(site, instruction, answer.envelope)
            self._observe(site, reply)
            if reply.kind == "refusal":
                self._refused(state, site, reply.code)
                return
            take(site, answer.envelope.blobs["payload"])
            state.accept(site)
            self.events.emit("site.replied", kind=instruction.kind, round=number, site=site)
        except (FedwardError, KeyError) as error:
            if isinstance(error, LedgerError):  # nothing of it counts until somebody restores it
                self.refusals[site] = error.code
            if site in state.missing:
                state.lose(site, type(error).__name__)
            self.events.emit(
                "site.lost", kind=instruction.kind, round=number, site=site, reason=_one_line(error)
            )

    def _observe(self, site: SiteId, reply: Reply) -> None:
        """Compares the head of the site's ledger with those that it showed before.

        Raises:
            LedgerError: the ledger went back, is another one, or is not shown any more.
        """
        if reply.ledger_seq is not None and reply.ledger_sha256 is not None:
            head = Head(seq=reply.ledger_seq, sha256=reply.ledger_sha256)
            self.heads.observe(site, head, floor=self._floors.get(site, 0))
        elif reply.kind != "refusal" and site in self._floors:
            raise LedgerError(
                f"site {site}: expected the head of its budget ledger as before, found none"
            )

    def _refused(self, state: RoundState, site: SiteId, code: str) -> None:
        state.refuse(site, code)
        if code in FINAL_REFUSALS:
            self.refusals[site] = code
        self.events.emit("site.refused", round=state.number, site=site, code=code)

    def _verified(self, site: SiteId, instruction: Instruction, envelope: Envelope) -> Reply:
        """The reply, proven to be this site's answer to this instruction.

        1. it parses; 2. it names this site and this instruction; 3. its key is the study's for this
        site; 4. its signature holds; 5. the payload has the signed digest; 6. the kind fits.
        """
        reply = Reply.parse(envelope.header)
        entry = self.study.site(site)
        if reply.site != site or reply.key != instruction.key or entry is None:
            raise ProtocolError("reply: expected an answer to this instruction, found another's")
        if key_sha256(reply.public_key) != entry.key_sha256:
            raise SignatureRefused(
                f"reply of {site}: expected the key named in the study, found another"
            )
        verify(reply.public_key, bytes.fromhex(reply.signature), reply.signed_bytes)
        if sha256_hex(envelope.blobs.get("payload", b"")) != reply.payload_sha256:
            raise SignatureRefused(
                f"reply of {site}: expected the signed payload, found other bytes"
            )
        if reply.kind not in (instruction.kind, "refusal"):
            raise ProtocolError(f"reply of {site}: expected {instruction.kind}, found {reply.kind}")
        return reply

    def _abandon(self, state: RoundState) -> None:
        state.abandon()
        self.events.emit(
            "round.abandoned",
            round=state.number,
            good=len(state.accepted),
            quorum=state.quorum,
            refused=describe(sorted(state.refused)),
            lost=describe(sorted(state.lost)),
        )


def _one_line(error: Exception) -> str:
    """The text of an error as a log takes it: one printable line of at most 400 characters."""
    printable = "".join(c if c.isprintable() else " " for c in str(error))
    return " ".join(printable.split())[:400]


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
