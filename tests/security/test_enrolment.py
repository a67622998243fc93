"""Attacks on enrolment, with the real listener in its own process.

Each attack is refused with its own word, each leaves its line in a log, the good site gets in.
"""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedward_common.channel import channel_pb2 as wire
from fedward_common.channel.refusals import Refusal
from fedward_common.ids import SiteId
from fedward_common.processes import port_open
from fedward_common.trust.certificates import new_request
from fedward_common.trust.chains import spki_sha256
from fedward_common.trust.enrolment import MAX_REQUEST_BYTES, Grant
from fedward_server.enrolment_rules import EnrolmentRefused
from fedward_server.site_commands import (
    deny_site,
    export_grant,
    grant_site,
    import_request,
    list_sites,
    review_site,
    revoke_site,
)
from tests.support.edge_process import wait_until
from tests.support.enrolling import NewSite, some_invite
from tests.support.enrolment_process import Listener, patient, running_listener, served_chain
from tests.support.pki import Authority, now


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listener]:
    with running_listener(tmp_path_factory.mktemp("hub")) as running:
        yield running


_number = iter(range(1000))


def new_site() -> NewSite:
    """A site that nobody met before."""
    return NewSite(site=SiteId(f"site-{next(_number)}"))


def submitted(hub: Listener, token: str, data: bytes) -> str:
    """The word with which the listener answers; "" when it takes the request."""
    return hub.submit(token, data).error_code


def refused(step: Callable[[], object]) -> Refusal:
    with pytest.raises(EnrolmentRefused) as caught:
        step()
    return caught.value.refusal


def test_a_hospital_joins(hub: Listener) -> None:
    site = new_site()
    invite, request = hub.invite(site.site), site.request()

    taken = hub.submit(invite.token, request.canonical)
    waiting = hub.fetch(site, request)
    words = review_site(hub.settings, site.site)["words"]
    hub.grant(site.site)
    answer = hub.fetch(site, request)

    granted = Grant.parse(answer.grant)
    peer = granted.verify(request, root_sha256=invite.root_sha256, now=now())
    record = hub.registry.find(site.site)
    assert taken.request_sha256 == request.sha256
    assert (waiting.status, answer.status) == ("waiting", "granted")
    assert words == request.fingerprint_words
    assert record is not None
    assert record.certificate_sha256 == peer.fingerprint_sha256
    assert granted.edge_address == hub.settings.address
    for action in ("site.invited", "site.requested", "site.granted", "site.answered"):
        assert hub.logged(action, site=site.site)


def test_a_hospital_without_a_network_joins_by_two_files(hub: Listener, tmp_path: Path) -> None:
    site = new_site()
    invite = hub.invite(site.site)
    carried = site.carried(invite)
    (tmp_path / "request.json").write_bytes(carried.canonical)

    import_request(hub.settings, tmp_path / "request.json")
    hub.grant(site.site)
    export_grant(hub.settings, site.site, tmp_path / "grant.json")

    granted = Grant.parse((tmp_path / "grant.json").read_bytes())
    assert granted.verify(carried.request, root_sha256=invite.root_sha256, now=now())
    assert hub.logged("site.exported", site=site.site)


def test_a_forged_token_is_refused(hub: Listener) -> None:
    hub.invite("somebody")
    site = new_site()

    assert submitted(hub, "ab" * 32, site.request().canonical) == "invite-unknown"
    assert hub.logged("enrolment.refused", code="invite-unknown", route="submit")


def test_a_replayed_token_is_refused_and_names_the_invited_site(hub: Listener) -> None:
    site, thief = new_site(), new_site()
    invite = hub.invite(site.site)
    thief.site = site.site

    first = submitted(hub, invite.token, thief.request().canonical)
    second = submitted(hub, invite.token, site.request().canonical)

    assert (first, second) == ("", "invite-used")
    assert hub.logged("enrolment.refused", code="invite-used", site=site.site)


def test_a_stolen_invite_shows_in_the_words(hub: Listener) -> None:
    """The thief was first. The hospital's people read other words, and nobody may grant."""
    site, thief = new_site(), new_site()
    thief.site = site.site
    invite, own = hub.invite(site.site), site.request()
    assert submitted(hub, invite.token, thief.request().canonical) == ""

    with pytest.raises(Exception, match="someone else may have used the invite"):
        grant_site(hub.settings, site.site, hub.operator("Ada"), compared=own.fingerprint_words)
    deny_site(hub.settings, site.site, hub.operator("Ada"))

    assert hub.registry.find(site.site) is None
    assert hub.logged("site.denied", site=site.site)


def test_an_expired_token_is_refused(hub: Listener) -> None:
    site = new_site()
    invite = hub.invite(site.site)
    record = hub.registry.book.find_invite(invite.token_sha256)
    assert record is not None
    stale = some_invite(site.site)
    hub.registry.book.add_invite(
        type(record)(
            token_sha256=stale.token_sha256,
            proof_public_key=stale.proof_public_key,
            site=site.site,
            created_at=now() - timedelta(hours=25),
            expires_at=now() - timedelta(hours=1),
        )
    )

    assert submitted(hub, stale.token, site.request().canonical) == "invite-expired"
    assert hub.logged("enrolment.refused", code="invite-expired", site=site.site)


def test_a_request_with_a_proof_by_another_key_is_refused(hub: Listener) -> None:
    site, other = new_site(), new_site()
    invite = hub.invite(site.site)
    forged = site.request(node_public_key=other.node.header)

    assert submitted(hub, invite.token, forged.canonical) == "proof"
    assert hub.logged("enrolment.refused", code="proof", site=site.site)


def test_a_foreign_certificate_request_is_refused(hub: Listener) -> None:
    """Another site's, copied from the wire or from a repository."""
    site = new_site()
    invite = hub.invite(site.site)
    forged = site.request(tls_csr_pem=new_request("theirs").request_pem)

    assert submitted(hub, invite.token, forged.canonical) == "proof"
    assert hub.logged("enrolment.refused", code="proof", site=site.site)


def test_a_request_for_another_site_than_the_invites_is_refused(hub: Listener) -> None:
    site, other = new_site(), new_site()
    invite = hub.invite(site.site)

    assert submitted(hub, invite.token, other.request().canonical) == "other-site"
    assert hub.logged("enrolment.refused", code="other-site", site=site.site)


def test_the_keys_of_a_member_do_not_enrol_again(hub: Listener) -> None:
    member, twin = new_site(), new_site()
    assert submitted(hub, hub.invite(member.site).token, member.request().canonical) == ""
    hub.grant(member.site)
    twin.signing = member.signing

    assert submitted(hub, hub.invite(twin.site).token, twin.request().canonical) == "key-reused"
    assert hub.logged("enrolment.refused", code="key-reused", site=twin.site)


def test_a_site_is_not_granted_twice(hub: Listener) -> None:
    site = new_site()
    assert submitted(hub, hub.invite(site.site).token, site.request().canonical) == ""
    heard = review_site(hub.settings, site.site)["words"]
    hub.grant(site.site)

    word = refused(lambda: grant_site(hub.settings, site.site, hub.operator("Ada"), compared=heard))

    again = refused(lambda: hub.invite(site.site))
    assert word is Refusal.REQUEST_UNKNOWN
    assert again is Refusal.ALREADY_ENROLLED
    assert hub.logged("site.refused", code="already-enrolled", site=site.site)


def test_one_operator_does_not_grant_twice(hub: Listener) -> None:
    site = new_site()
    assert submitted(hub, hub.invite(site.site).token, site.request().canonical) == ""
    heard = review_site(hub.settings, site.site)["words"]

    def grant() -> dict[str, Any]:
        return grant_site(hub.settings, site.site, hub.operator("Ada"), compared=heard)

    first = grant()
    word = refused(grant)

    assert first["status"] == "waiting"
    assert word is Refusal.OPERATOR_TWICE
    assert hub.registry.find(site.site) is None
    assert hub.logged("site.refused", code="operator-twice", site=site.site)


def test_a_revocation_is_listed_and_logged(hub: Listener) -> None:
    site = new_site()
    assert submitted(hub, hub.invite(site.site).token, site.request().canonical) == ""
    hub.grant(site.site)

    revoke_site(hub.settings, site.site, hub.operator("Ben"))

    listed = {entry["site"]: entry["status"] for entry in list_sites(hub.settings)}
    assert listed[site.site] == "revoked"
    assert site.site in hub.registry.revoked_sites()
    assert hub.logged("site.revoked", site=site.site)
    assert (
        refused(lambda: revoke_site(hub.settings, site.site, hub.operator("Ben")))
        is Refusal.SITE_REVOKED
    )


def test_a_fetch_by_another_key_is_refused(hub: Listener) -> None:
    site, thief = new_site(), new_site()
    request = site.request()
    assert submitted(hub, hub.invite(site.site).token, request.canonical) == ""

    answer = hub.fetch(thief, request)

    assert (answer.error_code, answer.status, answer.grant) == ("fetch-signature", "", b"")
    assert hub.logged("enrolment.refused", code="fetch-signature", site=site.site, route="fetch")


def test_a_fetch_that_was_recorded_is_refused_later(hub: Listener) -> None:
    site = new_site()
    request = site.request()
    assert submitted(hub, hub.invite(site.site).token, request.canonical) == ""

    answer = hub.fetch(site, request, at=int(now().timestamp()) - 600)

    assert answer.error_code == "fetch-time"
    assert hub.logged("enrolment.refused", code="fetch-time", site=site.site)


def test_a_request_over_64_kib_is_refused(hub: Listener) -> None:
    token = hub.invite(new_site().site).token

    assert submitted(hub, token, bytes(MAX_REQUEST_BYTES + 1)) == "body-too-large"
    assert hub.logged("enrolment.refused", code="body-too-large", route="submit")


def test_200_mb_are_not_read(hub: Listener) -> None:
    token = hub.invite(new_site().site).token

    with pytest.raises(grpc.RpcError) as caught:
        submitted(hub, token, bytes(200_000_000))
    assert caught.value.code() in (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAVAILABLE,
    )
    assert hub.logged("enrolment.refused", code="body-too-large", route="submit")


def test_a_flood_of_tokens_is_slowed_down_and_fills_no_log(hub: Listener) -> None:
    hub.invite(new_site().site)
    before, said = len(hub.settings.enrolment_log.read_bytes()), hub.output()

    with hub.stub() as stub:
        words = [
            stub.Submit(wire.SubmitRequest(token=f"{n:064x}"), timeout=10).error_code
            for n in range(100)
        ]

    assert words.count("rate") >= 80
    assert hub.logged("enrolment.refused", code="rate")
    assert len(hub.settings.enrolment_log.read_bytes()) - before < 4000
    assert hub.output().removeprefix(said).count("enrolment.refused") < 10


def test_bytes_that_are_no_message_are_refused_by_their_word(hub: Listener) -> None:
    """Not answered by a traceback: strangers would write those into a file that nothing rotates."""
    hub.invite(new_site().site)

    with hub.channel() as channel:
        submit = channel.unary_unary(
            "/fedward.channel.v1.FedwardEnrolment/Submit",
            response_deserializer=wire.SubmitReply.FromString,
        )
        word = patient(lambda: submit(b"\xff" * 64, timeout=10)).error_code

    assert word == "malformed"
    assert hub.logged("enrolment.refused", code="malformed", route="submit")
    assert "Traceback" not in hub.output()


def test_the_listener_shows_the_pinned_root_and_nothing_else_passes_for_it(hub: Listener) -> None:
    invite = hub.invite(new_site().site)

    chain = served_chain(hub.port)

    pins = [spki_sha256(ssl.DER_cert_to_PEM_cert(der).encode()) for der in chain]
    assert len(chain) == 3
    assert pins[-1] == invite.root_sha256
    with pytest.raises(grpc.RpcError) as caught:
        hub.submit(invite.token, b"", root_pem=Authority().root.certificate_pem)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def unchecked_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def test_tls_1_2_is_refused(hub: Listener) -> None:
    hub.invite(new_site().site)
    context = unchecked_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    with (
        pytest.raises(ssl.SSLError),
        socket.create_connection(("127.0.0.1", hub.port), timeout=5) as connection,
    ):
        context.wrap_socket(connection)
    assert hub.logged("enrolment.handshake-refused", code="tls-version")


@pytest.mark.parametrize("service", ["FedwardChannel/Forward", "FedwardSite/Renew"])
def test_no_other_method_answers_here(hub: Listener, service: str) -> None:
    hub.invite(new_site().site)
    credentials = grpc.ssl_channel_credentials(hub.root_pem)

    with (
        grpc.secure_channel(f"localhost:{hub.port}", credentials) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.unary_unary(f"/fedward.channel.v1.{service}")(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_slow_peers_are_cut_off_while_a_good_site_gets_in(hub: Listener) -> None:
    """40 that never say hello, 40 that stop after the handshake, 40 that dribble a request.

    All from one other address: a site behind the same address would have to wait for them.
    """
    site = new_site()
    invite = hub.invite(site.site)
    context = unchecked_context()

    def connect(_: int) -> socket.socket:
        return socket.create_connection(
            ("127.0.0.1", hub.port), timeout=30, source_address=("127.0.0.2", 0)
        )

    def handshake(_: int) -> ssl.SSLSocket:
        return context.wrap_socket(connect(_))

    silent = [connect(n) for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        stopped = list(pool.map(handshake, range(40)))
        dribbling = list(pool.map(handshake, range(40)))
    for one in dribbling:
        one.sendall(SLOW_SUBMIT)
    thread = threading.Thread(target=dribble, args=(dribbling,))
    thread.start()

    word = submitted(hub, invite.token, site.request().canonical)
    closed = [ended(one, seconds=25) for one in (*silent, *stopped, *dribbling)]
    thread.join()

    assert word == ""
    assert all(closed)
    assert hub.logged("enrolment.refused", code="slow", route="submit")
    assert hub.logged("enrolment.refused", code="rate", route="submit")


def frame(kind: int, stream: int, payload: bytes, *, length: int | None = None) -> bytes:
    """An HTTP/2 frame; a HEADERS frame (1) ends its headers (flag 4)."""
    size = len(payload) if length is None else length
    flags = 4 if kind == 1 else 0
    return size.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header in HPACK without tables or Huffman codes."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


SLOW_SUBMIT = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + frame(4, 0, b"")
    + frame(
        1,
        1,
        literal(b":method", b"POST")
        + literal(b":scheme", b"https")
        + literal(b":path", b"/fedward.channel.v1.FedwardEnrolment/Submit")
        + literal(b":authority", b"localhost")
        + literal(b"content-type", b"application/grpc")
        + literal(b"te", b"trailers"),
    )
    + frame(0, 1, b"\0\0\0\x40\0", length=16384)
)
"""A Submit of 16 KiB of which the first five bytes are there."""


def dribble(connections: list[ssl.SSLSocket]) -> None:
    """One byte a second to each, until all are closed."""
    for _ in range(25):
        alive = 0
        for one in connections:
            with contextlib.suppress(OSError, ValueError):
                one.send(b"\0")
                alive += 1
        if alive == 0:
            return
        time.sleep(1)


def ended(connection: socket.socket, *, seconds: float) -> bool:
    """Whether the other side closes the connection in time."""
    limit = time.monotonic() + seconds
    with connection:
        while time.monotonic() < limit:
            connection.settimeout(max(0.1, limit - time.monotonic()))
            try:
                if connection.recv(4096) == b"":
                    return True
            except TimeoutError:
                return False
            except OSError:
                return True
    return False


def test_the_port_is_open_only_while_an_invite_is(tmp_path: Path) -> None:
    with running_listener(tmp_path) as hub:
        time.sleep(1.5)
        before = port_open(hub.port)
        invited = hub.invite("alpha")
        hub.registry.book.withdraw_invites(SiteId("alpha"), now())
        wait_until(lambda: not port_open(hub.port))

        assert not before
        assert invited.site == "alpha"
        assert hub.logged("enrolment.opened")
        assert hub.logged("enrolment.closed")
