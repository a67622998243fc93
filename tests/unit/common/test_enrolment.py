"""Invites, requests and grants: what is proven, and that no other bytes pass for one."""

import base64
import json
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_common.canonical import canonical_json
from fedward_common.errors import ConfigError, FedwardError, ProtocolError, SignatureRefused
from fedward_common.ids import Digest, SiteId
from fedward_common.trust.certificates import Identity, issue_site, new_request
from fedward_common.trust.enrolment import (
    INVITE_PREFIX,
    MAX_REQUEST_BYTES,
    CarriedRequest,
    EnrolmentRequest,
    Grant,
    Invite,
    ecdsa_signer,
    spki_sha256,
    token_sha256,
)
from fedward_common.trust.signing import SigningKey
from fedward_common.trust.statements import Statement
from fedward_common.trust.words import WORDS, words
from tests.support.enrolling import NewSite, some_invite
from tests.support.pki import FEDERATION, Authority, now
from tests.support.unreadable import spoiled_certificate, spoiled_request

LIST_SHA256 = "9d7fe978ef984a7e7d9fdce984919b547d3f1bb4a2a3d68e5e562f3ffc3b972a"


@cache
def site() -> NewSite:
    return NewSite()


@cache
def other() -> NewSite:
    return NewSite()


@cache
def authority() -> Authority:
    return Authority()


@cache
def request() -> EnrolmentRequest:
    return site().request()


def changed(document: Any, **changes: Any) -> Any:
    """The document with other values, through its own parser."""
    return type(document).parse(canonical_json(json.loads(document.canonical) | changes))


def grant(made: EnrolmentRequest | None = None, **changes: Any) -> Grant:
    asked = made or request()
    facts = {"request_sha256": asked.sha256, "site": asked.site}
    said = Statement.sign("site-grant", facts, person="Ada", key=SigningKey.generate(), now=now())
    chain = changes.pop("chain_pem", None) or chain_for(asked.tls_csr_pem.encode())
    values: dict[str, Any] = {
        "request_sha256": asked.sha256,
        "site": asked.site,
        "federation": FEDERATION,
        "chain_pem": chain.decode(),
        "root_pem": authority().root.certificate_pem.decode(),
        "edge_address": "hub.example.org:9443",
        "statements": (said,),
    }
    return Grant(**{**values, **changes})


def chain_for(csr: bytes, *, of: Authority | None = None, name: str = "alpha") -> bytes:
    return issue_site(
        (of or authority()).issuing, csr, federation=FEDERATION, site=SiteId(name), now=now()
    )


def pin() -> Digest:
    return spki_sha256(authority().root.certificate_pem)


class TestInvites:
    def test_an_invite_is_the_same_when_it_is_read_again(self) -> None:
        invite = some_invite(server_name="hub.example.org")

        text = invite.text

        assert Invite.parse(f"  {text}\n") == invite
        assert text.startswith(INVITE_PREFIX)
        assert text.isprintable()
        assert " " not in text

    def test_every_invite_has_a_token_of_its_own(self) -> None:
        assert some_invite().token != some_invite().token

    def test_an_invite_never_shows_its_token(self) -> None:
        invite = some_invite()

        assert invite.token not in repr(invite)
        assert invite.token not in str(invite)

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: text[:-1],
            lambda text: text + "A",
            lambda text: text + "=",
            lambda text: text.removeprefix("fedward-"),
            lambda text: text.replace("-1.", "-2."),
            lambda text: text[:60] + " " + text[60:],
            lambda text: text + "A" * 3000,
        ],
    )
    def test_a_changed_invite_is_refused_without_showing_it(
        self, change: Callable[[str], str]
    ) -> None:
        text = change(some_invite().text)

        with pytest.raises(ConfigError, match="invite: expected one line") as caught:
            Invite.parse(text)
        assert text[30:60] not in str(caught.value)
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize(
        "change",
        [
            {"site": "Alpha"},
            {"address": "no port"},
            {"token": "00"},
            {"federation": "A B"},
            {"more": 1},
        ],
    )
    def test_an_invite_with_a_value_of_another_form_is_refused(
        self, change: dict[str, object]
    ) -> None:
        values = some_invite().model_dump(mode="json") | change
        text = INVITE_PREFIX + base64.urlsafe_b64encode(canonical_json(values)).decode().rstrip("=")

        with pytest.raises(ConfigError):
            Invite.parse(text)

    @given(st.text())
    def test_any_text_is_refused_cleanly(self, text: str) -> None:
        with pytest.raises(ConfigError):
            Invite.parse(INVITE_PREFIX + text)

    @given(st.binary(max_size=200))
    def test_any_bytes_behind_the_prefix_are_refused_cleanly(self, data: bytes) -> None:
        with pytest.raises(ConfigError):
            Invite.parse(INVITE_PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("="))

    def test_the_digest_of_a_token_is_not_the_digest_of_its_bytes(self) -> None:
        """A prefix keeps the stored digest apart from every other use of SHA-256."""
        invite = some_invite()

        assert token_sha256(invite.token) == invite.token_sha256
        assert invite.token_sha256 != spki_sha256(authority().root.certificate_pem)
        with pytest.raises(ProtocolError):
            token_sha256("é" * 64)


class TestRequests:
    def test_a_request_proves_all_four_keys(self) -> None:
        made = EnrolmentRequest.parse(request().canonical)

        made.verify()

        assert made == request()

    @pytest.mark.parametrize(
        ("forged", "name"),
        [
            ({"tls_sign": lambda: ecdsa_signer(other().tls.key_pem)}, "TLS"),
            ({"node_sign": lambda: ecdsa_signer(other().node.to_openssh())}, "node"),
            ({"node_public_key": lambda: other().node.header}, "node"),
            ({"tls_csr_pem": lambda: other().tls.request_pem}, "TLS"),
        ],
    )
    def test_a_key_that_the_asker_does_not_hold_is_refused(
        self, forged: dict[str, Callable[[], Any]], name: str
    ) -> None:
        made = site().request(**{field: value() for field, value in forged.items()})

        with pytest.raises(SignatureRefused, match=f"by its {name} key"):
            made.verify()

    @pytest.mark.parametrize("kind", ["signing", "secagg"])
    def test_an_ed25519_key_that_the_asker_does_not_hold_is_refused(self, kind: str) -> None:
        made = changed(request(), **{f"{kind}_public_key": other().signing.public_hex})

        with pytest.raises(SignatureRefused):
            made.verify()

    @pytest.mark.parametrize(
        "change",
        [
            {"site": "beta"},
            {"federation": "south"},
            {"tls_proof": "00" * 70},
            {"node_proof": "00" * 100},
            {"signing_proof": "00" * 64},
            {"secagg_proof": "00" * 64},
        ],
    )
    def test_a_request_that_was_changed_is_refused(self, change: dict[str, str]) -> None:
        with pytest.raises(SignatureRefused):
            changed(request(), **change).verify()

    def test_the_proof_for_one_key_does_not_prove_another(self) -> None:
        made = site().request(secagg=site().signing)

        with pytest.raises(SignatureRefused, match="two different Ed25519 keys"):
            made.verify()
        with pytest.raises(SignatureRefused):
            changed(request(), secagg_proof=request().signing_proof).verify()

    def test_a_node_key_of_another_curve_is_refused(self) -> None:
        public = base64.b64encode(authority().root.certificate_pem).decode()

        with pytest.raises(SignatureRefused):
            site().request(node_public_key=public).verify()

    def test_a_node_key_in_another_spelling_is_refused(self) -> None:
        """Flower compares the header's text: two spellings would be two nodes with one key."""
        pem = site().node.public_bytes + b"\n"

        with pytest.raises(SignatureRefused, match="Flower's own form"):
            site().request(node_public_key=base64.b64encode(pem).decode()).verify()

    def test_a_request_has_one_form(self) -> None:
        spaced = json.dumps(json.loads(request().canonical)).encode()

        with pytest.raises(ProtocolError, match="canonical"):
            EnrolmentRequest.parse(spaced)

    def test_a_request_over_64_kib_is_refused(self) -> None:
        with pytest.raises(ProtocolError, match="at most"):
            EnrolmentRequest.parse(bytes(MAX_REQUEST_BYTES + 1))

    @given(st.binary())
    def test_any_bytes_are_refused_cleanly(self, data: bytes) -> None:
        for kind in (EnrolmentRequest, CarriedRequest, Grant):
            with pytest.raises(ProtocolError):
                kind.parse(data)

    @settings(max_examples=300, deadline=None)
    @given(
        field=st.sampled_from(sorted(EnrolmentRequest.model_fields)),
        value=st.one_of(
            st.none(),
            st.integers(),
            st.text(),
            st.binary(max_size=128).map(bytes.hex),
            st.booleans(),
        ),
    )
    def test_any_value_in_any_field_is_refused_cleanly(self, field: str, value: object) -> None:
        values = json.loads(request().canonical)
        if values[field] == value:
            return

        with pytest.raises(FedwardError):
            EnrolmentRequest.parse(canonical_json(values | {field: value})).verify()

    def test_the_words_cover_every_field(self) -> None:
        assert request().fingerprint_words == words(request().sha256)
        assert changed(request(), site="beta").fingerprint_words != request().fingerprint_words


class TestFetching:
    def test_the_site_that_asked_may_fetch(self) -> None:
        time = int(now().timestamp())

        request().check_fetch(
            time=time, signature=site().fetch_signature(request(), time), now=now()
        )

    def test_a_fetch_by_another_key_is_refused(self) -> None:
        time = int(now().timestamp())
        signature = other().fetch_signature(request(), time)

        with pytest.raises(SignatureRefused):
            request().check_fetch(time=time, signature=signature, now=now())

    def test_a_fetch_with_the_signature_of_another_moment_is_refused(self) -> None:
        time = int(now().timestamp())
        signature = site().fetch_signature(request(), time - 1)

        with pytest.raises(SignatureRefused):
            request().check_fetch(time=time, signature=signature, now=now())

    @pytest.mark.parametrize("off", [-301, 302, -(10**9), 10**18])
    def test_a_fetch_of_another_time_is_refused(self, off: int) -> None:
        time = int(now().timestamp()) + off
        signature = site().fetch_signature(request(), time)

        with pytest.raises(ProtocolError, match="both clocks"):
            request().check_fetch(time=time, signature=signature, now=now())


class TestCarriedRequests:
    def test_a_carried_request_is_proven_without_the_token(self) -> None:
        invite = some_invite()

        carried = CarriedRequest.parse(CarriedRequest.make(invite, request()).canonical)

        carried.verify(invite.proof_public_key)
        assert carried.token_sha256 == invite.token_sha256
        assert invite.token.encode() not in carried.canonical

    def test_a_carried_request_of_another_invite_is_refused(self) -> None:
        carried = CarriedRequest.make(some_invite(), request())

        with pytest.raises(SignatureRefused):
            carried.verify(some_invite().proof_public_key)

    def test_the_request_in_a_carried_file_cannot_be_exchanged(self) -> None:
        invite = some_invite()
        theirs = json.loads(other().request().canonical)

        with pytest.raises(SignatureRefused):
            changed(CarriedRequest.make(invite, request()), request=theirs).verify(
                invite.proof_public_key
            )


class TestGrants:
    def test_a_grant_answers_the_sites_own_request(self) -> None:
        granted = Grant.parse(grant().canonical)

        peer = granted.verify(request(), root_sha256=pin(), now=now())

        assert (peer.site_id, peer.federation) == ("alpha", FEDERATION)

    def test_a_grant_for_another_request_is_refused(self) -> None:
        with pytest.raises(SignatureRefused, match="answer to this request"):
            grant(other().request()).verify(request(), root_sha256=pin(), now=now())

    def test_a_grant_with_another_root_than_the_invites_is_refused(self) -> None:
        stranger = Authority()
        theirs = grant(
            root_pem=stranger.root.certificate_pem.decode(),
            chain_pem=chain_for(request().tls_csr_pem.encode(), of=stranger),
        )

        with pytest.raises(SignatureRefused, match="the root that the invite pins"):
            theirs.verify(request(), root_sha256=pin(), now=now())

    def test_a_chain_of_another_authority_is_refused(self) -> None:
        theirs = grant(chain_pem=chain_for(request().tls_csr_pem.encode(), of=Authority()))

        with pytest.raises(SignatureRefused, match="leads to the federation's root"):
            theirs.verify(request(), root_sha256=pin(), now=now())

    def test_a_certificate_for_another_key_is_refused(self) -> None:
        with pytest.raises(SignatureRefused, match="own key"):
            grant(chain_pem=chain_for(new_request("x").request_pem)).verify(
                request(), root_sha256=pin(), now=now()
            )

    def test_a_certificate_for_another_site_is_refused(self) -> None:
        chain = chain_for(request().tls_csr_pem.encode(), name="beta")

        with pytest.raises(SignatureRefused, match="expected alpha of north"):
            grant(chain_pem=chain).verify(request(), root_sha256=pin(), now=now())

    def test_a_certificate_that_has_ended_is_refused(self) -> None:
        with pytest.raises(SignatureRefused, match="valid now"):
            grant().verify(request(), root_sha256=pin(), now=now() + timedelta(days=91))

    def test_a_site_cannot_stand_in_for_the_issuing_authority(self) -> None:
        """beta signs a certificate for alpha with its own site key."""
        beta = authority().site_identity("beta")
        own = beta.certificate_pem.split(b"-----END CERTIFICATE-----\n")[0]
        own += b"-----END CERTIFICATE-----\n"
        forger = Authority()
        forger.issuing = Identity(certificate_pem=own, key_pem=beta.key_pem)
        chain = chain_for(request().tls_csr_pem.encode(), of=forger)

        with pytest.raises(SignatureRefused):
            grant(chain_pem=chain).verify(request(), root_sha256=pin(), now=now())

    def test_a_statement_for_another_request_is_refused(self) -> None:
        theirs = grant(other().request()).statements

        with pytest.raises(SignatureRefused, match="statements for this request"):
            grant(statements=theirs).verify(request(), root_sha256=pin(), now=now())

    def test_a_statement_that_was_changed_is_refused(self) -> None:
        said = grant().statements[0].model_copy(update={"person": "Eve"})

        with pytest.raises(SignatureRefused):
            grant(statements=(said,)).verify(request(), root_sha256=pin(), now=now())


class TestBytesThatTheLibraryDoesNotTake:
    """Whoever is in between, or a coordinator that was taken over, chooses them."""

    @pytest.mark.parametrize("fault", ["version", "curve", "key"])
    def test_a_certificate_that_cannot_be_read_is_refused_and_ends_nothing(
        self, fault: str
    ) -> None:
        shown = spoiled_certificate(authority().root.certificate_pem, fault)

        with pytest.raises(SignatureRefused):
            spki_sha256(shown)
        with pytest.raises(SignatureRefused):
            grant(root_pem=shown.decode()).verify(request(), root_sha256=pin(), now=now())
        with pytest.raises(SignatureRefused):
            grant(chain_pem=2 * shown).verify(request(), root_sha256=pin(), now=now())

    def test_a_request_of_another_version_is_refused_and_ends_nothing(self) -> None:
        made = changed(request(), tls_csr_pem=spoiled_request().decode())

        with pytest.raises(SignatureRefused):
            made.verify()
        with pytest.raises(SignatureRefused):
            chain_for(spoiled_request())


def test_a_key_of_another_kind_or_passphrase_signs_nothing() -> None:
    pem = SigningKey.generate().to_pem()

    for key, passphrase in ((pem, None), (b"no key", None), (site().tls.key_pem, b"wrong")):
        with pytest.raises(ConfigError, match="expected an EC private key"):
            ecdsa_signer(key, passphrase=passphrase)


class TestWords:
    def test_the_list_is_fixed(self) -> None:
        """Both ends must show the same words: this digest may never change."""
        assert len(WORDS) == len(set(WORDS)) == 256
        assert sha256(" ".join(WORDS).encode()).hexdigest() == LIST_SHA256

    def test_four_letters_tell_the_words_apart(self) -> None:
        assert len({word[:4] for word in WORDS}) == 256
        assert all(4 <= len(word) <= 8 and word.isascii() and word.islower() for word in WORDS)

    def test_a_byte_is_a_word(self) -> None:
        assert words("00ff" + "00" * 30, 3) == f"{WORDS[0]}-{WORDS[255]}-{WORDS[0]}"
        assert len(words("ab" * 32).split("-")) == 8

    @pytest.mark.parametrize(("digest", "count"), [("00", 1), ("00" * 32, 0), ("00" * 32, 33)])
    def test_what_is_no_digest_has_no_words(self, digest: str, count: int) -> None:
        with pytest.raises(ConfigError):
            words(digest, count)
