"""How often one address may call the enrolment listener, and who counts as one address."""

import asyncio
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from fedward_common.channel.refusals import Refusal
from fedward_common.log.events import EventLog
from fedward_server.adapters.registry import SqlRegistry
from fedward_server.enrolment.peers import MOST_PEERS, Peers, peer_of
from fedward_server.enrolment_rules import EnrolmentRefused


@dataclass
class Watch:
    time: float = 0.0

    def __call__(self) -> float:
        return self.time


def taken(rate: Peers, peer: str, calls: int) -> int:
    done = 0
    for _ in range(calls):
        with suppress(EnrolmentRefused):
            rate.spend(peer)
            done += 1
    return done


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("ipv4:192.0.2.7:4711", "192.0.2.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:4711", "2001:0db8:0001:0002"),
        ("ipv6:[2001:db8:1:2::9]:1", "2001:0db8:0001:0002"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:4711", "192.0.2.7"),
        ("unix:/run/x.sock", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_peer_is_an_address_or_a_64_bit_network(text: str, peer: str) -> None:
    assert peer_of(text) == peer


def test_a_peer_has_a_burst_and_then_its_pace() -> None:
    clock = Watch()
    rate = Peers(per_second=1, burst=5, clock=clock)

    at_once = taken(rate, "a", 20)
    with pytest.raises(EnrolmentRefused) as caught:
        rate.spend("a")
    clock.time += 3
    later = taken(rate, "a", 20)

    assert (at_once, later) == (5, 3)
    assert caught.value.refusal is Refusal.RATE


def test_one_peer_does_not_use_up_anothers_calls() -> None:
    rate = Peers(burst=5, clock=Watch())
    taken(rate, "a", 20)

    assert taken(rate, "b", 5) == 5


def test_a_peer_has_four_calls_under_way() -> None:
    peers = Peers(places=4, clock=Watch())

    with ExitStack() as calls:
        for _ in range(4):
            calls.enter_context(peers.place_of("a"))
        with pytest.raises(EnrolmentRefused) as caught, peers.place_of("a"):
            pass
        with peers.place_of("b"):
            pass
    with peers.place_of("a"):
        pass

    assert caught.value.refusal is Refusal.RATE


def test_many_peers_take_bounded_memory_and_a_flooding_one_stays_known() -> None:
    rate = Peers(per_second=0.001, burst=5, clock=Watch())
    taken(rate, "flood", 20)

    for number in range(MOST_PEERS + 50):
        rate.spend(f"peer-{number}")

    assert len(rate._buckets) <= MOST_PEERS + 1
    assert taken(rate, "flood", 1) == 0


def test_a_database_that_does_not_answer_is_waited_out(tmp_path: Path) -> None:
    """To pg8000 that is an interface error; a process that ended for it ends the coordinator."""
    from fedward_server.enrolment import listener

    registry = SqlRegistry(create_engine("postgresql+pg8000://nobody@127.0.0.1:1/none"))
    log = EventLog(tmp_path / "enrolment.jsonl")
    nothing: Any = None

    pause = asyncio.run(
        listener.look_after(registry, nothing, nothing, log, listen="127.0.0.1:9444")
    )

    log.close()
    assert pause == listener.RETRY_SECONDS
