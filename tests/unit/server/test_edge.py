"""The edge's decisions: who may pass, when a poll ends, what is written down."""

import asyncio
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import MAX_BODY_BYTES, ROUTES, CallRefused
from fedward_common.errors import LedgerError, ProtocolError
from fedward_common.ids import Digest, SiteId
from fedward_common.log.fields import checked
from fedward_common.trust.certificates import parse_peer_certificate
from fedward_server.adapters.edge_kick import kick
from fedward_server.adapters.flower_fleet import FlowerFleetMessages
from fedward_server.edge import polling
from fedward_server.edge.admission import Admission, Call, CallRate, certificate_sha256
from fedward_server.edge.bell import WorkBell
from fedward_server.edge.forward import Edge
from fedward_server.edge.gate import Gate, RefusalLog
from fedward_server.edge.handshakes import read_refusal
from fedward_server.edge.kicks import KickServer, parse_kick
from fedward_server.edge.replies import ReplyWatch
from fedward_server.ports import CertificateRecord, FleetReply
from tests.support.edge import (
    Events,
    FakeUpstream,
    SetTime,
    forwarded,
    message_body,
    poll_body,
    pushed_messages,
    pushed_object,
)
from tests.support.pki import Authority, Site
from tests.support.roster import InMemoryRegistry

NODE = 7
SETTLE_SECONDS = 0.2
"""For what other tasks do meanwhile, on a machine with much else to do."""
EMPTY = b""
BODIES = {
    "pull-messages": poll_body(NODE),
    "push-messages": pushed_messages("ab" * 32),
    "push-object": pushed_object(b"content"),
}


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def sites(authority: Authority) -> dict[str, Site]:
    return {name: authority.site(name) for name in ("alpha", "beta")}


class World:
    """An edge with everything around it in memory."""

    def __init__(self, sites: dict[str, Site], *, poll_seconds: float = 1.0) -> None:
        self.sites = sites
        self.roster = InMemoryRegistry(*(site.record for site in sites.values()))
        self.time = SetTime()
        self.upstream = FakeUpstream()
        self.events = Events()
        self.bell = WorkBell()
        self.edge = Edge(
            admission=Admission(federation="north", roster=self.roster, clock=self.time),
            gate=Gate(rate=CallRate(per_second=1000, burst=1000), log=self.events),
            upstream=self.upstream,
            fleet=FlowerFleetMessages(),
            bell=self.bell,
            replies=ReplyWatch(),
            poll_seconds=poll_seconds,
        )

    def call(self, site: str = "alpha", route: str = "get-run", **changes: object) -> Call:
        call = Call(
            certificate_pem=self.sites[site].identity.certificate_pem,
            route=route,
            headers={"flwr-public-key": self.sites[site].node_key.header},
            body=BODIES.get(route, b"body"),
        )
        return replace(call, **changes)  # type: ignore[arg-type]

    def poll(self, site: str = "alpha", node: int = NODE) -> Coroutine[None, None, FleetReply]:
        return forwarded(self.edge, self.call(site, "pull-messages", body=poll_body(node)))

    async def takes(self, site: str = "alpha") -> None:
        """SuperNode asks for the objects of the message that it got."""
        await forwarded(self.edge, self.call(site, "pull-object"))

    async def waiting_poll(self, site: str = "alpha") -> "asyncio.Future[FleetReply]":
        """A poll that has asked SuperLink once, got nothing, and waits."""
        await self.poll(site)
        polling = asyncio.ensure_future(self.poll(site))
        await asyncio.sleep(SETTLE_SECONDS)
        return polling


@pytest.fixture
def world(sites: dict[str, Site]) -> World:
    return World(sites)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(scenario(), timeout=10)

    asyncio.run(limited())


def refusal(world: World, call: Call) -> Refusal:
    with pytest.raises(CallRefused) as caught:
        asyncio.run(forwarded(world.edge, call))
    return caught.value.refusal


# Admission.


def test_the_good_site_passes_with_its_answer(world: World) -> None:
    reply = asyncio.run(forwarded(world.edge, world.call()))

    assert reply == FleetReply(status=200, body=b"done get-run")
    assert world.events.of("edge.refused") == []
    assert world.events.of("edge.site-connected")[0]["site"] == "alpha"


def test_a_connection_without_a_certificate_is_refused(world: World) -> None:
    assert refusal(world, world.call(certificate_pem=b"")) is Refusal.CERTIFICATE_NAME


def test_a_servers_certificate_is_refused(world: World, authority: Authority) -> None:
    pem = authority.server_identity().certificate_pem

    assert refusal(world, world.call(certificate_pem=pem)) is Refusal.CERTIFICATE_NAME


def test_a_site_of_another_federation_is_refused(world: World) -> None:
    pem = Authority("south").site_identity("alpha").certificate_pem

    assert refusal(world, world.call(certificate_pem=pem)) is Refusal.OTHER_FEDERATION


def test_a_certificate_that_expires_on_a_live_connection_is_refused(world: World) -> None:
    """rules 17: the handshake was long ago; the call is checked."""
    asyncio.run(forwarded(world.edge, world.call()))
    peer = parse_peer_certificate(world.call().certificate_pem)

    world.time.time = peer.not_after + timedelta(seconds=1)

    assert refusal(world, world.call()) is Refusal.CERTIFICATE_EXPIRED


def test_a_certificate_of_tomorrow_is_refused(world: World) -> None:
    world.time.time -= timedelta(days=1)

    assert refusal(world, world.call()) is Refusal.CERTIFICATE_NOT_YET_VALID


def test_a_site_that_is_revoked_on_a_live_connection_is_refused(world: World) -> None:
    asyncio.run(forwarded(world.edge, world.call()))

    world.roster.revoke(SiteId("alpha"))

    assert refusal(world, world.call()) is Refusal.SITE_REVOKED
    assert world.upstream.calls == [("get-run", b"body")]


def test_a_site_that_is_not_registered_is_refused(world: World, authority: Authority) -> None:
    pem = authority.site_identity("gamma").certificate_pem

    assert refusal(world, world.call(certificate_pem=pem)) is Refusal.SITE_UNKNOWN


def test_a_second_certificate_for_the_same_site_is_refused(
    world: World, authority: Authority
) -> None:
    pem = authority.site_identity("alpha").certificate_pem

    assert refusal(world, world.call(certificate_pem=pem)) is Refusal.CERTIFICATE_NOT_CURRENT


def test_site_a_with_the_node_key_of_site_b_is_refused(world: World) -> None:
    headers = {"flwr-public-key": world.sites["beta"].node_key.header}

    assert refusal(world, world.call(headers=headers)) is Refusal.NODE_KEY


def test_a_call_without_a_node_key_is_refused(world: World) -> None:
    assert refusal(world, world.call(headers={})) is Refusal.NODE_KEY


def test_a_free_header_is_refused(world: World) -> None:
    call = world.call()
    headers = {**call.headers, "flwr-task-token": "x"}

    assert refusal(world, replace(call, headers=headers)) is Refusal.HEADER


@pytest.mark.parametrize(
    "route", ["list-nodes", "../control/start-run", "/v1/runtime/acquire-task"]
)
def test_a_control_or_runtime_route_is_refused(world: World, route: str) -> None:
    assert refusal(world, world.call(route=route)) is Refusal.ROUTE
    assert world.upstream.calls == []


@pytest.mark.parametrize("route", sorted(ROUTES - {"pull-messages"}))
def test_each_fleet_route_passes(world: World, route: str) -> None:
    reply = asyncio.run(forwarded(world.edge, world.call(route=route)))

    assert reply.body == b"done " + route.encode()


def test_a_body_over_8_mib_is_refused(world: World) -> None:
    body = bytes(MAX_BODY_BYTES + 1)

    assert refusal(world, world.call(body=body)) is Refusal.BODY_TOO_LARGE


def test_an_answer_over_8_mib_is_refused(world: World) -> None:
    world.upstream.replies["get-run"] = FleetReply(status=200, body=bytes(MAX_BODY_BYTES + 1))

    assert refusal(world, world.call()) is Refusal.BODY_TOO_LARGE


def test_a_poll_that_is_no_pull_messages_request_is_refused(world: World) -> None:
    assert refusal(world, world.call(route="pull-messages", body=b"\xff")) is Refusal.MALFORMED


def test_a_superlink_that_is_down_is_its_own_reason(world: World) -> None:
    world.upstream.down = True

    assert refusal(world, world.call()) is Refusal.UPSTREAM


def test_superlinks_own_refusals_pass_as_they_are(world: World) -> None:
    world.upstream.replies["get-run"] = FleetReply(status=403, body=b"{}")

    assert asyncio.run(forwarded(world.edge, world.call())) == FleetReply(status=403, body=b"{}")


def test_more_calls_than_the_rate_allows_are_refused_until_time_passes() -> None:
    seconds = 0.0
    rate = CallRate(per_second=2, burst=3, clock=lambda: seconds)
    site = SiteId("alpha")
    for _ in range(3):
        rate.spend(site)

    with pytest.raises(CallRefused) as caught:
        rate.spend(site)
    rate.spend(SiteId("beta"))
    seconds = 0.5
    rate.spend(site)

    assert caught.value.refusal is Refusal.RATE


# The log.


def test_each_refusal_is_written_with_its_code_site_and_route(world: World) -> None:
    refusal(world, world.call(headers={}))

    assert world.events.of("edge.refused") == [
        {"code": "node-key", "count": 1, "site": "alpha", "route": "get-run"}
    ]


def test_a_route_from_outside_does_not_get_into_the_log(world: World) -> None:
    refusal(world, world.call(route="x\ninjected"))

    assert world.events.of("edge.refused")[0]["route"] == "other"


def test_what_is_written_fits_the_fields_of_the_log(world: World) -> None:
    for call in (world.call(), world.call(headers={}), world.call(certificate_pem=b"")):
        with suppress(CallRefused):
            asyncio.run(forwarded(world.edge, call))

    actions = [action for action, _ in world.events.heard]
    assert actions == ["edge.site-connected", "edge.object", "edge.refused", "edge.refused"]
    for _, fields in world.events.heard:
        checked(fields)


def test_a_flood_of_one_refusal_is_one_line_with_its_count() -> None:
    seconds, events = 0.0, Events()
    log = RefusalLog(log=events, period_seconds=10, clock=lambda: seconds)
    for _ in range(100):
        log.note("edge.refused", refusal=Refusal.ROUTE, site="alpha")
    log.note("edge.refused", refusal=Refusal.ROUTE, site="beta")

    seconds = 10.0
    log.note("edge.refused", refusal=Refusal.ROUTE, site="alpha")

    found = [(fields["site"], fields["count"]) for fields in events.of("edge.refused")]
    assert found == [("alpha", 1), ("beta", 1), ("alpha", 100)]


# The long poll (rules 19).


def test_the_first_poll_of_a_site_asks_at_once(world: World) -> None:
    """Work may wait from before the edge was started."""
    world.upstream.messages[NODE] = [message_body()]

    async def scenario() -> None:
        assert (await world.poll()).body == message_body()

    run(scenario)
    assert world.upstream.pulls == 1


def test_a_poll_waits_without_asking_until_its_node_has_work(sites: dict[str, Site]) -> None:
    world = World(sites, poll_seconds=5)

    async def scenario() -> None:
        first = asyncio.ensure_future(world.poll())
        await asyncio.sleep(0.3)
        assert not first.done()
        assert world.upstream.pulls == 1

        world.upstream.messages[NODE] = [message_body()]
        world.bell.ring([NODE])

        assert (await first).body == message_body()

    run(scenario)
    assert world.upstream.pulls == 2


def test_a_ring_for_another_node_wakes_nobody(sites: dict[str, Site]) -> None:
    world = World(sites, poll_seconds=2.0)

    async def scenario() -> None:
        polling = asyncio.ensure_future(world.poll())
        await asyncio.sleep(SETTLE_SECONDS)
        world.bell.ring([NODE + 1])
        await asyncio.sleep(SETTLE_SECONDS)
        assert not polling.done()
        await polling

    run(scenario)


def test_a_poll_that_gets_nothing_ends_with_one_last_question(world: World) -> None:
    async def scenario() -> None:
        assert (await world.poll()).body == EMPTY

    run(scenario)
    assert world.upstream.pulls == 2


def test_a_ring_that_was_lost_costs_time_and_no_message(world: World) -> None:
    async def scenario() -> None:
        polling = await world.waiting_poll()
        world.upstream.messages[NODE] = [message_body()]

        assert (await polling).body == message_body()

    run(scenario)


def test_a_ring_before_the_poll_is_remembered(sites: dict[str, Site]) -> None:
    world = World(sites, poll_seconds=5)

    async def scenario() -> None:
        world.upstream.messages[NODE] = [message_body("first"), message_body("second")]
        assert (await world.poll()).body == message_body("first")
        await world.takes()

        world.bell.ring([NODE])

        assert (await asyncio.wait_for(world.poll(), timeout=3)).body == message_body("second")

    run(scenario)


def test_two_messages_announced_at_once_are_both_handed_out(sites: dict[str, Site]) -> None:
    world = World(sites, poll_seconds=5)

    async def scenario() -> None:
        polling = asyncio.ensure_future(world.poll())
        await asyncio.sleep(SETTLE_SECONDS)
        world.upstream.messages[NODE] = [message_body("first"), message_body("second")]
        world.bell.ring([NODE, NODE])

        assert (await polling).body == message_body("first")
        await world.takes()
        assert (await asyncio.wait_for(world.poll(), timeout=3)).body == message_body("second")
        assert not world.bell.has_work(NODE)

    run(scenario)


def test_a_message_that_is_not_visible_yet_is_asked_for_again(sites: dict[str, Site]) -> None:
    world = World(sites, poll_seconds=5)

    async def scenario() -> None:
        polling = asyncio.ensure_future(world.poll())
        await asyncio.sleep(SETTLE_SECONDS)
        world.upstream.messages[NODE] = [message_body()]
        world.upstream.hidden_pulls = 3
        world.bell.ring([NODE])

        assert (await asyncio.wait_for(polling, timeout=4)).body == message_body()

    run(scenario)
    assert world.upstream.pulls == 1 + 3 + 1


def test_a_ring_for_nothing_is_given_up_and_the_poll_goes_on_waiting(
    sites: dict[str, Site],
) -> None:
    world = World(sites, poll_seconds=2)

    async def scenario() -> None:
        polling = asyncio.ensure_future(world.poll())
        await asyncio.sleep(SETTLE_SECONDS)
        world.bell.ring([NODE])
        await asyncio.sleep(1.2)
        asked = world.upstream.pulls
        await asyncio.sleep(0.3)

        assert not polling.done()
        assert world.upstream.pulls == asked == 1 + 6
        polling.cancel()

    run(scenario)


def test_a_site_that_polls_in_anothers_name_does_not_use_up_its_ring(
    sites: dict[str, Site],
) -> None:
    world = World(sites, poll_seconds=5)
    world.upstream.replies["pull-messages"] = FleetReply(status=401)

    async def scenario() -> None:
        await world.poll("beta", NODE)
        thief = asyncio.ensure_future(world.poll("beta", NODE))
        await asyncio.sleep(SETTLE_SECONDS)
        world.bell.ring([NODE])
        assert (await thief).status == 401

        assert world.bell.has_work(NODE)

    run(scenario)


def test_a_newer_poll_of_a_site_ends_the_older_one_without_a_question(
    sites: dict[str, Site],
) -> None:
    world = World(sites, poll_seconds=5)

    async def scenario() -> None:
        older = asyncio.ensure_future(world.poll())
        await asyncio.sleep(SETTLE_SECONDS)
        newer = asyncio.ensure_future(world.poll())
        await asyncio.sleep(SETTLE_SECONDS)
        world.upstream.messages[NODE] = [message_body()]
        world.bell.ring([NODE])

        assert (await newer).body == message_body()
        assert (await older).body == EMPTY

    run(scenario)


def test_a_message_whose_poll_went_away_goes_to_the_next_one(sites: dict[str, Site]) -> None:
    """SuperLink counts it as delivered: it would be lost."""
    world = World(sites, poll_seconds=5)
    world.upstream.messages[NODE] = [message_body()]

    async def scenario() -> None:
        world.upstream.hold = asyncio.Event()
        gone = asyncio.ensure_future(world.poll())
        await asyncio.sleep(SETTLE_SECONDS)
        gone.cancel()
        await asyncio.sleep(0)
        world.upstream.hold.set()
        world.upstream.hold = None

        assert (await asyncio.wait_for(world.poll(), timeout=3)).body == message_body()

    run(scenario)
    assert world.upstream.pulls == 1


def test_a_message_that_the_line_lost_is_handed_out_again_and_only_to_its_site(
    sites: dict[str, Site],
) -> None:
    """A link is cut as the answer leaves: SuperNode polls again without asking for its objects."""
    world = World(sites, poll_seconds=0.5)
    world.upstream.messages[NODE] = [message_body()]

    async def scenario() -> None:
        assert (await world.poll()).body == message_body()
        assert (await world.poll("beta", NODE + 1)).body == EMPTY
        await forwarded(world.edge, world.call(route="send-node-heartbeat"))

        assert (await world.poll()).body == message_body()

        await world.takes()
        assert (await world.poll()).body == EMPTY

    run(scenario)


def test_an_instruction_that_never_arrived_is_not_handed_out_when_it_is_old(
    sites: dict[str, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "REPLAY_SECONDS", 0.1)
    world = World(sites, poll_seconds=0.5)
    world.upstream.messages[NODE] = [message_body()]

    async def scenario() -> None:
        assert (await world.poll()).body == message_body()
        await asyncio.sleep(0.2)

        assert (await world.poll()).body == EMPTY

    run(scenario)


def test_a_site_revoked_while_its_poll_is_open_gets_no_message(sites: dict[str, Site]) -> None:
    world = World(sites, poll_seconds=5)

    async def scenario() -> None:
        polling = asyncio.ensure_future(world.poll())
        await asyncio.sleep(SETTLE_SECONDS)
        world.roster.revoke(SiteId("alpha"))
        world.upstream.messages[NODE] = [message_body()]
        world.bell.ring([NODE])

        with pytest.raises(CallRefused) as caught:
            await polling
        assert caught.value.refusal is Refusal.SITE_REVOKED

    run(scenario)
    assert world.upstream.messages[NODE] == [message_body()]


# Handshake lines.


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "PEER_DID_NOT_RETURN_A_CERTIFICATE: Invalid certificate verification context",
            "no-certificate",
        ),
        ("CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate", "unknown-authority"),
        ("CERTIFICATE_VERIFY_FAILED: certificate has expired", "certificate-expired"),
        ("CERTIFICATE_VERIFY_FAILED: certificate is not yet valid", "certificate-not-yet-valid"),
        ("CERTIFICATE_VERIFY_FAILED: unsupported certificate purpose", "certificate-purpose"),
        ("NO_SHARED_CIPHER: Invalid certificate verification context", "tls-version"),
        ("WRONG_VERSION_NUMBER: Invalid certificate verification context", "handshake"),
    ],
)
def test_grpcs_line_on_a_refused_handshake_is_understood(line: str, expected: str) -> None:
    """The lines themselves are held against grpc by tests/security/test_channel.py."""
    full = (
        "I1120 16:05:55.8 6729 ssl_transport_security.cc:2563] Handshake failed with error "
        f"SSL_ERROR_SSL: error:100000c0:SSL routines:OPENSSL_internal:{line}\n"
    )

    assert read_refusal(full.encode()) == expected


def test_another_line_is_no_refusal() -> None:
    assert read_refusal(b'{"event": "edge.refused", "reason": "Handshake"}\n') is None


def test_the_watch_passes_other_lines_on_and_reports_the_rest() -> None:
    code = (
        "import os, sys\n"
        "from fedward_server.edge.handshakes import HandshakeWatch\n"
        "watch = HandshakeWatch(lambda refusal: print(refusal.value), expected=1).start()\n"
        "line = b'Handshake failed with error SSL_ERROR_SSL: error:1:a:b:NO_SHARED_CIPHER: c\\n'\n"
        "os.write(2, b'before\\n' + line + line + b'after\\n')\n"
        "assert watch.saw_expected(seconds=5)\n"
        "watch.stop()\n"
        "os.write(2, b'own again\\n')\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30
    )

    assert done.stdout == "tls-version\n"
    assert done.stderr == "before\nafter\nown again\n"


def test_a_log_that_cannot_be_written_does_not_end_the_watch() -> None:
    """A full disk: without a reader, every later line on stderr would be an error of the edge."""
    code = (
        "import os\n"
        "from fedward_common.errors import LedgerError\n"
        "from fedward_server.edge.handshakes import HandshakeWatch\n"
        "def full(refusal):\n"
        "    raise LedgerError('no space')\n"
        "watch = HandshakeWatch(full).start()\n"
        "line = b'Handshake failed with error SSL_ERROR_SSL: error:1:a:b:NO_SHARED_CIPHER: c\\n'\n"
        "os.write(2, line)\n"
        "os.write(2, b'after\\n')\n"
        "watch.stop()\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30
    )

    assert done.stderr == f"handshake.not-logged tls-version {LedgerError.code}\nafter\n"


# Kicks.


def test_a_kick_rings_for_its_nodes(tmp_path: Path) -> None:
    async def scenario() -> None:
        bell = WorkBell()
        server = KickServer(path=tmp_path / "run" / "edge.sock", bell=bell, replies=ReplyWatch())
        await server.start()
        mode = stat.S_IMODE((tmp_path / "run" / "edge.sock").stat().st_mode)

        heard = await asyncio.to_thread(kick, tmp_path / "run" / "edge.sock", [3, 2**64 - 1])

        assert heard
        assert mode == 0o600
        assert bell.has_work(3)
        assert bell.has_work(2**64 - 1)
        await server.stop()
        assert not (tmp_path / "run" / "edge.sock").exists()

    run(scenario)


def test_a_kick_that_nobody_hears_is_false_and_no_error(tmp_path: Path) -> None:
    assert kick(tmp_path / "edge.sock", [1]) is False


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"no json",
        b"[1]",
        b'{"nodes": 1}',
        b'{"nodes": ["1"]}',
        b'{"nodes": [true]}',
        b'{"nodes": [-1]}',
        b'{"nodes": [18446744073709551616]}',
        b'{"nodes": [1], "more": 1}',
        b"[" * 100_000,
    ],
)
def test_a_line_of_another_form_rings_for_nobody(line: bytes) -> None:
    with pytest.raises(ProtocolError, match="kick: expected"):
        parse_kick(line)


def test_a_socket_left_by_a_killed_edge_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "edge.sock"

    async def scenario() -> None:
        path.touch()
        server = KickServer(path=path, bell=WorkBell(), replies=ReplyWatch())
        await server.start()
        assert await asyncio.to_thread(kick, path, [1])
        await server.stop()

    run(scenario)


# Renewal.


def renewed(world: World, authority: Authority) -> bytes:
    """A further certificate of alpha that the registry has and the site has not used yet."""
    pem = authority.site_identity("alpha").certificate_pem
    peer = parse_peer_certificate(pem)
    world.roster.renew(
        SiteId("alpha"),
        CertificateRecord(
            certificate_sha256=Digest(peer.fingerprint_sha256),
            key_sha256=Digest("a" * 64),
            chain_pem=pem,
            issued_at=world.time.time,
            not_before=peer.not_before,
            not_after=peer.not_after,
        ),
    )
    return pem


def test_both_certificates_pass_until_the_new_one_was_shown(
    world: World, authority: Authority
) -> None:
    new = renewed(world, authority)

    assert asyncio.run(forwarded(world.edge, world.call())).status == 200
    assert asyncio.run(forwarded(world.edge, world.call(certificate_pem=new))).status == 200
    assert refusal(world, world.call()) is Refusal.CERTIFICATE_NOT_CURRENT
    assert asyncio.run(forwarded(world.edge, world.call(certificate_pem=new))).status == 200


def test_each_certificate_that_a_site_shows_is_a_line_of_the_log(
    world: World, authority: Authority
) -> None:
    new = renewed(world, authority)
    asyncio.run(forwarded(world.edge, world.call()))
    asyncio.run(forwarded(world.edge, world.call(certificate_pem=new)))

    shown = [fields["certificate_sha256"] for fields in world.events.of("edge.site-connected")]
    assert shown == [certificate_sha256(world.call().certificate_pem), certificate_sha256(new)]


def test_a_revocation_ends_both_certificates_of_an_overlap(
    world: World, authority: Authority
) -> None:
    new = renewed(world, authority)

    world.roster.revoke(SiteId("alpha"))

    assert refusal(world, world.call()) is Refusal.SITE_REVOKED
    assert refusal(world, world.call(certificate_pem=new)) is Refusal.SITE_REVOKED


# What is read of whom.


def test_nothing_of_a_call_is_read_for_who_is_no_member(world: World) -> None:
    """A revoked certificate must not make the edge wait for, or take in, 16 MiB."""
    world.roster.revoke(SiteId("alpha"))
    asked: list[str] = []

    async def read() -> Call:
        asked.append("read")
        return world.call()

    with pytest.raises(CallRefused):
        asyncio.run(world.edge.forward(world.call().certificate_pem, read))
    assert asked == []
