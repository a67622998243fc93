"""What the authority signs, what a peer's certificate says, loopback identities, node keys."""

import base64
import hashlib
import ssl
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.verification import PolicyBuilder, Store

from fedward_common.errors import ChannelError, ConfigError, SignatureRefused
from fedward_common.ids import SiteId
from fedward_common.trust.certificates import (
    NodeKey,
    expires_at,
    issue_server,
    issue_site,
    make_loopback_identity,
    make_root,
    new_request,
    node_key_sha256,
    parse_peer_certificate,
)
from tests.support.pki import Authority, now


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def certificates(chain: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(chain)


def test_a_sites_certificate_names_the_site_and_nothing_else(authority: Authority) -> None:
    identity = authority.site_identity("alpha")

    peer = parse_peer_certificate(identity.certificate_pem)

    leaf = certificates(identity.certificate_pem)[0]
    assert (peer.site_id, peer.federation) == ("alpha", "north")
    assert peer.fingerprint_sha256 == leaf.fingerprint(hashes.SHA256()).hex()
    assert peer.not_after - peer.not_before == timedelta(days=90, minutes=5)


def test_an_independent_verifier_accepts_a_sites_chain_for_clients(authority: Authority) -> None:
    leaf, issuing = certificates(authority.site_identity("alpha").certificate_pem)
    store = Store(certificates(authority.root.certificate_pem))

    verified = PolicyBuilder().store(store).build_client_verifier().verify(leaf, [issuing])

    assert verified.subjects is not None
    assert [name.value for name in verified.subjects] == ["spiffe://north/site/alpha"]


def test_an_independent_verifier_accepts_a_servers_chain_for_its_host(authority: Authority) -> None:
    leaf, issuing = certificates(authority.server_identity("hub.example").certificate_pem)
    store = Store(certificates(authority.root.certificate_pem))
    verifier = PolicyBuilder().store(store).build_server_verifier(x509.DNSName("hub.example"))

    chain = verifier.verify(leaf, [issuing])

    assert len(chain) == 3


def test_names_in_a_request_do_not_reach_the_certificate(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    wish = x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier("spiffe://north/site/other"), x509.DNSName("hub.example")]
    )
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "other")]))
        .add_extension(wish, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )

    chain = issue_site(
        authority.issuing,
        request.public_bytes(serialization.Encoding.PEM),
        federation="north",
        site=SiteId("alpha"),
        now=now(),
    )

    leaf = certificates(chain)[0]
    assert parse_peer_certificate(chain).site_id == "alpha"
    assert b"other" not in leaf.public_bytes(serialization.Encoding.DER)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_request_whose_signature_is_not_its_keys_is_refused(authority: Authority) -> None:
    pem = new_request("alpha").request_pem
    der = bytearray(x509.load_pem_x509_csr(pem).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    body = base64.encodebytes(bytes(der)).decode()
    forged = f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"

    with pytest.raises(SignatureRefused, match="certificate request"):
        issue_server(authority.issuing, forged.encode(), hosts=["hub.example"], now=now())


def test_a_request_with_a_key_of_another_kind_is_refused(authority: Authority) -> None:
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(rsa.generate_private_key(65537, 2048), hashes.SHA256())
    )

    with pytest.raises(SignatureRefused, match="expected an EC P-256 key"):
        issue_server(
            authority.issuing,
            request.public_bytes(serialization.Encoding.PEM),
            hosts=["hub.example"],
            now=now(),
        )


def test_no_certificate_outlives_its_issuer(authority: Authority) -> None:
    identity = authority.site_identity("alpha", lifetime=timedelta(days=3000))

    assert expires_at(identity.certificate_pem) <= expires_at(authority.issuing.certificate_pem)


def test_a_servers_certificate_is_not_one_of_a_site(authority: Authority) -> None:
    with pytest.raises(ChannelError, match="expected exactly one name, spiffe"):
        parse_peer_certificate(authority.server_identity().certificate_pem)


def test_bytes_that_are_no_certificate_are_refused() -> None:
    with pytest.raises(ChannelError, match="site certificate"):
        parse_peer_certificate(b"")


def test_a_certificate_is_valid_from_its_first_moment_to_its_last(authority: Authority) -> None:
    peer = parse_peer_certificate(authority.site_identity("alpha").certificate_pem)
    second = timedelta(seconds=1)

    assert peer.valid_at(peer.not_before)
    assert peer.valid_at(peer.not_after)
    assert not peer.valid_at(peer.not_before - second)
    assert not peer.valid_at(peer.not_after + second)


@pytest.mark.parametrize("name", ["North", "", "a/b", "a b", "-a"])
def test_a_federation_that_is_no_domain_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="federation: expected"):
        make_root(name, now=now())


def test_printing_an_identity_shows_no_key(authority: Authority) -> None:
    assert "PRIVATE" not in repr(authority.site_identity("alpha")) + repr(new_request("alpha"))


def test_a_loopback_identity_works_for_this_machine(tmp_path: Path) -> None:
    files = make_loopback_identity(tmp_path / "loopback")

    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.certificate, files.key)
    leaf = certificates(files.certificate.read_bytes())[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert stat.S_IMODE(files.key.stat().st_mode) == 0o600
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert sorted(path.name for path in files.key.parent.iterdir()) == [
        "ca.pem",
        "cert.pem",
        "key.pem",
    ]


def test_a_good_loopback_identity_is_kept(tmp_path: Path) -> None:
    before = make_loopback_identity(tmp_path).certificate.read_bytes()

    assert make_loopback_identity(tmp_path).certificate.read_bytes() == before


@pytest.mark.parametrize("harm", ["near expiry", "key gone", "other key", "other ca", "open key"])
def test_a_loopback_identity_that_is_not_whole_is_made_anew(tmp_path: Path, harm: str) -> None:
    files = make_loopback_identity(tmp_path / "a")
    other = make_loopback_identity(tmp_path / "b")
    before = files.certificate.read_bytes()
    later = now() + timedelta(days=340 if harm == "near expiry" else 0)
    match harm:
        case "key gone":
            files.key.unlink()
        case "other key":
            files.key.write_bytes(other.key.read_bytes())
        case "other ca":
            files.ca.write_bytes(other.ca.read_bytes())
        case "open key":
            files.key.chmod(0o644)

    again = make_loopback_identity(tmp_path / "a", now=later)

    assert again.certificate.read_bytes() != before
    assert stat.S_IMODE(again.key.stat().st_mode) == 0o600


def test_a_node_key_survives_its_file(tmp_path: Path) -> None:
    key = NodeKey.generate()

    key.write(tmp_path / "node.key")

    data = (tmp_path / "node.key").read_bytes()
    assert data.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    assert stat.S_IMODE((tmp_path / "node.key").stat().st_mode) == 0o600
    assert NodeKey.from_openssh(data).header == key.header


def test_a_node_keys_digest_is_over_the_bytes_in_flowers_header() -> None:
    key = NodeKey.generate()

    public = base64.b64decode(key.header, validate=True)

    loaded = serialization.load_pem_public_key(public)
    assert isinstance(loaded, ec.EllipticCurvePublicKey)
    assert isinstance(loaded.curve, ec.SECP384R1)
    assert key.sha256 == hashlib.sha256(public).hexdigest() == node_key_sha256(key.header)
    assert key.public_openssh.startswith(b"ecdsa-sha2-nistp384 ")


def test_a_node_key_of_another_kind_is_refused() -> None:
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )

    with pytest.raises(ConfigError, match="expected an EC P-384 key"):
        NodeKey.from_openssh(other)


def test_a_header_that_is_not_base64_names_no_key() -> None:
    with pytest.raises(ConfigError, match="expected base64"):
        node_key_sha256("not base64!")
