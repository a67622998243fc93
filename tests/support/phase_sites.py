"""Sites, an edge and a ServerApp's fleet for phases: all real but Flower and the training."""

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedward_client.gateway.channel import EdgeChannel
from fedward_client.gateway.phases import PhaseAccess, PhaseDesk
from fedward_client.guard.client import StoredReply
from fedward_client.guard.main import RunningGuard, start_guard
from fedward_client.phase import opens_phase, serve_phase
from fedward_common.errors import ChannelError, FedwardError
from fedward_common.ids import SiteId
from fedward_common.log.events import Event, read_events
from fedward_common.study.spec import StudySpec
from fedward_common.wire import Envelope
from fedward_server.adapters.phase_link import PhaseLink
from fedward_server.adapters.run_files import SystemClock
from fedward_server.exchange import Ask, Exchanges
from fedward_server.fleet import Answer, Silent
from fedward_server.ledger_heads import HeadsInMemory
from fedward_server.phase_fleet import PhaseFleet
from fedward_server.round_state import RoundState
from tests.support.edge_process import RunningEdge
from tests.support.guard_site import (
    GuardSite,
    a_study,
    make_site,
    object_ids,
    signed,
    update,
    update_shapes,
)

MODEL = update(0.0)


def a_streaming_study(name: str, *, rounds: int = 20) -> StudySpec:
    """A study whose rounds are single steps."""
    return a_study(
        id=name, rounds=rounds, local_steps=1, sampling_probability=0.01, noise_multiplier=4.0
    )


class CutRelay:
    """Carries connections to a port of loopback, and can cut them."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Ends every connection; new ones are carried again."""
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=_carry, args=(source, sink), daemon=True).start()


def _carry(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)


@dataclass(kw_only=True)
class PhaseSite:
    """One hospital: guard, the gateway's desk for phases, and what its worker answers."""

    name: SiteId
    place: GuardSite
    guard: RunningGuard
    desk: PhaseDesk
    channel: EdgeChannel
    payload: Callable[[], bytes] = update
    answer: Callable[[Envelope], Envelope] | None = None
    steps: list[int] = field(default_factory=list)

    def worker(self, envelope: Envelope) -> Envelope:
        """What a worker does with an instruction, without training."""
        guard = self.place.worker
        try:
            grant = guard.begin(envelope.header, envelope.blobs["study"])
            if isinstance(grant, StoredReply):
                return grant.envelope
            return guard.seal(grant.receipt, self.payload())
        except FedwardError as error:
            return guard.refuse(envelope.header, error.code)

    def _step(self, envelope: Envelope) -> Envelope:
        return (self.answer or self.worker)(envelope)

    def task(self, envelope: Envelope) -> Envelope:
        """What the ClientApp answers to a message."""
        answer = self.worker(envelope)
        if opens_phase(answer):
            steps = serve_phase(
                envelope,
                self._step,
                socket_path=self.place.settings.phase_socket,
                return_seconds=2.0,
            )
            self.steps.append(steps)
        return answer

    @property
    def journal(self) -> list[Event]:
        return list(read_events(self.place.settings.audit_path))

    def noted(self, action: str, **fields: object) -> list[Event]:
        return [
            e for e in self.journal if e.action == action and fields.items() <= e.fields.items()
        ]


@dataclass(kw_only=True)
class ThreadedMessages:
    """A fleet over messages in memory: each runs as a task of its own at its site."""

    sites: Mapping[SiteId, PhaseSite]
    offline: set[SiteId] = field(default_factory=set)
    sent: list[SiteId] = field(default_factory=list)
    tasks: list[threading.Thread] = field(default_factory=list)
    _inbox: list[Answer] = field(default_factory=list)
    _arrived: threading.Condition = field(default_factory=threading.Condition)

    def online(self) -> frozenset[SiteId]:
        return frozenset(self.sites) - self.offline

    def send(self, envelopes: Mapping[SiteId, Envelope]) -> None:
        with self._arrived:
            self._inbox.clear()
        self.add(envelopes)

    def add(self, envelopes: Mapping[SiteId, Envelope]) -> None:
        for site in envelopes.keys() & self.online():
            self.sent.append(site)
            thread = threading.Thread(target=self._run, args=(site, envelopes[site]), daemon=True)
            self.tasks.append(thread)
            thread.start()

    def receive(self, *, timeout_seconds: float) -> list[Answer]:
        with self._arrived:
            self._arrived.wait_for(lambda: self._inbox, timeout_seconds)
            answers, self._inbox = self._inbox, []
            return answers

    def _run(self, site: SiteId, envelope: Envelope) -> None:
        answer = self.sites[site].task(envelope)
        with self._arrived:
            self._inbox.append(Answer(site=site, envelope=answer))
            self._arrived.notify_all()


class PhaseSites:
    """Several hospitals of one study in front of a running edge, and the fleet that asks them."""

    def __init__(
        self, edge: RunningEdge, folder: Path, study: StudySpec, *, address: str | None = None
    ) -> None:
        self.edge = edge
        self._address = address
        self.folder = folder
        self.study = study
        self._loop = LoopThread()
        self.sites = {SiteId(s.id): self._site(SiteId(s.id)) for s in study.sites}
        self.messages = ThreadedMessages(sites=self.sites)
        self.openings = ThreadedMessages(sites=self.sites)
        self.fleet = self.new_fleet()

    def new_fleet(self) -> PhaseFleet:
        return PhaseFleet(
            study=self.study,
            messages=self.messages,
            openings=self.openings,
            link=PhaseLink(self.edge.settings.phase_socket),
            clock=time.monotonic,
        )

    def exchanges(self) -> Exchanges:
        """The study's exchanges over the fleet, as a run makes them."""
        return Exchanges(
            study=self.study,
            signed_study=signed(self.study),
            fleet=self.fleet,
            clock=SystemClock(),
            events=Silent(),
            heads=HeadsInMemory(),
        )

    def ask(self, number: int, *, deadline_seconds: float | None = None) -> RoundState:
        """One round."""
        asked = Ask(kind="train", round=number, model=MODEL, deadline_seconds=deadline_seconds)
        return self.exchanges().run(asked, lambda _site, _payload: None)

    def on_loop(self, coroutine: Any) -> Any:
        """Runs something in the gateways' loop."""
        return self._loop.run(coroutine)

    def close(self) -> None:
        self.fleet.link.close()
        for site in self.sites.values():
            self._loop.run(site.desk.stop())
            self._loop.run(site.channel.close())
            site.guard.close()
        for task in (*self.messages.tasks, *self.openings.tasks):
            task.join(10)
        self._loop.close()

    def _site(self, name: SiteId) -> PhaseSite:
        place = make_site(
            self.folder / name,
            self.study,
            site=name,
            max_epsilon_per_study=8.0,
            max_epsilon_total=9.0,
        )
        guard = start_guard(place.settings, object_ids=object_ids, shapes=update_shapes)
        desk, channel = self._loop.run(self._desk(place, name))
        return PhaseSite(name=name, place=place, guard=guard, desk=desk, channel=channel)

    async def _desk(self, place: GuardSite, name: SiteId) -> tuple[PhaseDesk, EdgeChannel]:
        identity = self.edge.sites[name].identity
        channel = self.edge.channel(identity, address=self._address)
        desk = a_desk(place, channel)
        await desk.start()
        return desk, channel


def a_desk(place: GuardSite, streams: Any, **changes: Any) -> PhaseDesk:
    access = PhaseAccess(
        path=place.settings.phase_socket, worker_uid=changes.pop("worker_uid", os.geteuid())
    )
    return PhaseDesk(
        access=access,
        streams=streams,
        guard=changes.pop("guard", place.gateway),
        ask=asked,
        object_ids=object_ids,
        resume_seconds=changes.pop("resume_seconds", 3.0),
    )


async def asked(question: Callable[..., Any], *arguments: object) -> Any:
    """As the gateway asks its guard."""
    try:
        return await asyncio.to_thread(question, *arguments)
    except OSError as error:
        raise ChannelError("guard: expected an answer") from error
