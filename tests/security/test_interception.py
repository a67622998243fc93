"""Somebody in between at enrolment: named by the issuer of what they show, and told nothing."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fedward_client.enrol import Places, SiteOptions, enrol
from fedward_client.enrol.flow import World
from fedward_client.enrol.pinned import pinned_root
from fedward_client.peer import Target, look
from fedward_client.proxy import ProxyRefused
from fedward_common.channel.tls import CIPHER_VARIABLE, TLS13_ONLY
from fedward_common.errors import ChannelError, FedwardError, SignatureRefused
from fedward_common.trust.chains import spki_sha256
from fedward_common.trust.enrolment import Invite
from fedward_common.trust.private_files import write_private
from tests.support.connect_proxy import connect_proxy
from tests.support.coordinator import Coordinator, coordinator
from tests.support.pki import Authority, write_identity

NAME = "edge.north.example"
ADDRESS = f"{NAME}:8443"


@pytest.fixture(autouse=True)
def tls13(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test of this process may have imported grpc already."""
    monkeypatch.setenv(CIPHER_VARIABLE, TLS13_ONLY)


@pytest.fixture(scope="module")
def far() -> Iterator[Coordinator]:
    with coordinator(name=NAME) as running:
        yield running


def attempt(invite: Invite, folder: Path, *, listener: Coordinator) -> FedwardError | None:
    """Enrols through the hospital's proxy, which leads to `listener`; returns the error."""
    with connect_proxy({ADDRESS: listener.enrolment_port}) as proxy:
        options = SiteOptions(proxy=proxy.url)
        places = Places.of(folder / "site.toml", options)
        try:
            world = World(sleep=lambda _: None)
            enrol(invite, places, options, say=lambda _: None, wait_seconds=0, world=world)
        except FedwardError as error:
            return error
        finally:
            assert invite.token.encode() not in proxy.up
    return None


def test_without_anybody_in_between_the_same_way_leads_to_a_member(
    far: Coordinator, tmp_path: Path
) -> None:
    assert attempt(far.invite(address=ADDRESS), tmp_path, listener=far) is None
    assert (tmp_path / "site.toml").exists()


def test_wrong_credentials_for_the_proxy_are_said_at_enrolment_too(
    far: Coordinator, tmp_path: Path
) -> None:
    write_private(tmp_path / "proxy.auth", b"me:wrong")
    with connect_proxy({ADDRESS: far.enrolment_port}, credentials="me:right") as proxy:
        options = SiteOptions(proxy=proxy.url, proxy_auth_file=tmp_path / "proxy.auth")
        places = Places.of(tmp_path / "site.toml", options)

        with pytest.raises(ProxyRefused, match="proxy_auth_file"):
            enrol(far.invite(address=ADDRESS), places, options, say=lambda _: None)


def test_a_foreign_authority_in_between_is_named_and_gets_no_token(
    far: Coordinator, tmp_path: Path
) -> None:
    with coordinator(Authority(federation="inspection.hospital"), name=NAME) as middle:
        error = attempt(far.invite(address=ADDRESS), tmp_path, listener=middle)

    assert isinstance(error, SignatureRefused)
    assert "'Fedward inspection.hospital issuing'" in str(error)
    assert "no-decrypt rule" in str(error)
    assert middle.tokens == []
    assert not (tmp_path / "site.toml").exists()


def test_a_copy_of_the_pinned_root_in_a_foreign_chain_helps_nobody(
    far: Coordinator, tmp_path: Path
) -> None:
    """A root is no secret: anyone can send it along. Nobody else's certificate leads to it."""
    stolen = far.authority.root.certificate_pem
    with coordinator(Authority(), name=NAME, shown_root=stolen) as middle:
        error = attempt(far.invite(address=ADDRESS), tmp_path, listener=middle)

    assert isinstance(error, ChannelError)
    assert "expected a certificate under the pinned root" in str(error)
    assert middle.tokens == []


def test_an_invite_with_another_pin_does_not_trust_the_real_coordinator(
    far: Coordinator, tmp_path: Path
) -> None:
    """Whoever changes the invite on its way cannot lead the hospital to a root of their own."""
    invite = far.invite(address=ADDRESS, root_sha256="0" * 64)

    error = attempt(invite, tmp_path, listener=far)

    assert isinstance(error, SignatureRefused)
    assert far.tokens.count(invite.token) == 0


def test_a_member_does_not_pass_for_the_listener_even_under_its_own_name(tmp_path: Path) -> None:
    """A site's certificate leads to the same root; it is for clients, whatever the host is called.

    OpenSSL takes the common name where there is no DNS name, and a site's is its id.
    """
    authority = Authority()
    write_identity(tmp_path, "tls", authority.site_identity("alpha"), authority.root)
    with (tmp_path / "tls.pem").open("ab") as chain:
        chain.write(authority.root.certificate_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.pem", tmp_path / "tls.key")

    def serve(listener: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with suppress(OSError), context.wrap_socket(connection, server_side=True):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        target = Target.of(f"127.0.0.1:{listener.getsockname()[1]}", "alpha")
        with pytest.raises(ChannelError, match="purpose"):
            pinned_root(target, root_sha256=spki_sha256(authority.root.certificate_pem), proxy=None)
        thread.join(10)


def test_the_listeners_chain_is_seen_without_trusting_it(far: Coordinator) -> None:
    """The one private name of Python's ssl that this rests on is there."""
    shown = look(Target.of(f"127.0.0.1:{far.enrolment_port}", NAME), None)

    assert len(shown.chain) == 3
    assert shown.chain[2].strip() == far.authority.root.certificate_pem.strip()
    assert shown.issuer == "'Fedward north issuing'"
