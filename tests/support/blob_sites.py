"""Sites, an edge and a ServerApp's fleet for blobs: all real but Flower and the training."""

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedward_client.blobs import with_fetched
from fedward_client.gateway.blobs import BlobDesk, Room
from fedward_client.gateway.channel import EdgeChannel
from fedward_client.gateway.phases import PhaseAccess, PhaseDesk
from fedward_client.guard.client import StoredReply
from fedward_client.guard.main import RunningGuard, start_guard
from fedward_common.arrays import tensors_to_bytes
from fedward_common.canonical import sha256_hex
from fedward_common.errors import FedwardError
from fedward_common.ids import SiteId
from fedward_common.log.events import Event, read_events
from fedward_common.study.spec import StudySpec
from fedward_common.trust.signing import SigningKey
from fedward_common.wire import Envelope, Octets
from fedward_server.adapters.blob_link import BlobLink
from fedward_server.adapters.run_files import SystemClock
from fedward_server.blob_fleet import BlobFleet
from fedward_server.exchange import Ask, Exchanges
from fedward_server.fleet import Answer, Silent
from fedward_server.ledger_heads import HeadsInMemory
from fedward_server.round_state import RoundState
from tests.support.edge_process import RunningEdge
from tests.support.guard_site import GuardSite, a_study, make_site, object_ids, signed
from tests.support.phase_sites import LoopThread, asked

NUMBERS = 1_400_000
"""A model of 5.6 MB: six chunks."""


def big_shapes(study: StudySpec) -> Mapping[str, tuple[int, ...]]:
    del study
    return {"linear.weight": (NUMBERS,)}


def big(value: float) -> bytes:
    """A model or an update of those shapes; no two chunks of it are alike."""
    numbers = np.arange(NUMBERS, dtype=np.float32) / NUMBERS + np.float32(value)
    return tensors_to_bytes({"linear.weight": numbers})


MODEL = big(0.0)


@dataclass(kw_only=True)
class BlobSite:
    """One hospital: guard, the gateway's desks, and what its worker answers."""

    name: SiteId
    place: GuardSite
    guard: RunningGuard
    phases: PhaseDesk
    blobs: BlobDesk
    channel: EdgeChannel
    payload: Callable[[], bytes] = lambda: big(0.5)
    answer: Callable[[Envelope], Envelope] | None = None
    models: list[str] = field(default_factory=list)

    def worker(self, envelope: Envelope) -> Envelope:
        """What a worker does with an instruction, without training."""
        guard = self.place.worker
        try:
            whole = with_fetched(envelope, socket_path=self.place.settings.phase_socket)
            self.models.append(sha256_hex(whole.blobs["model"]))
            grant = guard.begin(whole.header, bytes(whole.blobs["study"]))
            if isinstance(grant, StoredReply):
                return grant.envelope
            return guard.seal(grant.receipt, self.payload())
        except FedwardError as error:
            code = error.code if error.code != "channel" else "internal"
            return guard.refuse(envelope.header, code)

    @property
    def journal(self) -> list[Event]:
        return list(read_events(self.place.settings.audit_path))

    def noted(self, action: str, **fields: object) -> list[Event]:
        return [
            e for e in self.journal if e.action == action and fields.items() <= e.fields.items()
        ]


@dataclass(kw_only=True)
class CarriedMessages:
    """A fleet over messages in memory, with what the gateway does to each."""

    sites: Mapping[SiteId, BlobSite]
    on_loop: Callable[..., Any]
    sent: dict[SiteId, Envelope] = field(default_factory=dict)
    tasks: list[threading.Thread] = field(default_factory=list)
    _inbox: list[Answer] = field(default_factory=list)
    _arrived: threading.Condition = field(default_factory=threading.Condition)

    def online(self) -> frozenset[SiteId]:
        return frozenset(self.sites)

    def send(self, envelopes: Mapping[SiteId, Envelope]) -> None:
        with self._arrived:
            self._inbox.clear()
        for site, envelope in envelopes.items():
            self.send_again(site, envelope)

    def send_again(self, site: SiteId, envelope: Envelope) -> None:
        self.sent[site] = envelope
        thread = threading.Thread(target=self._run, args=(site, envelope), daemon=True)
        self.tasks.append(thread)
        thread.start()

    def receive(self, *, timeout_seconds: float) -> list[Answer]:
        with self._arrived:
            self._arrived.wait_for(lambda: self._inbox, timeout_seconds)
            answers, self._inbox = self._inbox, []
            return answers

    def _run(self, name: SiteId, envelope: Envelope) -> None:
        site = self.sites[name]
        self.on_loop(_announced(site.blobs, envelope))
        answer = (site.answer or site.worker)(envelope)
        ids = sorted(object_ids(answer))
        if site.place.gateway.release(ids[0], ids):
            self.on_loop(_released(site.blobs, ids[0]))
            with self._arrived:
                self._inbox.append(Answer(site=name, envelope=answer))
                self._arrived.notify_all()


async def _announced(blobs: BlobDesk, envelope: Envelope) -> None:
    blobs.announced(envelope.blobs)


async def _released(blobs: BlobDesk, message_id: str) -> None:
    blobs.released(message_id)


class BlobSites:
    """Several hospitals of one study in front of a running edge, and the fleet that asks them."""

    def __init__(
        self,
        edge: RunningEdge,
        folder: Path,
        name: str,
        *,
        address: str | None = None,
        keys: Mapping[str, SigningKey] | None = None,
    ) -> None:
        self.edge = edge
        self.folder = folder
        more = {} if keys is None else {"sites": keys, "delta": 1 / (2000 * len(keys))}
        self.study = a_study(id=name, rounds=20, **more)
        self._address = address
        self._loop = LoopThread()
        self.sites = {SiteId(s.id): self._site(SiteId(s.id)) for s in self.study.sites}
        self.messages = CarriedMessages(sites=self.sites, on_loop=self._loop.run)
        self.link = BlobLink(edge.settings.blob_socket, folder=edge.settings.blob_folder)
        self.fleet = BlobFleet(
            study=self.study, fleet=self.messages, blobs=self.link, clock=time.monotonic
        )
        self.taken: dict[SiteId, str] = {}

    def ask(
        self, number: int, *, deadline_seconds: float = 30.0, model: bytes = MODEL
    ) -> RoundState:
        """One round."""
        exchanges = Exchanges(
            study=self.study,
            signed_study=signed(self.study),
            fleet=self.fleet,
            clock=SystemClock(),
            events=Silent(),
            heads=HeadsInMemory(),
        )
        asked_now = Ask(
            kind="train", round=number, model=model, quorum=1, deadline_seconds=deadline_seconds
        )
        return exchanges.run(asked_now, self._take)

    def _take(self, site: SiteId, payload: Octets) -> None:
        self.taken[site] = sha256_hex(payload)

    def on_loop(self, coroutine: Any) -> Any:
        """Runs something in the gateways' loop."""
        return self._loop.run(coroutine)

    def close(self) -> None:
        self.link.close()
        for site in self.sites.values():
            self._loop.run(site.phases.stop())
            self._loop.run(site.blobs.stop())
            self._loop.run(site.channel.close())
            site.guard.close()
        for task in self.messages.tasks:
            task.join(10)
        self._loop.close()

    def _site(self, name: SiteId) -> BlobSite:
        place = make_site(
            self.folder / name,
            self.study,
            site=name,
            max_epsilon_per_study=8.0,
            max_epsilon_total=9.0,
        )
        guard = start_guard(place.settings, object_ids=object_ids, shapes=big_shapes)
        phases, blobs, channel = self._loop.run(self._desks(place, name))
        return BlobSite(
            name=name, place=place, guard=guard, phases=phases, blobs=blobs, channel=channel
        )

    async def _desks(
        self, place: GuardSite, name: SiteId
    ) -> tuple[PhaseDesk, BlobDesk, EdgeChannel]:
        channel = self.edge.channel(self.edge.sites[name].identity, address=self._address)
        blobs = a_blob_desk(place, channel)
        phases = PhaseDesk(
            access=PhaseAccess(path=place.settings.phase_socket, worker_uid=os.geteuid()),
            streams=channel,
            guard=place.gateway,
            ask=asked,
            object_ids=object_ids,
            blobs=blobs,
        )
        await phases.start()
        return phases, blobs, channel


def a_blob_desk(place: GuardSite, streams: Any, **changes: Any) -> BlobDesk:
    return BlobDesk(
        streams=streams,
        guard=changes.pop("guard", place.gateway),
        ask=asked,
        room=Room(
            folder=place.settings.blob_folder,
            max_bytes=changes.pop("max_bytes", 64 << 20),
            quota_bytes=128 << 20,
        ),
    )
