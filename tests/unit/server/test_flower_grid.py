"""The fleet over Flower's Grid addresses study keys only and loses no reply quietly."""

import select
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedward_common.canonical import sha256_hex
from fedward_common.errors import ProtocolError
from fedward_common.ids import SiteId
from fedward_common.study.files import SiteKeys
from fedward_common.wire import Envelope, Instruction
from fedward_server.adapters.flower_grid import FlowerFleet
from fedward_server.adapters.flower_records import from_records, to_records
from tests.support.studies import SITES, key_digest, make_spec

NODE_KEYS = {name: f"public key of {name}".encode() for name in SITES}
STUDY = make_spec(
    keys={
        name: SiteKeys(key_sha256=key_digest(number), node_key_sha256=sha256_hex(NODE_KEYS[name]))
        for number, name in enumerate(SITES, start=1)
    }
)


@pytest.fixture(autouse=True)
def _inside_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower makes messages only in a process that it started for a run."""
    for name, value in (("_run_id", 1), ("_node_id", 1), ("_task_id", 1)):
        monkeypatch.setattr(TaskIdentity, name, value)


@dataclass
class FakeGrid:
    """Flower's Grid in memory; answers come when the test puts them in."""

    nodes: list[SimpleNamespace] = field(default_factory=list)
    pushed: list[Message] = field(default_factory=list)
    replies: dict[str, SimpleNamespace] = field(default_factory=dict)

    def get_nodes(self) -> list[SimpleNamespace]:
        return self.nodes

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        before = len(self.pushed)
        self.pushed += list(messages)
        return [f"m{number}" for number in range(before, len(self.pushed))]

    def pull_messages(self, message_ids: Iterable[str]) -> list[SimpleNamespace]:
        return [self.replies.pop(i) for i in message_ids if i in self.replies]


def a_grid(names: Iterable[str] = SITES) -> FakeGrid:
    return FakeGrid(
        nodes=[
            SimpleNamespace(node_id=100 + SITES.index(name), public_key=NODE_KEYS[name])
            for name in names
        ]
    )


def a_fleet(grid: FakeGrid) -> tuple[FlowerFleet, list[list[int]]]:
    kicked: list[list[int]] = []
    fleet = FlowerFleet(grid, study=STUDY, kick=lambda nodes: kicked.append(list(nodes)))  # type: ignore[arg-type]
    fleet.online()
    return fleet, kicked


def an_instruction() -> Envelope:
    instruction = Instruction(
        kind="train",
        study=STUDY.digest,
        round=2,
        attempt=0,
        model_sha256="0" * 64,
        cohort=SITES,
        roster_sha256=STUDY.roster_sha256,
    )
    return Envelope(header=instruction.canonical, blobs={"model": b"m"})


def test_a_node_that_registered_itself_gets_no_message() -> None:
    grid = a_grid(["north"])
    grid.nodes.append(SimpleNamespace(node_id=999, public_key=b"a stranger's key"))
    fleet, kicked = a_fleet(grid)

    fleet.send(dict.fromkeys(map(SiteId, SITES), an_instruction()))

    assert fleet.online() == {"north"}
    assert [message.metadata.dst_node_id for message in grid.pushed] == [100]
    assert kicked == [[100]]


def test_a_site_that_was_revoked_is_not_online_and_gets_no_message() -> None:
    grid, revoked = a_grid(), set[SiteId]()
    fleet = FlowerFleet(
        grid,  # type: ignore[arg-type]
        study=STUDY,
        kick=lambda _nodes: None,
        member=lambda site: site not in revoked,
    )
    before = fleet.online()

    revoked.add(SiteId("east"))
    after = fleet.online()
    fleet.send(dict.fromkeys(after, an_instruction()))

    assert before - after == {"east"}
    assert len(grid.pushed) == len(SITES) - 1


def test_a_message_carries_the_envelope_its_kind_and_its_round() -> None:
    grid = a_grid()
    fleet, _ = a_fleet(grid)

    fleet.send({SiteId("east"): an_instruction()})

    (message,) = grid.pushed
    assert message.metadata.message_type == "train"
    assert message.metadata.group_id == "2"
    assert from_records(message.content) == an_instruction()


def test_an_answer_comes_back_with_its_site() -> None:
    grid = a_grid()
    fleet, _ = a_fleet(grid)
    fleet.send(dict.fromkeys(map(SiteId, SITES), an_instruction()))
    answer = Envelope(header=b"h", blobs={"payload": b"p"})
    grid.replies["m1"] = SimpleNamespace(has_error=lambda: False, content=to_records(answer))

    (received,) = fleet.receive(timeout_seconds=0.0)

    assert (received.site, received.envelope) == (SITES[1], answer)
    assert fleet.receive(timeout_seconds=0.0) == []


def test_a_flower_error_is_a_lost_answer() -> None:
    grid = a_grid()
    fleet, _ = a_fleet(grid)
    fleet.send({SiteId("east"): an_instruction()})
    grid.replies["m0"] = SimpleNamespace(has_error=lambda: True, error=Error(5, "gone"))

    (received,) = fleet.receive(timeout_seconds=0.0)

    assert received.envelope is None
    assert received.lost == "flower error 5"


def test_records_that_are_no_envelope_are_a_lost_answer() -> None:
    grid = a_grid()
    fleet, _ = a_fleet(grid)
    fleet.send({SiteId("east"): an_instruction()})
    records = RecordDict({"metrics": ConfigRecord({"loss": 0.1})})
    grid.replies["m0"] = SimpleNamespace(has_error=lambda: False, content=records)

    (received,) = fleet.receive(timeout_seconds=0.0)

    assert received.envelope is None


def test_a_late_answer_to_an_earlier_round_is_told_once_and_not_read() -> None:
    grid = a_grid()
    fleet, _ = a_fleet(grid)
    fleet.send({SiteId("east"): an_instruction()})
    (first,) = fleet._pending
    fleet.send({SiteId("east"): an_instruction()})
    late = to_records(Envelope(header=b"late"))
    grid.replies[first] = SimpleNamespace(
        has_error=lambda: False,
        content=late,
        metadata=SimpleNamespace(reply_to_message_id=first),
    )

    (told,) = fleet.receive(timeout_seconds=0.0)

    assert (told.site, told.late, told.envelope) == ("east", True, None)
    assert fleet.receive(timeout_seconds=0.0) == []


def test_what_the_way_lost_is_sent_again_to_the_nodes_present_session() -> None:
    grid = a_grid()
    fleet, kicked = a_fleet(grid)
    fleet.send({SiteId("east"): an_instruction()})
    grid.nodes[SITES.index("east")].node_id = 7
    fleet.online()

    fleet.send_again(SiteId("east"), an_instruction())

    assert grid.pushed[-1].metadata.dst_node_id == 7
    assert kicked[-1] == [7]


def test_an_envelope_survives_the_records_byte_for_byte() -> None:
    envelope = Envelope(header=b"{}", blobs={"a": b"", "b": bytes(range(256)) * 10})

    assert from_records(to_records(envelope)) == envelope


@pytest.mark.parametrize(
    "records",
    [
        RecordDict(),
        RecordDict({"fedward": ConfigRecord({"header": "text"})}),
        RecordDict({"fedward": ConfigRecord({"header": b"x", "more": 1})}),
        RecordDict({"other": ConfigRecord({"header": b"x"})}),
    ],
    ids=["nothing", "a header that is no bytes", "a second value", "another record"],
)
def test_other_records_are_refused(records: RecordDict) -> None:
    with pytest.raises(ProtocolError):
        from_records(records)


@dataclass
class StuckGrid(FakeGrid):
    """The objects of one reply do not come until the test lets them."""

    stuck: str = "m0"
    free: threading.Event = field(default_factory=threading.Event)

    def pull_messages(self, message_ids: Iterable[str]) -> list[SimpleNamespace]:
        (wanted,) = message_ids
        if wanted == self.stuck:
            self.free.wait(30)
        return super().pull_messages([wanted])


@pytest.fixture
def stuck() -> Iterator[StuckGrid]:
    grid = StuckGrid(nodes=a_grid().nodes)
    yield grid
    grid.free.set()


def an_answer(message_id: str) -> SimpleNamespace:
    return SimpleNamespace(
        has_error=lambda: False,
        content=to_records(Envelope(header=b"h")),
        metadata=SimpleNamespace(reply_to_message_id=message_id),
    )


def test_a_reply_that_never_becomes_whole_holds_up_no_other(stuck: StuckGrid) -> None:
    fleet, _ = a_fleet(stuck)
    fleet.send(dict.fromkeys(map(SiteId, SITES), an_instruction()))
    stuck.replies = {f"m{number}": an_answer(f"m{number}") for number in range(len(SITES))}

    received = fleet.receive(timeout_seconds=0.0) + fleet.receive(timeout_seconds=0.0)

    assert {answer.site for answer in received} == set(SITES[1:])
    fleet.close()


def test_a_slow_reply_is_an_answer_once_its_last_object_is_there(stuck: StuckGrid) -> None:
    fleet, _ = a_fleet(stuck)
    fleet.send({SiteId(SITES[0]): an_instruction()})
    stuck.replies = {"m0": an_answer("m0")}

    assert fleet.receive(timeout_seconds=0.0) == []
    stuck.free.set()

    assert [answer.site for answer in fleet.receive(timeout_seconds=5.0)] == [SITES[0]]
    fleet.close()


def test_the_main_thread_wakes_while_a_reply_is_stuck(stuck: StuckGrid) -> None:
    """Who watches a ServerApp tells a dead one by its waking."""
    waits: list[float] = []

    def heard(seconds: float, beside: int) -> list[int]:
        waits.append(seconds)
        select.select([beside], [], [], min(seconds, 0.01))
        return []

    fleet = FlowerFleet(stuck, study=STUDY, kick=lambda _nodes: None, heard=heard)  # type: ignore[arg-type]
    fleet.online()
    fleet.send({SiteId(SITES[0]): an_instruction()})
    fleet._note([100])
    fleet.receive(timeout_seconds=0.1)

    assert max(waits) <= 1.0
    assert len(waits) > 3
    fleet.close()


def test_what_is_announced_while_it_is_asked_for_is_asked_for_again(stuck: StuckGrid) -> None:
    fleet, _ = a_fleet(stuck)
    fleet.send({SiteId(SITES[0]): an_instruction()})
    assert fleet.receive(timeout_seconds=0.0) == []  # under way, and nothing is there yet
    fleet._note([100])
    fleet._start_whole(at_once=9)
    stuck.free.set()
    fleet._pulls.wait(5.0)
    assert fleet._taken() == []  # came back empty
    stuck.replies = {"m0": an_answer("m0")}

    assert [answer.site for answer in fleet.receive(timeout_seconds=1.0)] == [SITES[0]]
    fleet.close()
