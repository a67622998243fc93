"""One exchange: an instruction to a cohort, and its answers, verified and taken one by one.

A round is one exchange, or several to sites that answered the one before. What a site is asked is
the same for all; blobs may be for one site alone. Decisions only, the world enters by ports.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from fedward_common.canonical import sha256_hex
from fedward_common.errors import (
    FedwardError,
    LedgerError,
    ProtocolError,
    SignatureRefused,
    StudyFailed,
)
from fedward_common.ids import SiteId
from fedward_common.privacy.ledger import Head
from fedward_common.study.spec import StudySpec
from fedward_common.trust.signing import key_sha256, verify
from fedward_common.wire import CONTROL_KINDS, Envelope, Instruction, Kind, Reply
from fedward_server.fleet import Answer, Clock, Fleet, RunEvents
from fedward_server.ledger_heads import LedgerHeads
from fedward_server.round_state import RoundState, describe

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
RETURN_SECONDS: Final = 60.0
"""How long the cohort of a round that goes on may take to be there: SuperNode tries every 20 s."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """What one exchange asks.

    Without a `cohort` it is the willing sites that are online; a later exchange of the same round
    names the cohort of its first. `to` are those asked now, the whole cohort by default. `own` are
    blobs for one site, beside the study and the model that every site gets. For
    `patience_seconds` the sites are waited for before anything is sent.
    """

    kind: Kind
    round: int
    model: bytes
    attempt: int = 0
    cohort: tuple[SiteId, ...] | None = None
    to: tuple[SiteId, ...] | None = None
    own: Mapping[SiteId, Mapping[str, bytes]] = field(default_factory=dict)
    quorum: int | None = None
    deadline_seconds: float | None = None
    patience_seconds: float = 0.0

    def instruction(self, study: StudySpec, cohort: tuple[SiteId, ...]) -> Instruction:
        """The idempotency key of rules 5 for this cohort."""
        return Instruction(
            kind=self.kind,
            study=study.digest,
            round=self.round,
            attempt=self.attempt,
            model_sha256=sha256_hex(self.model),
            cohort=cohort,
            roster_sha256=study.roster_sha256,
        )


@dataclass(kw_only=True)
class Exchanges:
    """The exchanges of one run over a fleet. `signed_study`: the bytes every site verifies.

    `refusals` are the sites that refused for good, with their word; they are not asked again.
    """

    study: StudySpec
    signed_study: bytes
    fleet: Fleet
    clock: Clock
    events: RunEvents
    heads: LedgerHeads
    refusals: dict[SiteId, str] = field(default_factory=dict)
    _floors: Mapping[SiteId, int] = field(default_factory=dict)

    def run(self, ask: Ask, take: Take) -> RoundState:
        """Sends one instruction and collects until the round is closed.

        `take` gets each good payload once; what it refuses loses that site, not the round.

        Raises:
            StudyFailed: so many sites refuse for good that the quorum is out of reach.
        """
        study, opened = self.study, self.clock.now()
        cohort = ask.cohort or self.cohort()
        asked = cohort if ask.to is None else ask.to
        if ask.patience_seconds:
            self._await(asked, ask.patience_seconds)
            opened = self.clock.now()
        state = RoundState(
            number=ask.round,
            cohort=asked,
            quorum=study.quorum if ask.quorum is None else ask.quorum,
            opened_at=opened,
            deadline_seconds=(
                study.deadline_seconds if ask.deadline_seconds is None else ask.deadline_seconds
            ),
        )
        instruction = ask.instruction(study, cohort)
        action = "step.opened" if ask.kind in CONTROL_KINDS else "round.opened"
        self.events.emit(
            action,
            kind=ask.kind,
            round=ask.round,
            rounds=study.rounds,
            attempt=ask.attempt,
            sites=list(asked),
        )
        self._floors = self.heads.newest()
        self.fleet.send({site: self._envelope(ask, instruction, site) for site in asked})
        while not state.closed(now := self.clock.now()):
            for answer in self.fleet.receive(
                timeout_seconds=min(POLL_SECONDS, state.seconds_left(now))
            ):
                self._take(state, instruction, answer, take)
        for site in state.missing:
            state.lose(site, "deadline")
            self.events.emit(
                "site.lost", kind=ask.kind, round=ask.round, site=site, reason="deadline"
            )
        return state

    def abandon(
        self, state: RoundState, *, round_number: int | None = None, reason: str | None = None
    ) -> None:
        """Burns a round below its quorum, or one that cannot be opened (`reason`), loudly.

        `round_number` names the round where the exchange that failed is not its own.
        """
        state.abandon()
        self.events.emit(
            "round.abandoned",
            **({} if reason is None else {"reason": one_line(reason)}),
            round=state.number if round_number is None else round_number,
            good=len(state.accepted),
            quorum=state.quorum,
            refused=describe(sorted(state.refused)),
            lost=describe(sorted(state.lost)),
        )

    def commit(self, state: RoundState) -> None:
        """Marks an aggregated round as done and tells who was in it."""
        state.commit()
        self.events.emit("round.committed", round=state.number, sites=list(state.accepted))

    def willing(self) -> list[SiteId]:
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

    def _envelope(self, ask: Ask, instruction: Instruction, site: SiteId) -> Envelope:
        return Envelope(
            header=instruction.canonical,
            blobs={**ask.own.get(site, {}), "study": self.signed_study, "model": ask.model},
        )

    def cohort(self) -> tuple[SiteId, ...]:
        """The sites to ask: online, not refused for good; waits for the quorum, not forever."""
        opened, willing = self.clock.now(), self.willing()
        while True:
            online = self.fleet.online()
            cohort = tuple(site for site in willing if site in online)
            if len(cohort) == len(willing) or self.clock.now() - opened >= self._patience(
                len(cohort)
            ):
                return cohort or tuple(willing)
            self.clock.sleep(0.2)

    def _await(self, sites: tuple[SiteId, ...], seconds: float) -> None:
        """Waits for sites: a coordinator that comes back is alone at first."""
        since, patience = self.clock.now(), min(seconds, self.study.deadline_seconds)
        while not self.fleet.online() >= set(sites) and self.clock.now() - since < patience:
            self.clock.sleep(0.2)

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
            if instruction.kind not in CONTROL_KINDS:
                self.events.emit("site.replied", kind=instruction.kind, round=number, site=site)
        except (FedwardError, KeyError) as error:
            if isinstance(error, LedgerError):  # nothing of it counts until somebody restores it
                self.refusals[site] = error.code
            if site in state.missing:
                state.lose(site, type(error).__name__)
            self.events.emit(
                "site.lost",
                kind=instruction.kind,
                round=number,
                site=site,
                reason=one_line(str(error)),
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


def one_line(text: str) -> str:
    """`text` as a log takes it: one printable line of at most 400 characters."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())[:400]
