"""Enrolment: keys made here, one request, a grant that holds, a site.toml with nothing approved."""

import io
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fedward_client.adapters.key_files import (
    is_encrypted,
    read_node_key,
    read_passphrase,
    read_signing_key,
    read_tls_key,
)
from fedward_client.enrol import (
    Enrolment,
    Places,
    SiteOptions,
    enrol,
    install_grant,
    read_invite,
    refuse_argument,
    write_request,
)
from fedward_client.enrol.flow import World
from fedward_client.gateway.process import GatewayConfig
from fedward_client.settings import load_site_settings
from fedward_common.channel.routes import CallRefused
from fedward_common.channel.tls import CIPHER_VARIABLE, TLS13_ONLY
from fedward_common.errors import (
    ChannelError,
    ConfigError,
    PolicyRefused,
    ProtocolError,
    SignatureRefused,
    StartError,
)
from fedward_common.log.events import utc_now
from fedward_common.trust.certificates import Identity, parse_peer_certificate
from fedward_common.trust.chains import request_key_sha256, spki_sha256
from fedward_common.trust.enrolment import CarriedRequest, EnrolmentRequest, Grant, Invite
from tests.support.coordinator import Coordinator, coordinator
from tests.support.pki import Authority

KEYS = ("node.key", "signing.pem", "secagg.pem")


@pytest.fixture(autouse=True)
def tls13(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test of this process may have imported grpc already."""
    monkeypatch.setenv(CIPHER_VARIABLE, TLS13_ONLY)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def far(authority: Authority) -> Iterator[Coordinator]:
    with coordinator(authority) as running:
        yield running


@dataclass
class Hospital:
    """A hospital's folder and what the program told it."""

    folder: Path
    said: list[str] = field(default_factory=list)
    options: SiteOptions = field(default_factory=SiteOptions)
    slept: list[float] = field(default_factory=list)
    on_sleep: Callable[[int], None] = lambda _: None

    @property
    def config(self) -> Path:
        return self.folder / "site.toml"

    @property
    def keys(self) -> Path:
        return self.folder / "state" / "keys"

    @property
    def places(self) -> Places:
        return Places.of(self.config, self.options)

    @property
    def world(self) -> World:
        def sleep(seconds: float) -> None:
            self.slept.append(seconds)
            self.on_sleep(len(self.slept))

        return World(sleep=sleep)

    def enrol(self, invite: Invite, **options: Any) -> Enrolment:
        return enrol(
            invite, self.places, self.options, say=self.said.append, world=self.world, **options
        )

    def key_bytes(self) -> dict[str, bytes]:
        return {name: (self.keys / name).read_bytes() for name in KEYS}


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path / "hospital")


def test_a_hospital_becomes_a_member(far: Coordinator, hospital: Hospital) -> None:
    made = hospital.enrol(far.invite("alpha"))

    settings = load_site_settings(hospital.config)
    peer = parse_peer_certificate(settings.keys.tls_certificate.read_bytes())
    assert (made.site, made.federation, made.granted_by) == ("alpha", "north", ("A. One", "B. Two"))
    assert (settings.site, settings.federation) == ("alpha", "north")
    assert settings.coordinator.address == far.address
    assert settings.coordinator.server_name == "localhost"
    assert (peer.site_id, peer.federation) == ("alpha", "north")
    assert settings.keys.ca.read_bytes() == far.authority.root.certificate_pem
    (request,) = far.requests.values()
    assert GatewayConfig.of(settings).node_public_key == request.node_public_key


def test_a_new_member_has_approved_nothing(far: Coordinator, hospital: Hospital) -> None:
    hospital.enrol(far.invite())

    settings = load_site_settings(hospital.config)
    assert settings.approvers == ()
    assert settings.policy.approved_bundles == ()
    assert not settings.policy.allow_evaluation
    assert not settings.policy.allow_statistics
    assert not (settings.folders.state / "approvals").exists()


def test_every_key_is_of_its_kind_and_0600_and_none_of_them_leaves(
    far: Coordinator, hospital: Hospital
) -> None:
    hospital.enrol(far.invite())

    (request,) = far.requests.values()
    tls_key = read_tls_key(hospital.keys / "tls" / "tls.key")
    node = read_node_key(hospital.keys / "node.key")
    assert b"PRIVATE KEY" in tls_key
    assert node.to_openssh().startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    assert read_signing_key(hospital.keys / "signing.pem").public_hex == request.signing_public_key
    assert read_signing_key(hospital.keys / "secagg.pem").public_hex == request.secagg_public_key
    private = [path for path in hospital.keys.rglob("*") if path.suffix in (".key", ".pem")]
    private = [path for path in private if b"PRIVATE KEY" in path.read_bytes()]
    assert len(private) == 4
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}
    assert b"PRIVATE" not in request.canonical
    assert (hospital.keys / "node.key.pub").read_text().strip() == request.node_public_key


def test_what_is_shown_are_the_words_that_the_operator_sees(
    far: Coordinator, hospital: Hospital
) -> None:
    hospital.enrol(far.invite())

    (request,) = far.requests.values()
    assert f"    {request.fingerprint_words}" in hospital.said
    assert any("telephone" in line for line in hospital.said)


def test_the_token_is_on_no_file_and_in_no_line(far: Coordinator, hospital: Hospital) -> None:
    invite = far.invite()
    hospital.enrol(invite)

    files = [path.read_bytes() for path in hospital.folder.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert not any(invite.token.encode() in data for data in files)
    assert not any(invite.token in line for line in hospital.said)


def test_it_waits_for_the_operators_and_outlasts_a_cut_line(
    far: Coordinator, hospital: Hospital
) -> None:
    far.decision = "waiting"

    def later(number: int) -> None:
        far.refusal_of_fetch = "rate" if number == 1 else ""
        if number == 3:
            far.decision = "granted"

    hospital.on_sleep = later

    hospital.enrol(far.invite())

    assert far.fetches >= 4
    assert hospital.slept == [5.0] * 3
    assert sum("Trying again" in line for line in hospital.said) == 1


def test_a_command_that_gave_up_waiting_goes_on_with_the_same_keys_and_request(
    far: Coordinator, hospital: Hospital
) -> None:
    far.decision = "waiting"
    invite = far.invite()
    with pytest.raises(StartError, match="Run the same command again"):
        hospital.enrol(invite, wait_seconds=20)
    before = hospital.key_bytes()
    assert not hospital.config.exists()
    far.decision = "granted"

    hospital.enrol(invite)

    assert hospital.key_bytes() == before
    assert len(far.requests) == 1


def test_a_second_invite_for_the_same_site_brings_the_same_request(
    far: Coordinator, hospital: Hospital
) -> None:
    """The first one ran out while the operators were on holiday."""
    far.decision = "waiting"
    with pytest.raises(StartError):
        hospital.enrol(far.invite(), wait_seconds=0)
    far.decision = "granted"

    hospital.enrol(far.invite())

    assert len(far.requests) == 1


@pytest.mark.parametrize("missing", ["site.toml", "site.toml and pair", "all but the grant"])
def test_an_installation_that_was_cut_short_is_finished_without_asking_again(
    far: Coordinator, hospital: Hospital, missing: str
) -> None:
    invite = far.invite()
    hospital.enrol(invite)
    tls = hospital.keys / "tls"
    whole = {path.name: path.read_bytes() for path in tls.iterdir()}
    hospital.config.unlink()
    if missing != "site.toml":
        (tls / "tls.key").rename(tls / "tls.key.next")
        (tls / "tls.pem").unlink()
    if missing == "all but the grant":
        (hospital.keys / "ca.pem").unlink()
    asked = far.fetches

    hospital.enrol(invite)

    assert {path.name: path.read_bytes() for path in tls.iterdir()} == whole
    assert load_site_settings(hospital.config).site == "alpha"
    assert far.fetches == asked


def test_a_member_that_enrols_again_keeps_settings_and_keys_but_for_tls(
    far: Coordinator, hospital: Hospital
) -> None:
    """As after a certificate that ended: studies name the node key and the signing key."""
    hospital.enrol(far.invite())
    hospital.config.write_text(
        hospital.config.read_text().replace("min_noise = 1.0", "min_noise = 1.5")
    )
    before = hospital.key_bytes()
    tls_before = (hospital.keys / "tls" / "tls.key").read_bytes()

    hospital.enrol(far.invite())

    settings = load_site_settings(hospital.config)
    tls_key = read_tls_key(settings.keys.tls_key)
    assert settings.policy.min_noise == 1.5
    assert hospital.key_bytes() == before
    assert tls_key != tls_before
    assert Identity(certificate_pem=settings.keys.tls_certificate.read_bytes(), key_pem=tls_key)
    assert len(far.requests) == 2


def test_an_invite_for_another_site_is_refused_before_anything_changes(
    far: Coordinator, hospital: Hospital
) -> None:
    hospital.enrol(far.invite("alpha"))
    before = hospital.key_bytes()

    with pytest.raises(ConfigError, match="expected one for alpha in north"):
        hospital.enrol(far.invite("beta"))
    assert hospital.key_bytes() == before


def test_a_denied_request_is_said_in_one_sentence(far: Coordinator, hospital: Hospital) -> None:
    far.decision = "denied"

    with pytest.raises(PolicyRefused, match="operators denied it"):
        hospital.enrol(far.invite())
    assert not hospital.config.exists()


@pytest.mark.parametrize("code", ["invite-expired", "invite-used", "invite-unknown", "other-site"])
def test_a_refusal_is_the_coordinators_own_reason(
    far: Coordinator, hospital: Hospital, code: str
) -> None:
    far.refusal = code

    with pytest.raises(CallRefused) as raised:
        hospital.enrol(far.invite())
    assert raised.value.refusal.value == code
    assert not hospital.config.exists()


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        ("another root", SignatureRefused, "expected the root that the invite pins"),
        ("another request", SignatureRefused, "expected the answer to this request"),
        ("expired", SignatureRefused, "valid now"),
        ("not yet valid", SignatureRefused, "valid now"),
        ("another key", SignatureRefused, "own key"),
        ("another site", SignatureRefused, "expected alpha of north"),
        ("a statement of another request", SignatureRefused, "statements for this request"),
    ],
)
def test_a_grant_that_does_not_hold_changes_nothing(
    far: Coordinator, hospital: Hospital, fault: str, error: type[Exception], text: str
) -> None:
    foreign = Authority()

    def changed(grant: Grant) -> Grant:
        (request,) = far.requests.values()
        csr = request.tls_csr_pem.encode()
        match fault:
            case "another root":
                return grant.model_copy(update={"root_pem": foreign.root.certificate_pem.decode()})
            case "another request":
                return grant.model_copy(update={"request_sha256": "0" * 64})
            case "another key":
                chain = far.authority.site_identity("alpha").certificate_pem
            case "another site":
                chain = far.issue(csr, "beta")
            case "a statement of another request":
                other = far.grant_of(request.model_copy(update={"site": "gamma"}))
                return grant.model_copy(update={"statements": other.statements})
            case _:
                chain = far.issue(
                    csr, "alpha", shift=timedelta(days=-200 if fault == "expired" else 9)
                )
        return grant.model_copy(update={"chain_pem": chain.decode()})

    far.change_grant = changed

    with pytest.raises(error, match=text):
        hospital.enrol(far.invite())
    assert not hospital.config.exists()
    assert not (hospital.keys / "tls" / "tls.pem").exists()
    assert not (hospital.keys / "ca.pem").exists()


def test_the_same_by_carried_files(far: Coordinator, hospital: Hospital, tmp_path: Path) -> None:
    invite, carried, grant = far.invite(), tmp_path / "request.json", tmp_path / "grant.json"
    request = write_request(
        invite, hospital.places, hospital.options, out=carried, say=hospital.said.append
    )
    brought = CarriedRequest.parse(carried.read_bytes())
    brought.verify(invite.proof_public_key)
    grant.write_bytes(far.grant(brought.request).canonical)

    made = install_grant(grant, hospital.places, hospital.options)

    assert brought.request == request
    assert invite.token.encode() not in carried.read_bytes()
    assert made.site == "alpha"
    assert load_site_settings(hospital.config).site == "alpha"
    assert far.fetches == 0


def test_a_grant_for_another_hospital_is_refused_when_it_is_brought_here(
    far: Coordinator, hospital: Hospital, tmp_path: Path
) -> None:
    other = Hospital(tmp_path / "other")
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for place, file in zip((hospital, other), files, strict=True):
        write_request(far.invite(), place.places, place.options, out=file, say=place.said.append)
    grant = tmp_path / "grant.json"
    grant.write_bytes(far.grant(CarriedRequest.parse(files[1].read_bytes()).request).canonical)

    with pytest.raises(SignatureRefused, match="expected the answer to this request"):
        install_grant(grant, hospital.places, hospital.options)
    assert not hospital.config.exists()


def test_a_grant_without_a_request_here_and_no_grant_at_all_are_refused(
    far: Coordinator, hospital: Hospital, tmp_path: Path
) -> None:
    grant = tmp_path / "grant.json"
    with pytest.raises(ConfigError, match="expected a grant"):
        install_grant(grant, hospital.places, hospital.options)
    grant.write_bytes(b"{}")
    with pytest.raises(ProtocolError):
        install_grant(grant, hospital.places, hospital.options)


def test_with_a_passphrase_every_key_is_encrypted_and_the_gateway_opens_them(
    far: Coordinator, tmp_path: Path
) -> None:
    secret = tmp_path / "passphrase"
    secret.write_text("a passphrase of some length\n")
    secret.chmod(0o600)
    hospital = Hospital(tmp_path / "hospital", options=SiteOptions(passphrase_file=secret))
    hospital.enrol(far.invite())

    settings = load_site_settings(hospital.config)
    keys, passphrase = settings.keys, read_passphrase(settings.keys.passphrase_file)
    assert keys.passphrase_file == secret
    for path in (keys.tls_key, keys.node_key, keys.signing_key, keys.secagg_key):
        assert path is not None
        assert is_encrypted(path)
    key_pem = read_tls_key(keys.tls_key, passphrase=passphrase)
    (request,) = far.requests.values()
    assert request_key_sha256(request.tls_csr_pem.encode()) == spki_sha256(
        keys.tls_certificate.read_bytes()
    )
    assert b"ENCRYPTED" not in key_pem
    with pytest.raises(ConfigError, match="passphrase_file"):
        read_signing_key(keys.signing_key)


def test_a_proxy_is_written_into_the_settings(far: Coordinator, tmp_path: Path) -> None:
    auth = tmp_path / "proxy.auth"
    auth.write_text("me:secret")
    auth.chmod(0o600)
    options = SiteOptions(proxy="http://proxy.hospital:3128", proxy_auth_file=auth)
    hospital = Hospital(tmp_path / "hospital", options=options)

    hospital.enrol(far.invite())

    found = load_site_settings(hospital.config).coordinator
    assert (found.proxy, found.proxy_auth_file) == ("http://proxy.hospital:3128", auth)
    assert "secret" not in hospital.config.read_text()


def test_an_expired_listener_is_named_before_the_token_is_sent(
    authority: Authority, hospital: Hospital
) -> None:
    for shift, text in ((timedelta(days=-200), "has ended"), (timedelta(days=9), "not valid yet")):
        with (
            coordinator(authority, shown_shift=shift) as late,
            pytest.raises(ChannelError, match=text),
        ):
            hospital.enrol(late.invite())
        assert late.requests == {}


def test_a_listener_with_another_name_is_named(authority: Authority, hospital: Hospital) -> None:
    with (
        coordinator(authority, name="elsewhere.example") as far,
        pytest.raises(ChannelError, match="for another name"),
    ):
        hospital.enrol(far.invite().model_copy(update={"server_name": "edge.example"}))


def test_nobody_there_is_said_with_what_to_ask(far: Coordinator, hospital: Hospital) -> None:
    with pytest.raises(ChannelError, match="open only while an invite is"):
        hospital.enrol(far.invite(address="127.0.0.1:1"))


def test_the_invite_comes_from_a_file_or_stdin(far: Coordinator, tmp_path: Path) -> None:
    invite = far.invite()
    (tmp_path / "invite").write_text(f"  {invite.text}\n")

    assert read_invite(str(tmp_path / "invite")) == invite
    assert read_invite("-", stdin=io.BytesIO(invite.text.encode())) == invite
    with pytest.raises(ConfigError, match="No such file"):
        read_invite(str(tmp_path / "none"))
    with pytest.raises(ConfigError) as raised:
        read_invite("-", stdin=io.BytesIO(invite.text[:-4].encode()))
    assert invite.text[30:60] not in str(raised.value)
    with pytest.raises(ConfigError, match="expected one line"):
        read_invite("-", stdin=io.BytesIO(b"\xff\xfe"))


def test_an_invite_on_the_command_line_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="every user of this machine"):
        refuse_argument()


def test_a_folder_that_cannot_be_written_is_named_before_a_key_is_made(
    far: Coordinator, tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    hospital = Hospital(tmp_path)

    with pytest.raises(ConfigError, match="expected a folder that this user may write to"):
        hospital.enrol(far.invite())
    assert far.requests == {}


def test_root_enrols_for_the_user_whose_the_state_folder_is(far: Coordinator) -> None:
    """Anybody else enrols for themselves."""
    with tempfile.TemporaryDirectory() as folder:
        hospital, root = Hospital(Path(folder)), os.geteuid() == 0
        hospital.folder.chmod(0o711)
        state = hospital.folder / "state"
        state.mkdir(mode=0o700)
        uid, gid = (12001, 12001) if root else (os.geteuid(), os.getegid())
        os.chown(state, uid, gid)

        hospital.enrol(far.invite())

        assert {path.stat().st_uid for path in state.rglob("*")} == {uid}
        config = hospital.config.stat()
        assert (config.st_uid, config.st_gid) == (os.geteuid(), gid)
        assert stat.S_IMODE(config.st_mode) == 0o640


def test_the_wait_is_told_now_and_then(far: Coordinator, hospital: Hospital) -> None:
    far.decision = "waiting"
    with pytest.raises(StartError):
        hospital.enrol(far.invite(), wait_seconds=600)

    told = [line for line in hospital.said if line.startswith("Still waiting")]
    assert [line.split("(")[1].split(" ")[0] for line in told] == ["1", "2", "4", "8"]


def test_paths_of_a_system_install_lie_where_units_may_write() -> None:
    places = Places.of(Path("/etc/fedward/site.toml"), SiteOptions())

    assert str(places.state) == "/var/lib/fedward"
    assert places.tls_key.is_relative_to("/var/lib/fedward/keys/tls")


def test_the_settings_survive_a_strange_folder_name(far: Coordinator, tmp_path: Path) -> None:
    hospital = Hospital(tmp_path / 'a "folder" \\ with [quotes] = é')

    hospital.enrol(far.invite())

    assert load_site_settings(hospital.config).folders.state == hospital.folder / "state"


def test_what_a_site_keeps_of_its_enrolment_is_evidence_without_secrets(
    far: Coordinator, hospital: Hospital
) -> None:
    hospital.enrol(far.invite())

    folder = hospital.places.folder
    grant = Grant.parse((folder / "grant.json").read_bytes())
    request = EnrolmentRequest.parse((folder / "request.json").read_bytes())
    pin = json.loads((folder / "invited.json").read_bytes())["root_sha256"]
    assert grant.verify(request, root_sha256=pin, now=utc_now()).site_id == "alpha"
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())
