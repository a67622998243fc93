"""A federation in memory: the real ports, with sites that can be told to misbehave."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from fedward_common.arrays import tensors_to_bytes
from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.ids import SiteId
from fedward_common.trust.signing import SigningKey
from fedward_common.wire import Envelope, Instruction, Reply
from fedward_server.exchange import FINAL_REFUSALS
from fedward_server.fleet import Answer, Silent
from fedward_server.progress import Progress, Resumed, resumed


@dataclass(kw_only=True)
class FakeClock:
    """A `Clock` whose time passes when somebody waits."""

    seconds: float = 1000.0

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass(kw_only=True)
class FakeStore:
    """A `RunStore` in memory, through the bytes of a real checkpoint.

    With `events` it reads them back as the run's log when a run goes on.
    """

    checkpoints: dict[int, bytes] = field(default_factory=dict)
    events: Silent | None = None
    kept: bytes = b""

    def resume(self, study: str) -> Resumed:
        progress = Progress.from_bytes(self.kept) if self.kept else Progress(study=study)
        heard = [] if self.events is None else self.events.heard
        return resumed(progress, heard[progress.log_seq :], final=FINAL_REFUSALS)

    def checkpoint(self, progress: Progress) -> None:
        heard = 0 if self.events is None else len(self.events.heard)
        self.kept = replace(progress, log_seq=heard).to_bytes()
        if progress.model:
            self.checkpoints[progress.next_round - 1] = tensors_to_bytes(progress.model)


@dataclass(kw_only=True)
class FakeSite:
    """A site that trains by a function of the model it gets, and signs as the guard does."""

    name: SiteId
    key: SigningKey
    train: Callable[[bytes], bytes] = lambda model: model
    counts: list[list[float]] = field(default_factory=lambda: [[1.0] * 5, [1.0] * 5])
    refusal: str = ""
    silent_rounds: set[int] = field(default_factory=set)
    tamper: Callable[[Envelope], Envelope] = lambda envelope: envelope
    seen: list[Instruction] = field(default_factory=list)
    remembers: bool = False
    charged: list[str] = field(default_factory=list)
    stored: dict[str, tuple[str, Envelope]] = field(default_factory=dict)

    def answer(self, envelope: Envelope) -> Envelope | None:
        instruction = Instruction.parse(envelope.header)
        self.seen.append(instruction)
        if instruction.round in self.silent_rounds:
            return None
        if self.refusal:
            return self.sealed(instruction, b"", kind="refusal", code=self.refusal)
        if self.remembers:
            return self._once(instruction, envelope)
        return self._answer(instruction, envelope)

    def _once(self, instruction: Instruction, envelope: Envelope) -> Envelope:
        """As the guard does it (rules 5): one charge and one answer per slot."""
        key, answer = self.stored.get(instruction.slot, ("", None))
        if answer is None:
            self.charged.append(instruction.slot)
            answer = self._answer(instruction, envelope)
            self.stored[instruction.slot] = (instruction.key, answer)
        elif key != instruction.key:
            return self.sealed(instruction, b"", kind="refusal", code="protocol")
        return answer

    def _answer(self, instruction: Instruction, envelope: Envelope) -> Envelope:
        payload = (
            self.train(envelope.blobs["model"])
            if instruction.kind == "train"
            else canonical_json({"counts": self.counts})
        )
        return self.tamper(self.sealed(instruction, payload, kind=instruction.kind))

    def sealed(
        self, instruction: Instruction, payload: bytes, *, kind: str, code: str = ""
    ) -> Envelope:
        reply = Reply.model_validate(
            {
                "kind": kind,
                "site": self.name,
                "key": instruction.key,
                "payload_sha256": sha256_hex(payload),
                "code": code,
                "public_key": self.key.public_hex,
            }
        )
        signed = reply.model_copy(update={"signature": self.key.sign(reply.signed_bytes).hex()})
        return Envelope(header=signed.canonical, blobs={"payload": payload})


@dataclass(kw_only=True)
class FakeFleet:
    """A `Fleet` of fake sites; a silent site's answer never comes and time passes instead."""

    sites: Mapping[SiteId, FakeSite]
    clock: FakeClock
    offline: set[SiteId] = field(default_factory=set)
    inbox: list[Answer] = field(default_factory=list)
    sent: list[dict[SiteId, Envelope]] = field(default_factory=list)
    until: dict[SiteId, float] = field(default_factory=dict)
    lose: dict[SiteId, int] = field(default_factory=dict)
    come_late: list[SiteId] = field(default_factory=list)

    def online(self) -> frozenset[SiteId]:
        self.offline -= {site for site, then in self.until.items() if self.clock.now() >= then}
        return frozenset(self.sites) - self.offline

    def send(self, envelopes: Mapping[SiteId, Envelope]) -> None:
        self.inbox = [Answer(site=site, envelope=None, late=True) for site in self.come_late]
        self.come_late = []
        self.sent.append(dict(envelopes))
        for name, envelope in envelopes.items():
            if name in self.offline:
                continue
            self._reach(name, envelope)

    def send_again(self, site: SiteId, envelope: Envelope) -> None:
        self.sent.append({site: envelope})
        self._reach(site, envelope)

    def _reach(self, site: SiteId, envelope: Envelope) -> None:
        """The site answers; as often as `lose` says, its answer is lost on the way."""
        answer = self.sites[site].answer(envelope)
        if self.lose.get(site, 0) > 0:
            self.lose[site] -= 1
            self.inbox.append(Answer(site=site, envelope=None, lost="flower error 5"))
        elif answer is not None:
            self.inbox.append(Answer(site=site, envelope=answer))

    def receive(self, *, timeout_seconds: float) -> list[Answer]:
        if not self.inbox:
            self.clock.sleep(max(timeout_seconds, 0.01))
            return []
        return [self.inbox.pop(0)]
