"""The desk: every step of enrolment in its order, each refused with its own word, each logged."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_common.channel.refusals import Refusal
from fedward_common.ids import SiteId
from fedward_common.trust.certificates import NodeKey, new_request, parse_peer_certificate
from fedward_common.trust.enrolment import SITE_GRANT, CarriedRequest, EnrolmentRequest, Grant
from fedward_common.trust.signing import SigningKey
from fedward_server.enrolment_desk import SITE_DENIAL, SITE_REVOCATION
from fedward_server.enrolment_rules import EnrolmentRefused, must_listen
from fedward_server.ports import RequestStatus, SiteRecord, SiteStatus
from tests.support.desk import ALPHA, Office, TestAuthority
from tests.support.enrolling import NewSite, some_invite
from tests.support.pki import FEDERATION
from tests.support.unreadable import spoiled_request

BETA = SiteId("beta")


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


def refused(step: Callable[[], object]) -> Refusal:
    with pytest.raises(EnrolmentRefused) as caught:
        step()
    return caught.value.refusal


class TestInvites:
    def test_only_the_digest_of_the_token_is_kept(self, office: Office) -> None:
        invite = office.invite()

        database = (office.folder / "registry.sqlite").read_bytes()
        kept = office.registry.book.invites()
        assert bytes.fromhex(invite.token) not in database
        assert invite.token.encode() not in database
        assert invite.token_sha256 == kept[0].token_sha256
        assert office.log.of("site.invited") == [
            {"site": "alpha", "not_after": kept[0].expires_at.strftime("%Y-%m-%dT%H:%M:%SZ")}
        ]

    def test_a_second_invite_ends_the_first(self, office: Office) -> None:
        first, second = office.invite(), office.invite()
        request = NewSite().request().canonical

        assert refused(lambda: office.intake.submit(first.token, request)) is Refusal.INVITE_USED
        assert office.intake.submit(second.token, request)

    def test_a_member_is_not_invited(self, office: Office) -> None:
        office.member()

        assert refused(office.invite) is Refusal.ALREADY_ENROLLED

    def test_a_site_that_waits_is_not_invited(self, office: Office) -> None:
        office.asked()

        assert refused(office.invite) is Refusal.ALREADY_ENROLLED


class TestRequests:
    def test_a_request_uses_its_invite_up(self, office: Office) -> None:
        invite, first = office.invite(), NewSite().request()

        office.intake.submit(invite.token, first.canonical)

        other = NewSite().request().canonical
        assert refused(lambda: office.intake.submit(invite.token, other)) is Refusal.INVITE_USED
        assert office.log.of("site.requested") == [{"site": "alpha", "sha256": first.sha256}]

    def test_the_same_request_again_is_the_same_request(self, office: Office) -> None:
        """The answer to Submit was lost."""
        invite, request = office.invite(), NewSite().request()

        office.intake.submit(invite.token, request.canonical)
        office.intake.submit(invite.token, request.canonical)

        assert len(office.registry.book.requests()) == 1

    def test_an_invite_ends_after_24_hours(self, office: Office) -> None:
        invite, request = office.invite(), NewSite().request().canonical

        office.clock.time += timedelta(hours=24, seconds=1)

        assert (
            refused(lambda: office.intake.submit(invite.token, request)) is Refusal.INVITE_EXPIRED
        )

    @pytest.mark.parametrize("token", ["00" * 32, "", "é" * 64, "0" * 10_000])
    def test_a_token_that_nobody_made_is_unknown(self, office: Office, token: str) -> None:
        office.invite()
        request = NewSite().request().canonical

        assert refused(lambda: office.intake.submit(token, request)) is Refusal.INVITE_UNKNOWN
        assert office.registry.book.requests() == []

    @pytest.mark.parametrize(
        ("asker", "word"),
        [
            (lambda: NewSite(site=BETA).request(), Refusal.OTHER_SITE),
            (lambda: NewSite(federation="south").request(), Refusal.OTHER_SITE),
            (
                lambda: NewSite().request(tls_csr_pem=new_request("other").request_pem),
                Refusal.PROOF,
            ),
            (lambda: NewSite().request(node_public_key=NodeKey.generate().header), Refusal.PROOF),
            (lambda: NewSite().request(tls_csr_pem=b"no request"), Refusal.PROOF),
            (lambda: NewSite().request(node_public_key="no key"), Refusal.PROOF),
        ],
    )
    def test_a_request_that_proves_too_little_leaves_the_invite_good(
        self, office: Office, asker: Callable[[], EnrolmentRequest], word: Refusal
    ) -> None:
        invite, request = office.invite(), asker()

        assert refused(lambda: office.intake.submit(invite.token, request.canonical)) is word
        assert office.intake.submit(invite.token, NewSite().request().canonical)

    @pytest.mark.parametrize("data", [b"", b"{}", b"\xff", bytes(70_000)])
    def test_other_bytes_are_malformed(self, office: Office, data: bytes) -> None:
        token = office.invite().token

        assert refused(lambda: office.intake.submit(token, data)) is Refusal.MALFORMED

    @pytest.mark.parametrize("key", ["tls", "node", "signing", "secagg"])
    def test_a_key_of_another_member_is_refused(self, office: Office, key: str) -> None:
        member = NewSite()
        office.member(member)
        twin = NewSite(site=BETA, **{key: getattr(member, key)})

        assert refused(lambda: office.asked(twin)) is Refusal.KEY_REUSED

    def test_a_key_in_another_waiting_request_is_refused(self, office: Office) -> None:
        first = NewSite()
        office.asked(first)

        twin = NewSite(site=BETA, secagg=first.signing)

        assert refused(lambda: office.asked(twin)) is Refusal.KEY_REUSED


class TestAnyBytes:
    @pytest.fixture(scope="class")
    def office(self, tmp_path_factory: pytest.TempPathFactory) -> Office:
        return Office(tmp_path_factory.mktemp("office"))

    @settings(deadline=None)
    @given(token=st.text(), data=st.binary(), time=st.integers(0, 2**64 - 1))
    def test_are_refused_with_one_word(
        self, office: Office, token: str, data: bytes, time: int
    ) -> None:
        for step in (
            lambda: office.intake.submit(token, data),
            lambda: office.intake.import_carried(data),
            lambda: office.intake.fetch(token, time=time, signature=data),
        ):
            assert refused(step)

    @settings(max_examples=30, deadline=None)
    @given(data=st.binary())
    def test_under_a_good_invite_are_malformed(self, office: Office, data: bytes) -> None:
        invite = office.invite(SiteId("gamma"))

        assert refused(lambda: office.intake.submit(invite.token, data)) is Refusal.MALFORMED


class TestCarriedRequests:
    def test_a_carried_request_is_taken_without_the_token(self, office: Office) -> None:
        carried = NewSite().carried(office.invite())

        office.intake.import_carried(carried.canonical)

        assert office.desk.review(ALPHA).words == carried.request.fingerprint_words
        assert office.registry.book.requests()[0].status is RequestStatus.WAITING

    def test_a_carried_request_under_an_invented_invite_is_refused(self, office: Office) -> None:
        office.invite()
        forged = NewSite().carried(some_invite()).canonical

        assert refused(lambda: office.intake.import_carried(forged)) is Refusal.INVITE_UNKNOWN

    def test_who_knows_only_the_digest_of_a_token_cannot_use_it(self, office: Office) -> None:
        """The digest is in the registry and in every carried file."""
        invite, forger = office.invite(), some_invite()
        forged = CarriedRequest.make(forger, NewSite().request()).model_copy(
            update={"token_sha256": invite.token_sha256}
        )

        word = refused(lambda: office.intake.import_carried(forged.canonical))

        assert word is Refusal.INVITE_UNKNOWN
        assert office.registry.book.requests() == []

    def test_a_carried_request_that_is_used_again_is_refused(self, office: Office) -> None:
        invite = office.invite()
        office.intake.import_carried(NewSite().carried(invite).canonical)

        again = NewSite().carried(invite).canonical

        assert refused(lambda: office.intake.import_carried(again)) is Refusal.INVITE_USED

    def test_other_bytes_are_malformed(self, office: Office) -> None:
        assert refused(lambda: office.intake.import_carried(b"{}")) is Refusal.MALFORMED


class TestGrants:
    def test_two_operators_make_a_member(self, office: Office) -> None:
        site = NewSite()
        request = office.asked(site)

        first, member = office.grant("Ada", request), office.grant("Ben", request)

        granted = Grant.parse(office.desk.export(ALPHA))
        peer = granted.verify(
            request, root_sha256=office.invite(BETA).root_sha256, now=office.clock()
        )
        assert first is None
        assert member == office.registry.find(ALPHA)
        assert member is not None
        assert member.certificate_sha256 == peer.fingerprint_sha256
        assert member.node_public_key == site.node.header
        assert member.secagg_public_key == site.secagg.public_hex
        assert peer.not_after - office.clock() == timedelta(days=90)
        assert {s.person for s in granted.statements} == {"Ada", "Ben"}
        signed = office.log.of("site.grant-signed")
        assert [(event["count"], event["quorum"]) for event in signed] == [(1, 2), (2, 2)]
        assert office.log.of("site.granted")[0]["certificate_sha256"] == peer.fingerprint_sha256

    def test_one_operator_twice_is_one_operator(self, office: Office) -> None:
        request = office.asked()
        office.grant("Ada", request)
        office.clock.time += timedelta(seconds=5)

        assert refused(lambda: office.grant("Ada", request)) is Refusal.OPERATOR_TWICE
        assert office.registry.find(ALPHA) is None

    def test_one_key_under_two_names_is_one_operator(self, office: Office) -> None:
        request = office.asked()
        office.grant("Ada", request)

        word = refused(lambda: office.grant("Ben", request, key=office.operators["Ada"]))

        assert word is Refusal.OPERATOR_UNKNOWN
        assert office.registry.find(ALPHA) is None

    def test_a_federation_may_ask_for_one_operator(self, tmp_path: Path) -> None:
        office = Office(tmp_path, needed=1)

        assert office.grant("Ada", office.asked()) is not None

    def test_a_stranger_grants_nothing(self, office: Office) -> None:
        request = office.asked()

        word = refused(lambda: office.grant("Ada", request, key=SigningKey.generate()))

        assert word is Refusal.OPERATOR_UNKNOWN
        assert office.log.of("site.grant-signed") == []

    def test_an_operator_who_was_removed_counts_no_more(self, office: Office) -> None:
        request = office.asked()
        office.grant("Ada", request)
        del office.operators["Ada"]
        office.operators["Cem"] = SigningKey.generate()

        assert office.grant("Ben", request) is None
        assert office.grant("Cem", request) is not None

    @pytest.mark.parametrize(
        ("kind", "facts"),
        [
            (SITE_DENIAL, {}),
            (SITE_GRANT, {"site": "beta"}),
            (SITE_GRANT, {"also": True}),
            (SITE_GRANT, {"request_sha256": "0" * 64}),
            (SITE_GRANT, {"request_sha256": None}),
        ],
    )
    def test_a_statement_about_something_else_grants_nothing(
        self, office: Office, kind: str, facts: dict[str, object]
    ) -> None:
        request = office.asked()
        whole = {"request_sha256": request.sha256, "site": "alpha"} | facts

        word = refused(lambda: office.desk.grant(office.says("Ada", kind, whole), office.authority))

        assert word in (Refusal.STATEMENT, Refusal.REQUEST_UNKNOWN)
        assert office.log.of("site.grant-signed") == []

    def test_a_site_is_granted_once(self, office: Office) -> None:
        request = office.asked()
        for name in office.operators:
            office.grant(name, request)

        assert refused(lambda: office.grant("Ada", request)) is Refusal.REQUEST_DECIDED

    def test_a_step_that_was_cut_off_is_taken_again(self, office: Office) -> None:
        """Both signatures are kept, then the machine lost power before the certificate."""
        request = office.asked()
        office.grant("Ada", request)
        record = office.registry.book.find_request(request.sha256)
        assert record is not None
        facts = {"request_sha256": request.sha256, "site": "alpha"}
        office.registry.book.add_statement(office.says("Ben", SITE_GRANT, facts))

        assert office.grant("Ben", request) is not None

    def test_two_operators_at_the_same_moment_make_one_member(self, office: Office) -> None:
        request = office.asked()
        barrier = threading.Barrier(2)

        def grant(name: str) -> SiteRecord | None:
            barrier.wait()
            return office.grant(name, request)

        with ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(grant, office.operators))

        member = office.registry.find(ALPHA)
        assert member is not None
        assert member in outcomes
        assert len(office.log.of("site.granted")) == 1

    def test_nothing_is_exported_to_a_site_that_is_no_member(self, office: Office) -> None:
        office.asked()

        assert refused(lambda: office.desk.export(ALPHA)) is Refusal.SITE_UNKNOWN

    def test_a_grant_of_a_request_whose_key_became_a_members_is_refused(
        self, office: Office
    ) -> None:
        request = office.asked()
        office.grant("Ada", request)
        renewed = NewSite(site=BETA)
        office.member(renewed)
        request_pem = request.tls_csr_pem.encode()
        office.clock.time += timedelta(days=60)
        member = office.registry.find(BETA)
        assert member is not None
        office.renewals.renew(member, request_pem)

        assert refused(lambda: office.grant("Ben", request)) is Refusal.KEY_REUSED


class TestFetching:
    def fetch(self, office: Office, site: NewSite, request: EnrolmentRequest) -> object:
        time = int(office.clock().timestamp())
        return office.intake.fetch(
            request.sha256, time=time, signature=site.fetch_signature(request, time)
        )

    def test_a_site_waits_and_then_has_its_grant(self, office: Office) -> None:
        site = NewSite()
        request = office.asked(site)

        before = self.fetch(office, site, request)
        for name in office.operators:
            office.grant(name, request)
        after = self.fetch(office, site, request)

        assert (before.status, before.grant) == (RequestStatus.WAITING, b"")  # type: ignore[attr-defined]
        assert Grant.parse(after.grant).site == "alpha"  # type: ignore[attr-defined]
        assert office.log.of("site.answered") == [{"site": "alpha", "status": "granted"}]

    def test_a_denied_site_is_told(self, office: Office) -> None:
        site = NewSite()
        request = office.asked(site)
        facts = {"request_sha256": request.sha256, "site": "alpha"}

        office.desk.deny(office.says("Ada", SITE_DENIAL, facts))

        answer = self.fetch(office, site, request)
        assert (answer.status, answer.grant) == (RequestStatus.DENIED, b"")  # type: ignore[attr-defined]
        assert office.log.of("site.denied")[0]["site"] == "alpha"
        assert refused(lambda: office.grant("Ada", request)) is Refusal.REQUEST_DECIDED

    def test_another_key_another_time_and_another_request_are_refused(self, office: Office) -> None:
        site = NewSite()
        request = office.asked(site)
        time = int(office.clock().timestamp())
        good = site.fetch_signature(request, time)
        late = site.fetch_signature(request, time - 301)

        def fetch(digest: str, at: int, signature: bytes) -> Refusal:
            return refused(lambda: office.intake.fetch(digest, time=at, signature=signature))

        for unknown in ("0" * 64, "", "\0", "é" * 64):
            assert fetch(unknown, time, good) is Refusal.REQUEST_UNKNOWN
        assert fetch(request.sha256, time - 301, late) is Refusal.FETCH_TIME
        assert fetch(request.sha256, time + 1, good) is Refusal.FETCH_SIGNATURE
        forged = NewSite().fetch_signature(request, time)
        assert fetch(request.sha256, time, forged) is Refusal.FETCH_SIGNATURE

    def test_an_answer_is_there_for_ten_minutes_after_it_was_handed_over(
        self, office: Office
    ) -> None:
        site = NewSite()
        request = office.asked(site)
        for name in office.operators:
            office.grant(name, request)

        self.fetch(office, site, request)
        office.clock.time += timedelta(minutes=9)
        self.fetch(office, site, request)
        office.clock.time += timedelta(minutes=2)

        assert refused(lambda: self.fetch(office, site, request)) is Refusal.REQUEST_UNKNOWN


class TestListening:
    def expected(self, office: Office) -> bool:
        book = office.registry.book
        return must_listen(book.invites(), book.requests(), now=office.clock())

    def test_nobody_is_expected_without_an_invite(self, office: Office) -> None:
        assert not self.expected(office)

    def test_an_invited_site_is_expected_for_24_hours(self, office: Office) -> None:
        office.invite()

        now = self.expected(office)
        office.clock.time += timedelta(hours=24, seconds=1)

        assert (now, self.expected(office)) == (True, False)

    def test_a_site_that_asked_is_expected_until_it_has_its_answer(self, office: Office) -> None:
        site = NewSite()
        request = office.asked(site)
        office.clock.time += timedelta(days=10)
        waiting = self.expected(office)
        for name in office.operators:
            office.grant(name, request)
        granted = self.expected(office)
        TestFetching().fetch(office, site, request)
        office.clock.time += timedelta(minutes=11)

        assert (waiting, granted, self.expected(office)) == (True, True, False)

    def test_a_site_that_never_comes_back_is_given_up_after_14_days(self, office: Office) -> None:
        office.asked()

        office.clock.time += timedelta(days=14, seconds=1)

        assert not self.expected(office)


class TestRevocation:
    def revoke(self, office: Office, facts: dict[str, object], **changes: object) -> SiteId:
        return office.desk.revoke(office.says("Ada", SITE_REVOCATION, facts, **changes))

    def test_one_operator_ends_a_membership(self, office: Office) -> None:
        office.member()

        self.revoke(office, {"site": "alpha"})

        record = office.registry.find(ALPHA)
        assert record is not None
        assert record.status is SiteStatus.REVOKED
        assert refused(lambda: office.desk.export(ALPHA)) is Refusal.SITE_REVOKED
        assert office.registry.revoked_sites() == ["alpha"]
        assert office.log.of("site.revoked")[0]["key_sha256"]

    @pytest.mark.parametrize(
        ("facts", "word"),
        [
            ({"site": "beta"}, Refusal.SITE_UNKNOWN),
            ({"site": "../x"}, Refusal.STATEMENT),
            ({"site": "alpha", "also": 1}, Refusal.STATEMENT),
            ({}, Refusal.STATEMENT),
        ],
    )
    def test_a_statement_about_something_else_revokes_nobody(
        self, office: Office, facts: dict[str, object], word: Refusal
    ) -> None:
        office.member()

        assert refused(lambda: self.revoke(office, facts)) is word

    def test_a_stranger_revokes_nobody(self, office: Office) -> None:
        office.member()

        word = refused(lambda: self.revoke(office, {"site": "alpha"}, key=SigningKey.generate()))

        assert word is Refusal.OPERATOR_UNKNOWN
        assert len(office.registry.active_sites()) == 1

    def test_a_revoked_site_may_enrol_again_with_new_keys(self, office: Office) -> None:
        first = NewSite()
        office.member(first)
        self.revoke(office, {"site": "alpha"})

        assert refused(lambda: office.asked(first)) is Refusal.KEY_REUSED
        again = office.member(NewSite())

        assert again.status is SiteStatus.ACTIVE
        assert office.registry.revoked_sites() == []


class TestReturning:
    """A hospital that was away until its certificate ended."""

    def away(self, office: Office) -> NewSite:
        site = NewSite()
        office.member(site)
        office.clock.time += timedelta(days=91)
        return site

    def test_it_comes_back_with_its_keys_and_a_new_tls_key(self, office: Office) -> None:
        site = self.away(office)
        before = office.registry.find(ALPHA)
        site.tls = new_request("again")

        member = office.member(site)

        assert before is not None
        assert member.certificate_sha256 != before.certificate_sha256
        assert member.key_sha256 == before.key_sha256
        assert member.node_key_sha256 == before.node_key_sha256
        assert member.accepts(member.certificate_sha256)
        assert not member.accepts(before.certificate_sha256)

    @pytest.mark.parametrize("key", ["node", "signing", "secagg"])
    def test_it_brings_no_other_keys(self, office: Office, key: str) -> None:
        site = self.away(office)
        site.tls = new_request("again")
        setattr(site, key, getattr(NewSite(), key))

        assert refused(lambda: office.asked(site)) is Refusal.OTHER_KEYS

    def test_its_old_tls_key_is_used_up(self, office: Office) -> None:
        site = self.away(office)

        assert refused(lambda: office.asked(site)) is Refusal.KEY_REUSED

    def test_it_is_granted_by_two_operators_again(self, office: Office) -> None:
        site = self.away(office)
        site.tls = new_request("again")
        before = office.registry.find(ALPHA)

        office.grant("Ada", office.asked(site))

        assert office.registry.find(ALPHA) == before


def test_the_certificate_names_the_site_and_nothing_of_its_request(office: Office) -> None:
    site = NewSite(tls=new_request("../../etc"))
    office.member(site)

    granted = Grant.parse(office.desk.export(ALPHA))

    peer = parse_peer_certificate(granted.chain_pem.encode())
    assert (peer.site_id, peer.federation) == ("alpha", FEDERATION)
    assert office.log.of("site.exported")[0]["site"] == "alpha"


class TestMoments:
    """What two people do in the same moment."""

    def returning(self, office: Office) -> EnrolmentRequest:
        """The request of a member whose certificate has ended, granted by one operator."""
        site = NewSite()
        office.member(site)
        office.clock.time += timedelta(days=100)
        site.tls = new_request("site")
        request = office.asked(site)
        office.grant("Ada", request)
        return request

    def test_a_revocation_in_the_moment_of_the_last_grant_holds(self, office: Office) -> None:
        request = self.returning(office)
        office.authority = _RevokesFirst(office)

        word = refused(lambda: office.grant("Ben", request))

        found = office.registry.find(ALPHA)
        assert word is Refusal.ALREADY_ENROLLED
        assert found is not None
        assert found.status is SiteStatus.REVOKED
        assert office.log.of("site.granted") == office.log.of("site.granted")[:1]

    def test_a_request_of_another_version_is_refused_by_its_word(self, office: Office) -> None:
        request = NewSite().request().model_copy(update={"tls_csr_pem": spoiled_request().decode()})
        token = office.invite().token

        word = refused(lambda: office.intake.submit(token, request.canonical))

        assert word is Refusal.PROOF


class _RevokesFirst(TestAuthority):
    """An authority that signs while another operator revokes."""

    def __init__(self, office: Office) -> None:
        super().__init__(office.authority.authority)
        self._office = office

    def issue_site(self, request_pem: bytes, *, site: SiteId, now: Any) -> bytes:
        statement = self._office.says("Ada", SITE_REVOCATION, {"site": site})
        self._office.desk.revoke(statement)
        return super().issue_site(request_pem, site=site, now=now)
