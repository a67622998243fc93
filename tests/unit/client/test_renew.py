"""Renewal and Hello: when, in which order, what is written down, what happens when they fail."""

import asyncio
import hashlib
import ssl
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
import structlog
from structlog.testing import capture_logs

from fedward_client.adapters.tls_pair import SiteIdentity, TlsPair
from fedward_client.gateway.channel import EdgeChannel
from fedward_client.gateway.greeting import Greeting, own_versions
from fedward_client.gateway.upkeep import Upkeep
from fedward_client.peer import Target, look, proven_sha256
from fedward_client.ports import Passing
from fedward_client.renew import Backoff, renewal_due, renewal_moment
from fedward_common.canonical import sha256_hex
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.doctor import IdentityFiles
from fedward_common.errors import ChannelError, StartError
from fedward_common.ids import SiteId
from fedward_common.log.fields import checked
from fedward_common.trust.certificates import issue_site, parse_peer_certificate
from tests.support.coordinator import Coordinator, coordinator
from tests.support.pki import Authority, now, write_identity
from tests.support.unreadable import spoiled_certificate

T = TypeVar("T")
ALPHA = SiteId("alpha")
DAY = timedelta(days=1)


def run(scenario: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(scenario, timeout=30))


@dataclass
class FakeJournal:
    """Implements `ObjectJournal` in memory."""

    entries: list[Passing] = field(default_factory=list)
    gone: bool = False

    def journal(self, passing: Passing) -> None:
        if self.gone:
            raise StartError("guard: expected it to answer, found nobody")
        self.entries.append(passing)

    def kinds(self) -> list[tuple[str, str]]:
        return [(entry.direction, entry.kind) for entry in self.entries]


@dataclass
class FakeChannel:
    """Implements `SiteChannel`: a coordinator that signs, by an authority that a test chose."""

    authority: Authority
    clock: Callable[[], datetime]
    site: str = "alpha"
    lifetime: timedelta = 90 * DAY
    greeting: Greeting = field(
        default_factory=lambda: Greeting(versions={}, skew_seconds=0.0, revoked=())
    )
    error: ChannelError | None = None
    asked: list[bytes] = field(default_factory=list)
    greeted: int = 0
    reconnected: int = 0
    edge_certificate_sha256: str = ""

    async def hello(self, versions: Mapping[str, str]) -> Greeting:
        del versions
        self.greeted += 1
        if self.error is not None:
            raise self.error
        return self.greeting

    async def renew(self, request_pem: bytes) -> bytes:
        self.asked.append(request_pem)
        if self.error is not None:
            raise self.error
        return issue_site(
            self.authority.issuing,
            request_pem,
            federation=self.authority.federation,
            site=SiteId(self.site),
            now=self.clock(),
            lifetime=self.lifetime,
        )

    def reconnect(self) -> None:
        self.reconnected += 1


@dataclass
class Station:
    """A gateway's upkeep with everything around it in memory, but its files."""

    folder: Path
    authority: Authority
    upkeep: Upkeep
    channel: FakeChannel
    journal: FakeJournal
    pair: TlsPair
    time: list[datetime]

    def after(self, passed: timedelta) -> list[Any]:
        """What it logs when it does what is due that much later."""
        self.time[0] += passed
        with capture_logs() as logs:
            run(self.upkeep.tick())
        for entry in logs:
            checked({k: v for k, v in entry.items() if k not in ("event", "log_level")})
        return logs


@pytest.fixture
def station(tmp_path: Path) -> Station:
    structlog.reset_defaults()
    authority, time = Authority(), [now()]
    write_identity(tmp_path, "tls", authority.site_identity(ALPHA), authority.root)
    pair = TlsPair(certificate=tmp_path / "tls.pem", key=tmp_path / "tls.key")
    channel = FakeChannel(authority, clock=lambda: time[0])
    journal = FakeJournal()
    upkeep = Upkeep(
        channel=channel,
        journal=journal,
        pair=pair,
        ca=tmp_path / "root.pem",
        versions={"flwr": "1.41.0", "fedward-common": "0.1.0"},
        clock=lambda: time[0],
        edge_certificate=lambda: "e" * 64,
    )
    return Station(tmp_path, authority, upkeep, channel, journal, pair, time)


def events(logs: list[Any]) -> list[str]:
    return [entry["event"] for entry in logs]


def test_a_certificate_is_due_at_two_thirds_of_its_life(station: Station) -> None:
    own = parse_peer_certificate(station.pair.certificate.read_bytes())

    assert timedelta(days=29) < own.not_after - renewal_moment(own) < timedelta(days=31)
    assert not renewal_due(own, renewal_moment(own) - timedelta(seconds=1))
    assert renewal_due(own, renewal_moment(own))


def test_before_that_nothing_is_asked_and_at_it_a_new_pair_is_in_place(station: Station) -> None:
    before = station.pair.identity()
    for _ in range(59):
        station.after(DAY)
    assert station.channel.asked == []

    logs = station.after(2 * DAY)

    after = station.pair.identity()
    assert events(logs)[-1] == "gateway.renewed"
    assert after.key_pem != before.key_pem
    assert parse_peer_certificate(after.certificate_pem).not_after > station.time[0] + 89 * DAY
    assert station.channel.reconnected == 1
    station.after(DAY)
    assert len(station.channel.asked) == 1


def test_request_and_certificate_are_in_the_journal_with_their_digests(station: Station) -> None:
    station.after(61 * DAY)

    (request,) = station.channel.asked
    chain = station.pair.certificate.read_bytes()
    assert [(e.direction, e.kind, e.sha256, e.bytes) for e in station.journal.entries[1:]] == [
        ("out", "certificate-request", sha256_hex(request), len(request)),
        ("in", "certificate", sha256_hex(chain), len(chain)),
    ]


def test_without_the_guard_nothing_leaves(station: Station) -> None:
    station.journal.gone = True

    logs = station.after(61 * DAY)

    assert events(logs) == ["gateway.hello-failed", "gateway.renewal-failed"]
    assert (station.channel.greeted, station.channel.asked) == (0, [])


def test_a_failure_is_logged_and_tried_again_later_and_later(station: Station) -> None:
    before = station.pair.identity()
    station.channel.error = ChannelError("coordinator: down")

    pauses = []
    station.time[0] += 61 * DAY
    for _ in range(8):
        (entry,) = [e for e in station.after(timedelta(0)) if e["event"].startswith("gateway.ren")]
        pauses.append(entry["seconds"])
        assert station.after(timedelta(seconds=entry["seconds"] - 1)) == []
        station.time[0] += timedelta(seconds=1)
    station.channel.error = None

    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert station.pair.identity() == before
    assert "gateway.renewed" in events(station.after(timedelta(hours=1)))
    assert len(set(station.channel.asked)) == 9


def test_a_lost_answer_does_not_lose_the_key_that_was_signed(station: Station) -> None:
    """One key for all attempts: any of the certificates fits it."""
    station.channel.error = ChannelError("coordinator: the answer was lost")
    station.after(61 * DAY)
    waiting = station.pair.next_key.read_bytes()
    station.channel.error = None

    station.after(timedelta(minutes=2))

    assert station.pair.key.read_bytes() == waiting


@pytest.mark.parametrize(
    "fault", ["another root", "another site", "not longer", "over", "bytes", "unreadable"]
)
def test_a_certificate_that_would_not_pass_is_not_put_in_place(
    station: Station, fault: str
) -> None:
    before = station.pair.identity()
    match fault:
        case "another root":
            station.channel.authority = Authority()
        case "another site":
            station.channel.site = "beta"
        case "not longer":
            station.channel.lifetime = timedelta(hours=1)
        case "over":
            station.channel.clock = lambda: station.time[0] - 200 * DAY
        case "bytes":

            async def renew(request_pem: bytes) -> bytes:
                return b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"

            station.channel.renew = renew  # type: ignore[method-assign]
        case "unreadable":
            spoiled = spoiled_certificate(before.certificate_pem, "version")

            async def spoil(request_pem: bytes) -> bytes:
                return 2 * spoiled

            station.channel.renew = spoil  # type: ignore[method-assign]

    logs = station.after(61 * DAY)

    assert events(logs)[-1] == "gateway.renewal-failed"
    assert station.pair.identity() == before
    assert station.channel.reconnected == 0


def test_a_folder_that_the_gateway_may_not_write_is_a_logged_failure(station: Station) -> None:
    def refuse(common_name: str) -> bytes:
        raise PermissionError(13, "Permission denied", common_name)

    station.upkeep._pair = _Refusing(station.pair, refuse)  # type: ignore[assignment]

    logs = station.after(61 * DAY)

    assert logs[-1]["event"] == "gateway.renewal-failed"
    assert logs[-1]["code"] == "PermissionError"


@dataclass
class _Refusing:
    """A pair whose folder is read-only: root, who runs tests, may write everywhere."""

    pair: TlsPair
    prepare: Callable[[str], bytes]

    @property
    def certificate(self) -> Path:
        return self.pair.certificate


def test_hello_is_asked_at_the_start_and_every_hour(station: Station) -> None:
    for minutes in (0, 30, 29, 2, 60):
        station.after(timedelta(minutes=minutes))

    assert station.channel.greeted == 3
    assert station.journal.kinds() == [("out", "hello")] * 3


def test_the_edges_certificate_is_known_for_the_journal_after_hello(station: Station) -> None:
    assert station.channel.edge_certificate_sha256 == ""

    station.after(timedelta(0))

    assert station.channel.edge_certificate_sha256 == "e" * 64


def test_the_certificate_of_the_real_edge_is_proven_or_unknown(tmp_path: Path) -> None:
    with coordinator() as far:
        write_identity(tmp_path, "tls", far.authority.site_identity(ALPHA), far.authority.root)
        files = IdentityFiles(
            certificate=tmp_path / "tls.pem", key=tmp_path / "tls.key", root=tmp_path / "root.pem"
        )
        target = Target.of(far.address, far.name)
        (shown, *_) = look(target, None).chain
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(shown.decode())).hexdigest()

        assert proven_sha256(target, None, files) == digest
        files.root.write_bytes(Authority().root.certificate_pem)
        assert proven_sha256(target, None, files) == ""


def test_skew_other_versions_and_revoked_members_are_logged_once_each(station: Station) -> None:
    station.channel.greeting = Greeting(
        versions={"flwr": "1.42.0", "fedward-common": "0.1.0"},
        skew_seconds=-400.0,
        revoked=("beta",),
    )

    first, second = station.after(timedelta(0)), station.after(timedelta(hours=1))

    assert [(e["event"], e.get("kind"), e.get("sites")) for e in first] == [
        ("gateway.clock-skew", None, None),
        ("gateway.version-differs", "flwr", None),
        ("gateway.members-revoked", None, ["beta"]),
    ]
    assert first[0]["seconds"] == -400.0
    assert "gateway.members-revoked" not in events(second)
    assert station.journal.kinds() == [("out", "hello"), ("in", "revocation"), ("out", "hello")]


def test_a_refusal_of_the_coordinator_is_in_the_log_by_its_word(station: Station) -> None:
    station.channel.error = CallRefused(Refusal.SITE_REVOKED, "the coordinator revoked this site")

    (entry,) = station.after(timedelta(0))

    assert entry["event"] == "gateway.hello-failed"
    assert "site-revoked" in entry["reason"]


def test_what_a_coordinator_says_of_itself_is_kept_only_in_its_form() -> None:
    greeting = Greeting.of(
        versions={"flwr": "1.41.0", "grpcio": "x\n[evil]", "unknown": "1"},
        time=105.0,
        revoked=["beta", "no such\nid", "beta"],
        asked_at=99.0,
        answered_at=101.0,
    )

    assert greeting == Greeting(versions={"flwr": "1.41.0"}, skew_seconds=5.0, revoked=("beta",))


def test_a_site_tells_four_versions_and_no_more() -> None:
    assert set(own_versions()) == {"fedward-client", "fedward-common", "flwr", "grpcio"}


def test_a_pause_never_grows_beyond_an_hour() -> None:
    backoff = Backoff()
    pauses = [backoff.failed() for _ in range(100)]
    backoff.worked()

    assert max(pauses) == timedelta(hours=1)
    assert backoff.failed() == timedelta(minutes=1)


def _near(far: Coordinator, folder: Path) -> tuple[EdgeChannel, TlsPair]:
    pair = TlsPair(certificate=folder / "tls.pem", key=folder / "tls.key")
    channel = EdgeChannel(
        coordinator=far.address,
        server_name=None,
        tls=SiteIdentity(pair=pair, ca=folder / "root.pem"),
    )
    return channel, pair


def test_a_call_under_way_is_not_interrupted_by_a_renewal_over_the_real_channel(
    tmp_path: Path,
) -> None:
    """The open call ends on the connection it began on; the next has the new certificate."""

    async def scenario(far: Coordinator) -> bytes:
        channel, pair = _near(far, tmp_path)
        upkeep = Upkeep(
            channel=channel,
            journal=FakeJournal(),
            pair=pair,
            ca=tmp_path / "root.pem",
            versions=own_versions(),
            clock=now,
            edge_certificate=lambda: "",
        )
        far.delay_seconds = 1.5
        open_call = asyncio.create_task(channel.forward("pull-messages", {}, b"poll"))
        while not far.certificates:
            await asyncio.sleep(0.01)
        await upkeep.tick()
        far.delay_seconds = 0.0
        await channel.forward("get-run", {}, b"next")
        answer = await open_call
        await channel.close()
        return answer.body

    with coordinator() as far:
        due = far.authority.site_identity(ALPHA, at=now() - 61 * DAY)
        write_identity(tmp_path, "tls", due, far.authority.root)
        old = parse_peer_certificate((tmp_path / "tls.pem").read_bytes()).fingerprint_sha256
        body = run(scenario(far))
        new = parse_peer_certificate((tmp_path / "tls.pem").read_bytes()).fingerprint_sha256

    assert body == b"answer to poll"
    assert new != old
    assert far.certificates == [old, old, old, new]
    assert len(far.renewals) == 1


def test_hello_over_the_real_channel_measures_the_coordinators_clock(tmp_path: Path) -> None:
    async def ask(far: Coordinator) -> Greeting:
        channel, _ = _near(far, tmp_path)
        try:
            return await channel.hello(own_versions())
        finally:
            await channel.close()

    with coordinator(ahead=timedelta(hours=2), revoked=["beta"]) as far:
        write_identity(tmp_path, "tls", far.authority.site_identity(ALPHA), far.authority.root)
        greeting = run(ask(far))

    assert abs(greeting.skew_seconds - 7200) < 30
    assert greeting.revoked == ("beta",)
    assert far.heard == [own_versions()]


def refused_hello(far: Coordinator, folder: Path) -> Refusal:
    """Why this site's Hello over the real channel is refused."""

    async def ask() -> Greeting:
        channel, _ = _near(far, folder)
        try:
            return await channel.hello({})
        finally:
            await channel.close()

    with pytest.raises(CallRefused) as raised:
        run(ask())
    return raised.value.refusal


@pytest.mark.parametrize(
    ("starts", "refusal"),
    [
        (timedelta(days=-100), Refusal.CERTIFICATE_EXPIRED),
        (timedelta(days=100), Refusal.CERTIFICATE_NOT_YET_VALID),
    ],
)
def test_an_own_certificate_that_is_not_valid_now_is_named(
    tmp_path: Path, starts: timedelta, refusal: Refusal
) -> None:
    with coordinator() as far:
        identity = far.authority.site_identity(ALPHA, at=now() + starts)
        write_identity(tmp_path, "tls", identity, far.authority.root)

        assert refused_hello(far, tmp_path) is refusal


def test_an_own_certificate_of_another_authority_is_named(tmp_path: Path) -> None:
    with coordinator() as far:
        foreign = Authority().site_identity(ALPHA)
        write_identity(tmp_path, "tls", foreign, far.authority.root)

        assert refused_hello(far, tmp_path) is Refusal.UNKNOWN_AUTHORITY


def test_a_revoked_site_hears_so(tmp_path: Path) -> None:
    with coordinator(refusal="site-revoked") as far:
        write_identity(tmp_path, "tls", far.authority.site_identity(ALPHA), far.authority.root)

        assert refused_hello(far, tmp_path) is Refusal.SITE_REVOKED


def test_a_coordinator_under_another_root_is_refused_in_one_sentence(tmp_path: Path) -> None:
    ours = Authority()
    write_identity(tmp_path, "tls", ours.site_identity(ALPHA), ours.root)

    async def ask(far: Coordinator) -> Greeting:
        channel, _ = _near(far, tmp_path)
        try:
            return await channel.hello({})
        finally:
            await channel.close()

    with (
        coordinator() as far,
        pytest.raises(ChannelError, match="under the pinned root, found one of somebody else"),
    ):
        run(ask(far))
    assert far.heard == []


@pytest.mark.parametrize(("days", "text"), [(-200, "has ended"), (9, "not valid yet")])
def test_a_coordinators_certificate_that_is_not_valid_now_is_named(
    tmp_path: Path, days: int, text: str
) -> None:
    with coordinator(shown_shift=timedelta(days=days)) as far:
        write_identity(tmp_path, "tls", far.authority.site_identity(ALPHA), far.authority.root)

        async def ask() -> Greeting:
            channel, _ = _near(far, tmp_path)
            try:
                return await channel.hello({})
            finally:
                await channel.close()

        with pytest.raises(ChannelError, match=text):
            run(ask())
