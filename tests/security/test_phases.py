"""A phase lets nothing out that a message would not: real edge, gateways, guards and ledgers."""

import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from fedward_client.ports import Passing
from fedward_common.canonical import sha256_hex
from fedward_common.channel.phase_pb2 import PhaseDown, PhaseUp
from fedward_common.channel.phases import framed, receive_message, to_step
from fedward_common.ids import SiteId
from fedward_common.log.events import read_events
from fedward_common.study.spec import StudySpec
from fedward_common.wire import Envelope, Instruction
from tests.support.edge_process import RunningEdge, running_edge, wait_until
from tests.support.guard_site import about, signed, statement, update
from tests.support.phase_sites import CutRelay, PhaseSites, a_desk, a_streaming_study

pytestmark = pytest.mark.federation

NORTH, SOUTH, WEST = map(SiteId, ("north", "south", "west"))
Sites = Callable[..., PhaseSites]


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
        opened: list[PhaseSites] = []

        def make(name: str, **how: str) -> PhaseSites:
            opened.append(PhaseSites(edge, Path(folder), a_streaming_study(name), **how))
            return opened[-1]

        yield make
        for sites in opened:
            sites.close()


def passed(edge: RunningEdge, site: str, direction: str) -> list[tuple[str, str, int]]:
    """What the edge wrote down of a site's phases."""
    return [
        (e.fields["kind"], e.fields["sha256"], e.fields["bytes"])
        for e in read_events(edge.settings.edge_log)
        if e.action == "edge.object"
        and e.fields["route"] == "phase"
        and (e.fields["site"], e.fields["direction"]) == (site, direction)
    ]


def test_every_step_is_charged_sealed_released_and_written_down_on_both_sides(
    made: Sites, edge: RunningEdge
) -> None:
    sites = made("all-written")
    before = {way: len(passed(edge, NORTH, way)) for way in ("in", "out")}

    for number in (1, 2, 3, 4):
        assert set(sites.ask(number).accepted) == {NORTH, SOUTH, WEST}
    sites.fleet.end()

    assert sites.messages.sent == []
    assert sorted(sites.openings.sent) == [NORTH, SOUTH, WEST]
    for site in sites.sites.values():
        assert site.steps == [4]
        assert len(site.noted("phase.opened")) == 1
        for action in ("round.charged", "reply.sealed", "reply.released"):
            assert len(site.noted(action)) == 4
    north = sites.sites[NORTH]
    for ours, theirs in (("in", "out"), ("out", "in")):
        noted = [
            (e.fields["kind"], e.fields["sha256"], e.fields["bytes"])
            for e in north.noted("object", direction=ours, route="phase")
        ]
        assert noted == passed(edge, NORTH, theirs)[before[theirs] :]
        assert len(noted) == 4


def other_bytes(answer: Envelope) -> Envelope:
    return Envelope(header=answer.header, blobs={"payload": update(0.25)})


def one_blob_more(answer: Envelope) -> Envelope:
    return Envelope(header=answer.header, blobs={**answer.blobs, "record": b"patient 17"})


def another_header(answer: Envelope) -> Envelope:
    return Envelope(header=answer.header + b" ", blobs=answer.blobs)


@pytest.mark.parametrize("tampered", [other_bytes, one_blob_more, another_header])
def test_a_worker_cannot_get_a_byte_out_that_was_not_sealed(
    made: Sites, edge: RunningEdge, tampered: Callable[[Envelope], Envelope]
) -> None:
    sites = made(f"unsealed-{tampered.__name__.replace('_', '-')}")
    north = sites.sites[NORTH]
    north.answer = lambda envelope: tampered(north.worker(envelope))
    before = len(passed(edge, NORTH, "in"))

    state = sites.ask(1, deadline_seconds=4)

    assert state.lost == {NORTH: "deadline"}
    assert len(north.noted("reply.held")) == 1
    assert len(passed(edge, NORTH, "in")) == before
    assert north.noted("object", direction="out") == []


def test_the_number_that_a_worker_says_does_not_leave(made: Sites) -> None:
    sites = made("numbers")
    north = sites.sites[NORTH]
    with closing(_joined(sites, NORTH)) as connection:
        connection.sendall(framed(PhaseUp(answer=to_step(0xBADC0DE, Envelope(header=b"x")))))

        assert receive_message(connection, PhaseDown) is None
    assert north.noted("object", direction="out") == []


def test_a_worker_cannot_open_a_stream_that_the_guard_did_not_open(made: Sites) -> None:
    sites = made("unopened")
    path = sites.sites[NORTH].place.settings.phase_socket

    for study in (sites.study.digest, sha256_hex(b"256 bits of a worker's choice")):
        with closing(_connected(path)) as connection:
            connection.sendall(framed(PhaseUp(join=study)))

            assert receive_message(connection, PhaseDown) == PhaseDown(refused="phase")


def test_another_user_than_the_workers_is_not_heard(made: Sites) -> None:
    sites = made("users")
    place = sites.sites[NORTH].place
    sites.on_loop(sites.sites[NORTH].desk.stop())
    sites.sites[NORTH].desk = a_desk(place, sites.sites[NORTH].channel, worker_uid=54321)
    sites.on_loop(sites.sites[NORTH].desk.start())

    with closing(_connected(place.settings.phase_socket)) as connection:
        assert receive_message(connection, PhaseDown) is None


def test_a_site_speaks_for_itself_only(made: Sites) -> None:
    """West's certificate with north's sealed answer: north's own answer still counts, west none."""
    sites = made("own-name")
    north, west = sites.sites[NORTH], sites.sites[WEST]

    def as_north(envelope: Envelope) -> Envelope:
        instruction = Instruction.parse(envelope.header)
        wait_until(lambda: north.noted("reply.sealed", round=instruction.round))
        return north.worker(envelope)

    sites.on_loop(west.desk.stop())
    west.desk = a_desk(west.place, west.channel, guard=Bribed())
    sites.on_loop(west.desk.start())
    west.answer = as_north
    state = sites.ask(1)

    assert set(state.accepted) == {NORTH, SOUTH}
    assert state.lost[WEST] == "ProtocolError"


class Bribed:
    """The guard of a site that was taken over: everything may leave."""

    def release(self, _message_id: str, _object_ids: Sequence[str]) -> bool:
        return True

    def journal(self, _passing: Passing) -> None:
        return

    def bundle_allowed(self, _sha256: str) -> bool:
        return True

    def phase_open(self, _study: str) -> bool:
        return True


def test_who_is_not_of_the_study_gets_no_step(made: Sites, edge: RunningEdge) -> None:
    sites = made("strangers")
    sites.ask(1)

    async def join() -> PhaseDown | None:
        channel = edge.channel(edge.sites["stranger"].identity)
        stream = channel.phase()
        await stream.write(PhaseUp(join=sites.study.digest))
        answer = await stream.read()
        await channel.close()
        return answer

    assert sites.on_loop(join()) == PhaseDown(refused="phase")
    assert edge.logged("edge.refused", code="phase", site="stranger", route="phase")


def test_a_site_that_answers_what_it_was_not_asked_is_cut_off(
    made: Sites, edge: RunningEdge
) -> None:
    sites = made("floods")
    sites.ask(1)

    async def flood() -> PhaseDown | None:
        stream = sites.sites[WEST].channel.phase()
        await stream.write(PhaseUp(join=sites.study.digest))
        await stream.write(PhaseUp(answer=to_step(7, Envelope(header=b"never asked"))))
        return await stream.read()

    assert sites.on_loop(flood()) == PhaseDown(refused="malformed")
    assert edge.logged("edge.refused", code="malformed", site="west", route="phase")


def test_a_paused_site_answers_with_that_word_only(made: Sites) -> None:
    sites = made("paused")
    north = sites.sites[NORTH]
    assert NORTH in sites.ask(1).accepted

    north.place.admin.record(statement("pause", site="north").canonical)
    state = sites.ask(2)

    assert state.refused == {NORTH: "paused"}
    assert len(north.noted("reply.sealed")) == 1


def test_a_revoked_study_stays_inside_in_the_middle_of_a_phase(made: Sites) -> None:
    sites = made("revoked")
    north = sites.sites[NORTH]
    assert NORTH in sites.ask(1).accepted

    said = about(sites.study, "study-revocation", site="north")
    north.place.admin.record(said.canonical)

    assert sites.ask(2).refused == {NORTH: "not-approved"}
    assert len(north.noted("round.charged")) == 1


def test_a_cut_stream_is_resumed_and_nothing_is_charged_or_counted_twice(
    made: Sites, edge: RunningEdge
) -> None:
    relay = CutRelay(edge.settings.listen_port)
    sites = made("cut", address=relay.address)
    north = sites.sites[NORTH]

    def cut_at_work(envelope: Envelope) -> Envelope:
        if Instruction.parse(envelope.header).round == 2:
            relay.cut()
        return north.worker(envelope)

    north.answer = cut_at_work
    for number in (1, 2, 3):
        assert set(sites.ask(number).accepted) == {NORTH, SOUTH, WEST}
    sites.fleet.end()
    relay.close()

    for site in sites.sites.values():
        assert len(site.noted("round.charged")) == 3
        assert len(site.noted("reply.sealed")) == 3


def test_a_dead_server_app_leaves_no_task_behind(made: Sites) -> None:
    sites = made("dead")
    sites.ask(1)

    sites.fleet.link.close()  # the kernel does this for a process that is killed

    wait_until(lambda: not any(task.is_alive() for task in sites.openings.tasks))
    assert [site.steps for site in sites.sites.values()] == [[1]] * 3


def test_a_worker_that_dies_in_a_step_is_replaced_by_a_message(made: Sites) -> None:
    sites = made("died")
    north = sites.sites[NORTH]

    def dies(envelope: Envelope) -> Envelope:
        raise SystemExit("killed")  # ends a thread without a word

    sites.ask(1)
    north.answer = dies
    state = sites.ask(2)

    assert set(state.accepted) == {NORTH, SOUTH, WEST}
    assert sites.messages.sent == [NORTH]
    assert len(north.noted("round.charged", repeated=False)) == 2


def _joined(sites: PhaseSites, name: SiteId) -> socket.socket:
    """A connection of a worker whose guard opened a phase, before any step."""
    place, study = sites.sites[name].place, sites.study
    place.worker.begin(_opening(study), signed(study))
    connection = _connected(place.settings.phase_socket)
    connection.sendall(framed(PhaseUp(join=study.digest)))
    return connection


def _opening(study: StudySpec) -> bytes:
    return Instruction(
        kind="phase",
        study=study.digest,
        round=1,
        attempt=1,
        model_sha256=sha256_hex(b""),
        cohort=tuple(site.id for site in study.sites),
        roster_sha256=study.roster_sha256,
    ).canonical


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(20)
    connection.connect(str(path))
    return connection
