"""Blobs let nothing in or out that a message would not: real edge, gateways, guards and ledgers."""

import fcntl
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest

from fedward_client.blobs import with_fetched
from fedward_client.gateway.channel import EdgeChannel
from fedward_client.ports import Passing
from fedward_common.canonical import sha256_hex
from fedward_common.channel.blob_files import close_all, receive_with_files
from fedward_common.channel.blob_pb2 import BlobChunk, BlobDown, BlobUp, BlobWanted
from fedward_common.channel.blobs import CHUNK_BYTES, in_transit, manifest_of, manifests_in
from fedward_common.channel.phase_pb2 import PhaseDown, PhaseUp
from fedward_common.channel.phases import framed
from fedward_common.errors import ChannelError, PolicyRefused
from fedward_common.ids import SiteId
from fedward_common.log.events import read_events
from fedward_common.wire import Envelope
from fedward_server.blob_fleet import Offered
from tests.support.blob_sites import MODEL, BlobSites, big
from tests.support.edge_process import RunningEdge, running_edge, wait_until
from tests.support.guard_site import statement

pytestmark = pytest.mark.federation

NORTH, SOUTH, WEST = map(SiteId, ("north", "south", "west"))
Sites = Callable[..., BlobSites]


@pytest.fixture(scope="module")
def edge() -> Iterator[RunningEdge]:
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as folder,
        running_edge(Path(folder), "north", "south", "west", "stranger") as running,
    ):
        yield running


@pytest.fixture
def made(edge: RunningEdge) -> Iterator[Sites]:
    """Makes three hospitals of one study; everything of them ends with the test."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        opened: list[BlobSites] = []

        def make(name: str, **how: str) -> BlobSites:
            opened.append(BlobSites(edge, Path(folder), name, **how))
            return opened[-1]

        yield make
        for sites in opened:
            sites.close()


def passed(edge: RunningEdge, site: str, direction: str) -> list[tuple[str, str, int]]:
    """What the edge wrote down of a site's blobs."""
    return [
        (e.fields["kind"], e.fields["sha256"], e.fields["bytes"])
        for e in read_events(edge.settings.edge_log)
        if e.action == "edge.object"
        and e.fields["route"] == "blob"
        and (e.fields["site"], e.fields["direction"]) == (site, direction)
    ]


def test_model_and_updates_travel_beside_the_messages_and_are_written_down_on_both_sides(
    made: Sites, edge: RunningEdge
) -> None:
    sites = made("beside")
    before = {way: len(passed(edge, NORTH, way)) for way in ("in", "out")}

    for number in (1, 2):
        assert set(sites.ask(number).accepted) == {NORTH, SOUTH, WEST}

    assert sites.taken == dict.fromkeys((NORTH, SOUTH, WEST), sha256_hex(big(0.5)))
    north = sites.sites[NORTH]
    assert north.models == [sha256_hex(MODEL)] * 2
    assert set(sites.messages.sent[NORTH].blobs) == {"study", "model.manifest"}
    for ours, theirs, content in (("in", "out", MODEL), ("out", "in", big(0.5))):
        noted = [
            (e.fields["kind"], e.fields["sha256"], e.fields["bytes"])
            for e in north.noted("object", direction=ours, route="blob")
        ]
        assert noted == [("blob", manifest_of(sites.study.digest, content).id, len(content))] * 2
        assert noted == passed(edge, NORTH, theirs)[before[theirs] :]


def test_nothing_of_a_blob_has_a_name_on_disk(made: Sites, edge: RunningEdge) -> None:
    sites = made("nameless")

    sites.ask(1)

    for folder in (
        edge.settings.blob_folder,
        *(site.place.settings.blob_folder for site in sites.sites.values()),
    ):
        assert list(folder.iterdir()) == []


async def said(stream: Any, *ups: Any) -> list[str]:
    """What the edge answers to these messages, by kind; a refusal by its word."""
    heard: list[str] = []
    with suppress(ChannelError):
        for up in ups:
            await stream.write(up)
        while (down := await stream.read()) is not None:
            kind = down.WhichOneof("said")
            heard.append(down.refused if kind == "refused" else kind)
            if kind in ("whole", "refused"):
                break
    stream.close()
    return heard


def opened(sites: BlobSites, *, senders: Sequence[SiteId] = (), to: Sequence[SiteId] = ()) -> str:
    """An exchange in which `to` may fetch a model and `senders` may send; the model's id."""
    manifest = manifest_of(sites.study.digest, MODEL)
    offers = [Offered(manifest=manifest, content=MODEL, sites=to)] if to else []
    sites.link.begin(sites.study.digest, offers, senders=senders, max_bytes=6 << 20)
    wait_until(lambda: sites.link.arrived(timeout_seconds=0.1) == [])
    return manifest.id


def test_a_blob_is_for_the_sites_that_it_is_offered_to_and_for_no_other(
    made: Sites, edge: RunningEdge
) -> None:
    sites = made("addressed")
    blob = opened(sites, to=[NORTH])

    def fetched(site: SiteId, study: str, name: str) -> list[str]:
        have = bytes(1)
        wanted = BlobWanted(study=study, id=name, have=have)

        async def fetch() -> list[str]:
            return await said(sites.sites[site].channel.fetch_blob(), wanted)

        return cast(list[str], sites.on_loop(fetch()))

    assert fetched(NORTH, sites.study.digest, blob) == ["chunk"] * 6 + ["whole"]
    assert fetched(SOUTH, sites.study.digest, blob) == ["blob"]
    assert fetched(NORTH, sha256_hex(b"another study"), blob) == ["blob"]
    assert fetched(NORTH, sites.study.digest, "../../etc/passwd") == ["blob"]
    sites.link.begin(sites.study.digest, [], senders=[NORTH], max_bytes=0)
    wait_until(lambda: fetched(NORTH, sites.study.digest, blob) == ["blob"])
    assert edge.logged("edge.refused", code="blob", site="south", route="blob")


UPDATE = big(0.25)


def chunk(number: int, content: bytes | None = None) -> BlobUp:
    start = number * CHUNK_BYTES
    own = UPDATE[start : start + CHUNK_BYTES]
    return BlobUp(chunk=BlobChunk(number=number, content=own if content is None else content))


def offer(study: str, data: bytes = UPDATE) -> BlobUp:
    return BlobUp(manifest=manifest_of(study, data).canonical)


HOSTILE: dict[str, Callable[[str], list[BlobUp]]] = {
    "other bytes": lambda study: [offer(study), chunk(0, bytes(CHUNK_BYTES))],
    "a short chunk": lambda study: [offer(study), chunk(0, UPDATE[:100])],
    "a chunk beyond the end": lambda study: [offer(study), chunk(6, b"x")],
    "a chunk twice": lambda study: [offer(study), chunk(0), chunk(0)],
    "a second manifest": lambda study: [offer(study), offer(study)],
    "no manifest": lambda _study: [chunk(0)],
    "another form of it": lambda study: [
        BlobUp(manifest=manifest_of(study, UPDATE).canonical + b" ")
    ],
    "too few digests": lambda study: [
        BlobUp(manifest=manifest_of(study, UPDATE).canonical.replace(b'"size":56', b'"size":86'))
    ],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_site_cannot_send_what_its_manifest_does_not_say(
    what: str, made: Sites, edge: RunningEdge
) -> None:
    sites = made(f"hostile-{what.replace(' ', '-')}")
    opened(sites, senders=[WEST])
    before = len(passed(edge, WEST, "in"))

    async def send() -> list[str]:
        stream = sites.sites[WEST].channel.send_blob()
        return await said(stream, *HOSTILE[what](sites.study.digest))

    assert sites.on_loop(send())[-1] == "malformed"
    assert sites.link.arrived(timeout_seconds=0.2) == []
    assert len(passed(edge, WEST, "in")) == before


def test_a_site_cannot_send_too_much_or_a_second_time_or_when_nobody_waits(made: Sites) -> None:
    sites = made("too-much")
    study = sites.study.digest
    opened(sites, senders=[WEST])

    def sends(site: SiteId, *ups: BlobUp) -> list[str]:
        async def send() -> list[str]:
            return await said(sites.sites[site].channel.send_blob(), *ups)

        return cast(list[str], sites.on_loop(send()))

    assert sends(WEST, offer(study, bytes(7 << 20))) == ["blob-size"]
    assert sends(SOUTH, offer(study)) == ["blob"]
    assert sends(WEST, offer(sha256_hex(b"another study"))) == ["blob"]
    assert sends(WEST, offer(study), *map(chunk, range(6))) == ["have", "whole"]
    assert sends(WEST, offer(study)) == ["have", "whole"]
    assert sends(WEST, offer(study, big(0.75))) == ["blob"]
    assert len(sites.link.arrived(timeout_seconds=1.0)) == 1
    opened(sites, senders=[NORTH])
    assert sends(WEST, offer(study)) == ["blob"]


def test_a_revoked_site_gets_not_even_the_rest(edge: RunningEdge, made: Sites) -> None:
    site = edge.add_site("gone")
    edge.registry.revoke(SiteId("gone"))
    sites = made("revoked")
    blob = opened(sites, to=[NORTH])

    async def fetch() -> list[str]:
        channel = edge.channel(site.identity)
        wanted = BlobWanted(study=sites.study.digest, id=blob, have=bytes(1))
        heard = await said(channel.fetch_blob(), wanted)
        await channel.close()
        return heard

    assert sites.on_loop(fetch()) == ["site-revoked"]


@dataclass
class Through:
    """Streams that change, or cut, what goes through them."""

    channel: EdgeChannel
    changed: Callable[[BlobDown], BlobDown] = lambda down: down
    cut_after: int = 1000

    @property
    def edge_certificate_sha256(self) -> str:
        return self.channel.edge_certificate_sha256

    def fetch_blob(self) -> "ThroughStream":
        return ThroughStream(self, self.channel.fetch_blob())

    def send_blob(self) -> "ThroughStream":
        return ThroughStream(self, self.channel.send_blob())


@dataclass
class ThroughStream:
    way: Through
    stream: Any
    count: int = 0

    async def write(self, up: Any) -> None:
        self._counted()
        await self.stream.write(up)

    async def read(self) -> Any:
        self._counted()
        down = await self.stream.read()
        return down if down is None else self.way.changed(down)

    def close(self) -> None:
        self.stream.close()

    def _counted(self) -> None:
        self.count += 1
        if self.count > self.way.cut_after:
            self.way.cut_after = 1000
            raise ChannelError("cut")


def through(sites: BlobSites, name: SiteId, **how: Any) -> None:
    """Lets the blobs of a site go through streams like that."""
    site = sites.sites[name]
    site.blobs._streams = Through(site.channel, **how)


def test_a_coordinator_cannot_slip_in_another_chunk(made: Sites) -> None:
    sites = made("slipped")

    def changed(down: BlobDown) -> BlobDown:
        if down.chunk.number == 3:
            down.chunk.content = bytes(len(down.chunk.content))
        return down

    through(sites, NORTH, changed=changed)
    state = sites.ask(1)

    assert state.refused == {NORTH: "internal"}
    assert set(state.accepted) == {SOUTH, WEST}
    north = sites.sites[NORTH]
    assert north.models == []
    assert north.noted("round.charged") == []
    assert [e.fields["bytes"] for e in north.noted("object", kind="blob-rest")] == [3 << 20]


def test_a_model_that_is_too_large_for_a_site_is_not_fetched(
    made: Sites, edge: RunningEdge
) -> None:
    sites = made("too-large")
    north = sites.sites[NORTH]
    north.blobs._room = replace(north.blobs._room, max_bytes=5 << 20)
    before = len(passed(edge, NORTH, "out"))

    state = sites.ask(1)

    assert state.refused == {NORTH: "internal"}
    assert len(passed(edge, NORTH, "out")) == before


def test_a_worker_gets_only_what_a_message_named(made: Sites, edge: RunningEdge) -> None:
    sites = made("unnamed")
    opened(sites, to=[NORTH])
    before = len(passed(edge, NORTH, "out"))
    envelope = in_transit(Envelope(header=b"{}", blobs={"model": MODEL}), sites.study.digest)

    with pytest.raises(ChannelError, match="refused"):
        with_fetched(envelope, socket_path=sites.sites[NORTH].place.settings.phase_socket)

    assert len(passed(edge, NORTH, "out")) == before


def test_a_worker_cannot_write_to_what_it_is_handed(made: Sites) -> None:
    sites = made("read-only")
    modes: list[int] = []

    def look(envelope: Envelope) -> Envelope:
        site = sites.sites[NORTH]
        (manifest,) = manifests_in(envelope.blobs).values()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(site.place.settings.phase_socket))
            connection.sendall(framed(PhaseUp(blob=manifest.id)))
            came = receive_with_files(connection, PhaseDown)
        assert came is not None
        modes.append(fcntl.fcntl(came[1][0], fcntl.F_GETFL) & os.O_ACCMODE)
        close_all(came[1])
        return site.place.worker.refuse(envelope.header, "internal")

    sites.sites[NORTH].answer = look
    sites.ask(1)

    assert modes == [os.O_RDONLY]


@pytest.mark.parametrize("after", [1, 4])
def test_a_cut_blob_goes_on_where_it_was(after: int, made: Sites, edge: RunningEdge) -> None:
    sites = made(f"cut-{after}")
    before = {way: len(passed(edge, NORTH, way)) for way in ("in", "out")}
    through(sites, NORTH, cut_after=after)

    assert set(sites.ask(1).accepted) == {NORTH, SOUTH, WEST}
    through(sites, NORTH, cut_after=after)
    assert set(sites.ask(2).accepted) == {NORTH, SOUTH, WEST}

    north = sites.sites[NORTH]
    out = passed(edge, NORTH, "out")[before["out"] :]
    assert [kind for kind, _, _ in out] in (["blob"] * len(out), ["blob", "blob-rest"] * 2)
    assert len(north.noted("object", direction="in", kind="blob")) == 2
    assert len(passed(edge, NORTH, "in")) - before["in"] == 2


def test_a_pause_holds_for_a_blob_whose_message_has_left(made: Sites, edge: RunningEdge) -> None:
    sites = made("paused")
    north = sites.sites[NORTH]
    before = len(passed(edge, NORTH, "in"))
    held = threading.Event()
    release = north.blobs.released

    def wait(message_id: str) -> None:
        north.place.admin.record(statement("pause", site="north").canonical)
        release(message_id)
        held.set()

    north.blobs.released = wait  # type: ignore[method-assign]
    state = sites.ask(1, deadline_seconds=6)

    assert held.is_set()
    assert state.lost == {NORTH: "deadline"}
    assert north.noted("object", direction="out", route="blob") == []
    assert north.noted("object.held", kind="blob") != []
    assert len(passed(edge, NORTH, "in")) == before


def test_the_guard_lets_no_blob_out_that_it_did_not_seal(made: Sites) -> None:
    sites = made("unsealed")
    guard = sites.sites[NORTH].place.gateway
    passing = Passing(direction="out", route="blob", kind="blob", sha256=sha256_hex(b"x"), bytes=1)

    with pytest.raises(PolicyRefused):
        guard.journal(passing)

    assert guard.blob("never-released") is None


def test_a_dead_server_app_takes_its_blobs_along(made: Sites) -> None:
    sites = made("dead")
    blob = opened(sites, to=[NORTH], senders=[NORTH])

    sites.link.close()  # the kernel does this for a process that is killed

    async def fetch() -> list[str]:
        wanted = BlobWanted(study=sites.study.digest, id=blob, have=bytes(1))
        return await said(sites.sites[NORTH].channel.fetch_blob(), wanted)

    wait_until(lambda: sites.on_loop(fetch()) == ["blob"])
