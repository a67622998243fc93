"""One exchange: an instruction to a cohort, and its answers, verified and taken one by one.

A round is one exchange, or several to sites that answered the one before. What a site is asked is
the same for all; blobs may be for one site alone. Decisions only, the world enters by ports.
"""

from collections import Counter
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
from fedward_common.privacy.ledger_values import Head
from fedward_common.study.spec import StudySpec
from fedward_common.trust.signing import key_sha256, verify
from fedward_common.wire import (
    CONTROL_KINDS,
    KNOWN_ROWS,
    Envelope,
    Instruction,
    Kind,
    KnownRows,
    Octets,
    Reply,
)
from fedward_server.fleet import Answer, Clock, Fleet, RunEvents
from fedward_server.ledger_heads import LedgerHeads
from fedward_server.round_state import RoundState, describe

Take = Callable[[SiteId, Octets], None]
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
LOOK_SECONDS: Final = 0.2
LONG_LOOK_SECONDS: Final = 5.0
MAX_TRIES: Final = 3
"""How often an instruction that the way lost is sent again in one round."""
SLOW: Final = 0.25
"""A site is slow that answers in the last quarter of the deadline."""
SLOW_ROUNDS: Final = 3
PASSING: Final = frozenset({"paused", "hours", "internal"})
"""Refusals that time may mend."""
MAX_COOL_DOWN_SECONDS: Final = 3600.0
MAX_PAUSE_SECONDS: Final = 14 * 86400.0
AWAY_SECONDS: Final = 10.0
"""So long a site has to be gone until a step of a secret sum goes on without it."""
RETURN_SECONDS: Final = 60.0
"""How long the cohort of a round that goes on may take to be there: SuperNode tries every 20 s."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """What one exchange asks.

    Without a `cohort` it is the willing sites that are online; a later exchange of the same round
    names the cohort of its first. `model_sha256` is given where it is known. `to` are those asked
    now, the whole cohort by default. `own` are blobs for one site, beside the study and the model
    that every site gets. For `patience_seconds` the sites are waited for before anything is sent.
    """

    kind: Kind
    round: int
    model: Octets
    model_sha256: str = ""
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
            model_sha256=self.model_sha256 or sha256_hex(self.model),
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
    _known: Mapping[SiteId, Head] = field(default_factory=dict)
    _tries: Counter[SiteId] = field(default_factory=Counter)
    _waiting: set[SiteId] = field(default_factory=set)
    _gone: dict[SiteId, float] = field(default_factory=dict)
    _late_in_round: set[SiteId] = field(default_factory=set)
    _slow: Counter[SiteId] = field(default_factory=Counter)
    _abandoned: int = 0
    _may_help: bool = False

    def run(self, ask: Ask, take: Take) -> RoundState:
        """Sends one instruction and collects until the round is closed.

        `take` gets each good payload once; what it refuses loses that site, not the round.

        Raises:
            StudyFailed: so many sites refuse for good that the quorum is out of reach.
        """
        study, cohort = self.study, ask.cohort or self.cohort()
        asked = cohort if ask.to is None else ask.to
        if ask.patience_seconds:
            self._await(asked, ask.patience_seconds)
        state = RoundState(
            number=ask.round,
            cohort=asked,
            quorum=study.quorum if ask.quorum is None else ask.quorum,
            opened_at=self.clock.now(),
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
        self._known = self.heads.newest()
        envelopes = self._envelopes(ask, instruction, asked)
        self.fleet.send(envelopes)
        self._tries, self._gone = Counter(), {}
        while not state.closed(now := self.clock.now()):
            answers = self.fleet.receive(timeout_seconds=min(POLL_SECONDS, state.seconds_left(now)))
            while answers:  # each is dropped before the next is looked at
                self._take(state, instruction, answers.pop(0), take)
            self._send_again(state, envelopes)
            if ask.kind in CONTROL_KINDS:
                self._give_up_the_gone(state, ask.kind)
        self._note_pace(state)
        for site in state.missing:
            state.lose(site, "deadline")
            self.events.emit(
                "site.lost", kind=ask.kind, round=ask.round, site=site, reason="deadline"
            )
        return state

    def _may_come_again(self, site: SiteId, instruction: Instruction) -> bool:
        """Whether an instruction that the way lost is sent once more: the site answers from its
        store, or begins now (rules 5). The steps of secure aggregation are asked once.
        """
        if instruction.kind in CONTROL_KINDS or self._tries[site] >= MAX_TRIES:
            return False
        self._tries[site] += 1
        self._waiting.add(site)
        self.events.emit("site.asked-again", round=instruction.round, site=site)
        return True

    def _send_again(self, state: RoundState, envelopes: Mapping[SiteId, Envelope]) -> None:
        """Sends what was lost as soon as its site is there."""
        self._waiting &= set(state.missing)
        if self._waiting and (there := self._waiting & self.fleet.online()):
            for site in sorted(there):
                self.fleet.send_again(site, envelopes[site])
            self._waiting -= there

    def _give_up_the_gone(self, state: RoundState, kind: Kind) -> None:
        """Loses who is not connected any more, once the quorum is there.

        Steps of a secret sum take moments, and their secrets lie in memory: a site that ended
        cannot answer when it is back. A training is waited for: its answer may come after a cut.
        """
        now = self.clock.now()
        if not state.has_quorum or not state.missing:
            self._gone.clear()
            return
        gone = set(state.missing) - self.fleet.online()
        self._gone = {site: self._gone.get(site, now) for site in gone}
        for site in sorted(gone):
            if now - self._gone[site] > AWAY_SECONDS:
                state.lose(site, "not connected")
                self.events.emit(
                    "site.lost", kind=kind, round=state.number, site=site, reason="not connected"
                )

    def _note_pace(self, state: RoundState) -> None:
        """Reports a site that took most of the deadline, or all of it, in SLOW_ROUNDS in a row."""
        slow = self._late_in_round | set(state.missing)
        self._late_in_round = set()
        for site in state.cohort:
            self._slow[site] = self._slow[site] + 1 if site in slow else 0
            if self._slow[site] and self._slow[site] % SLOW_ROUNDS == 0:
                self.events.emit("site.slow", round=state.number, site=site, count=self._slow[site])

    def abandon(
        self, state: RoundState, *, round_number: int | None = None, reason: str | None = None
    ) -> None:
        """Burns a round below its quorum, or one that cannot be opened (`reason`), loudly.

        `round_number` names the round where the exchange that failed is not its own.
        """
        state.abandon()
        self._abandoned += 1
        # A round closes as soon as refusals put the quorum out of reach; who had not answered yet
        # counts as lost then, and waiting would not have helped.
        lasting = [code for code in state.refused.values() if code not in PASSING]
        self._may_help = len(state.cohort) - len(lasting) >= state.quorum and (
            bool(state.lost) or bool(PASSING & set(state.refused.values()))
        )
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
        self._abandoned = 0
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

    def _envelopes(
        self, ask: Ask, instruction: Instruction, asked: tuple[SiteId, ...]
    ) -> dict[SiteId, Envelope]:
        """What goes to each site. Where something is charged, with the ledger rows that are known
        of the sites: a guard without its row refuses.
        """
        common = {"study": self.signed_study, "model": ask.model}
        known = {str(s): self._known[s].sha256 for s in asked if s in self._known}
        if known and ask.kind not in CONTROL_KINDS:
            common[KNOWN_ROWS] = KnownRows(rows=known).canonical
        return {
            site: Envelope(header=instruction.canonical, blobs={**ask.own.get(site, {}), **common})
            for site in asked
        }

    def _leave_out(self) -> None:
        """Asks nothing of a site whose ledger went back, also not in a later run."""
        ours = {SiteId(site.id) for site in self.study.sites} - self.refusals.keys()
        for site in sorted(self.heads.went_back() & ours):
            self.refusals[site] = LedgerError.code
            self.events.emit("site.refused", site=site, code=LedgerError.code)

    def cohort(self) -> tuple[SiteId, ...]:
        """The sites to ask: online, not refused for good. A round is opened for a quorum only.

        Without one the study pauses: it says so, asks nobody and burns no round until enough sites
        are there. It also pauses, ever longer, after rounds that failed one after the other.

        Raises:
            StudyFailed: it paused for MAX_PAUSE_SECONDS.
        """
        self._cool_down()
        self._leave_out()
        opened, willing, paused = self.clock.now(), self.willing(), False
        while True:
            cohort = tuple(site for site in willing if site in self.fleet.online())
            waited = self.clock.now() - opened
            enough = len(cohort) >= self.study.quorum
            if len(cohort) == len(willing) or (enough and waited >= self._moment):
                if paused:
                    self.events.emit("study.continued", sites=list(cohort))
                return cohort
            if not enough and not paused and waited >= self._moment:
                paused = True
                self._pause("expected a quorum of sites to be connected", there=cohort)
            if waited >= MAX_PAUSE_SECONDS:
                raise StudyFailed(
                    f"study {self.study.id}: expected a quorum of {self.study.quorum} sites, found "
                    f"{len(cohort)} for {MAX_PAUSE_SECONDS / 86400:.0f} days. Rounds that were "
                    "charged stay charged; start the study again when the sites are back"
                )
            self.clock.sleep(LONG_LOOK_SECONDS if paused else LOOK_SECONDS)

    def _cool_down(self) -> None:
        """Waits before the next round when the last ones failed for what time may mend."""
        if self._abandoned < 2 or not self._may_help:
            return
        seconds = min(
            MAX_COOL_DOWN_SECONDS, self.study.deadline_seconds * 2.0 ** (self._abandoned - 2)
        )
        self._pause(f"{self._abandoned} rounds in a row failed", seconds=seconds)
        until = self.clock.now() + seconds
        while (left := until - self.clock.now()) > 0:
            self.clock.sleep(min(left, LONG_LOOK_SECONDS))  # a process that sleeps long looks dead

    def _pause(
        self, reason: str, *, there: tuple[SiteId, ...] = (), seconds: float | None = None
    ) -> None:
        facts = {} if seconds is None else {"seconds": seconds}
        self.events.emit(
            "study.paused", reason=reason, quorum=self.study.quorum, sites=list(there), **facts
        )

    @property
    def _moment(self) -> float:
        """Seconds to wait for the last few sites, once there is a quorum."""
        return min(2.0, self.study.deadline_seconds)

    def _await(self, sites: tuple[SiteId, ...], seconds: float) -> None:
        """Waits for sites: a coordinator that comes back is alone at first."""
        since, patience = self.clock.now(), min(seconds, self.study.deadline_seconds)
        while not self.fleet.online() >= set(sites) and self.clock.now() - since < patience:
            self.clock.sleep(0.2)

    def _take(
        self, state: RoundState, instruction: Instruction, answer: Answer, take: Take
    ) -> None:
        """Counts one answer; a bad one loses that site for this round, never the round itself."""
        site, number = answer.site, state.number
        if answer.late:
            self.events.emit("site.late", round=number, site=site)
            return
        try:
            state.expects(site)
            if answer.envelope is None and self._may_come_again(site, instruction):
                return
            if answer.envelope is None:
                raise ProtocolError(answer.lost or "no reply")
            reply = self._verified(site, instruction, answer.envelope)
            self._observe(site, reply)
            if reply.kind != "refusal":
                take(site, answer.envelope.blobs["payload"])
                state.accept(site)
        except (FedwardError, KeyError) as error:
            if isinstance(error.__cause__, OSError):
                raise  # our own disk: no fault of the site's
            self._lost(state, instruction, site, error)
            return
        # Outside of what may be the site's fault: to write the log is ours.
        if reply.kind == "refusal":
            self._refused(state, site, reply.code)
            return
        if state.seconds_left(self.clock.now()) < SLOW * state.deadline_seconds:
            self._late_in_round.add(site)
        if instruction.kind not in CONTROL_KINDS:
            self.events.emit("site.replied", kind=instruction.kind, round=number, site=site)

    def _lost(
        self, state: RoundState, instruction: Instruction, site: SiteId, error: Exception
    ) -> None:
        """Notes that a site's answer does not count, and why."""
        if isinstance(error, LedgerError):  # nothing of it counts until somebody restores it
            self.refusals[site] = error.code
        if site in state.missing:
            state.lose(site, type(error).__name__)
        self.events.emit(
            "site.lost",
            kind=instruction.kind,
            round=state.number,
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
            self.heads.observe(site, head, floor=self._known.get(site, Head()).seq)
        elif reply.kind != "refusal" and site in self._known:
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
