"""A site's upkeep against the coordinator's renewal desk: a lost answer, a kill, a new try."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from fedward_client.adapters.tls_pair import TlsPair
from fedward_client.enrol import Places, SiteOptions, write_request
from fedward_client.gateway.greeting import Greeting
from fedward_client.gateway.upkeep import Upkeep
from fedward_client.ports import Passing
from fedward_common.errors import ChannelError
from fedward_common.trust.certificates import parse_peer_certificate
from fedward_common.trust.private_files import write_atomically
from fedward_server.ports import SiteRecord
from tests.support.desk import ALPHA, Office

DAY = timedelta(days=1)


@dataclass
class Line:
    """Implements `SiteChannel`: the line to the desk, which may lose an answer."""

    office: Office
    lost: int = 0
    edge_certificate_sha256: str = ""
    reconnected: int = 0

    async def hello(self, versions: Mapping[str, str]) -> Greeting:
        del versions
        return Greeting(versions={}, skew_seconds=0.0, revoked=())

    async def renew(self, request_pem: bytes) -> bytes:
        chain = self.office.renewals.renew(record(self.office), request_pem)
        if self.lost:
            self.lost -= 1
            raise ChannelError("coordinator: the answer was lost")
        return chain

    def reconnect(self) -> None:
        self.reconnected += 1


@dataclass
class Journal:
    """Implements `ObjectJournal` in memory."""

    entries: list[Passing] = field(default_factory=list)

    def journal(self, passing: Passing) -> None:
        self.entries.append(passing)


@dataclass
class Member:
    """An enrolled hospital with its files, and the office that enrolled it."""

    office: Office
    places: Places
    pair: TlsPair
    line: Line

    def upkeep(self) -> Upkeep:
        """As a gateway makes it at its start, after it settled what was cut short."""
        self.pair.settle()
        return Upkeep(
            channel=self.line,
            journal=Journal(),
            pair=self.pair,
            ca=self.places.ca,
            versions={},
            clock=self.office.clock,
            edge_certificate=lambda: "",
        )

    def accepted(self) -> bool:
        """Whether the coordinator takes the certificate that lies on the site's disk."""
        own = parse_peer_certificate(self.pair.certificate.read_bytes())
        return record(self.office).accepts(own.fingerprint_sha256)


def record(office: Office) -> SiteRecord:
    found = office.registry.find(ALPHA)
    assert found is not None
    return found


@pytest.fixture
def member(tmp_path: Path) -> Member:
    office = Office(tmp_path)
    places = Places.of(tmp_path / "site" / "site.toml", SiteOptions())
    invite = office.invite()
    request = write_request(
        invite, places, SiteOptions(), out=tmp_path / "request.json", say=lambda _: None
    )
    office.intake.submit(invite.token, request.canonical)
    for name in office.operators:
        office.grant(name, request)
    present = office.registry.book.present_certificate(ALPHA)
    assert present is not None
    pair = TlsPair(certificate=places.tls_certificate, key=places.tls_key)
    pair.switch(present.chain_pem)
    write_atomically(places.ca, office.authority.root_pem)
    return Member(office, places, pair, Line(office))


def test_a_certificate_is_replaced_at_two_thirds_and_the_coordinator_takes_the_new_one(
    member: Member,
) -> None:
    before, upkeep = member.pair.identity(), member.upkeep()
    member.office.clock.time += 59 * DAY
    asyncio.run(upkeep.tick())
    assert member.pair.identity() == before

    member.office.clock.time += 2 * DAY
    asyncio.run(upkeep.tick())

    assert member.pair.identity().key_pem != before.key_pem
    assert member.accepted()
    assert member.line.reconnected == 1


def test_after_a_lost_answer_the_same_key_gets_the_same_certificate(member: Member) -> None:
    upkeep, member.line.lost = member.upkeep(), 2
    member.office.clock.time += 61 * DAY
    for _ in range(3):
        asyncio.run(upkeep.tick())
        assert member.accepted()
        member.office.clock.time += timedelta(hours=1)

    present = member.office.registry.book.present_certificate(ALPHA)
    assert present is not None
    assert member.pair.identity().certificate_pem == present.chain_pem


def test_killed_after_the_answer_the_next_start_is_still_a_member(member: Member) -> None:
    """The coordinator signed; the site died before it wrote the certificate down."""
    member.line.lost = 1
    member.office.clock.time += 61 * DAY
    asyncio.run(member.upkeep().tick())
    assert member.accepted()

    asyncio.run(member.upkeep().tick())

    assert member.accepted()
    assert not member.pair.next_key.exists()


def test_several_renewals_follow_each_other(member: Member) -> None:
    upkeep, seen = member.upkeep(), set()
    for _ in range(10):
        member.office.clock.time += 31 * DAY
        asyncio.run(upkeep.tick())
        own = parse_peer_certificate(member.pair.certificate.read_bytes())
        member.office.registry.seen(ALPHA, own.fingerprint_sha256)
        seen.add(own.fingerprint_sha256)
        assert member.accepted()

    assert 4 <= len(seen) <= 6
