"""Renewals: half of a life must have passed, keys are new, and no answer that is lost hurts."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.ids import Digest
from fedward_common.trust.certificates import new_request, parse_peer_certificate
from fedward_server.edge.admission import Admission
from fedward_server.ports import SiteRecord
from fedward_server.renewal import RenewalDesk
from tests.support.desk import ALPHA, Office
from tests.support.enrolling import NewSite
from tests.support.pki import FEDERATION
from tests.support.unreadable import spoiled_request


@pytest.fixture
def office(tmp_path: Path) -> Office:
    made = Office(tmp_path)
    made.member()
    made.clock.time += timedelta(days=60)
    return made


def member(office: Office) -> SiteRecord:
    record = office.registry.find(ALPHA)
    assert record is not None
    return record


def fingerprint(chain: bytes) -> Digest:
    return Digest(parse_peer_certificate(chain).fingerprint_sha256)


def refused(step: Callable[[], object]) -> Refusal:
    with pytest.raises(CallRefused) as caught:
        step()
    return caught.value.refusal


def test_a_renewed_certificate_lives_90_days_and_both_pass_until_it_is_seen(
    office: Office,
) -> None:
    old = member(office).certificate_sha256

    chain = office.renewals.renew(member(office), new_request("x").request_pem)

    peer = parse_peer_certificate(chain)
    during = member(office)
    office.registry.seen(ALPHA, fingerprint(chain))
    assert peer.not_after - office.clock() == timedelta(days=90)
    assert during.accepts(old)
    assert during.accepts(fingerprint(chain))
    assert not member(office).accepts(old)
    logged = office.log.of("site.renewed")
    assert [event["certificate_sha256"] for event in logged] == [fingerprint(chain)]


def test_a_young_certificate_is_not_renewed(office: Office) -> None:
    office.clock.time -= timedelta(days=20)

    word = refused(lambda: office.renewals.renew(member(office), new_request("x").request_pem))

    assert word is Refusal.TOO_EARLY
    assert office.log.of("site.renewed") == []


def test_the_same_request_again_gets_the_same_certificate(office: Office) -> None:
    """The answer was lost, and the site kept its key."""
    request = new_request("x").request_pem

    first = office.renewals.renew(member(office), request)
    again = office.renewals.renew(member(office), request)

    assert first == again
    assert len(office.log.of("site.renewed")) == 1


def test_a_site_that_lost_its_new_key_gets_another_after_a_minute(office: Office) -> None:
    office.renewals.renew(member(office), new_request("x").request_pem)
    other = new_request("y").request_pem

    at_once = refused(lambda: office.renewals.renew(member(office), other))
    office.clock.time += timedelta(minutes=2)
    chain = office.renewals.renew(member(office), other)

    assert at_once is Refusal.TOO_EARLY
    assert member(office).accepts(fingerprint(chain))


def test_a_key_is_certified_once(office: Office) -> None:
    site = NewSite()
    request = site.tls.request_pem
    first = office.renewals.renew(member(office), request)
    office.registry.seen(ALPHA, fingerprint(first))
    office.clock.time += timedelta(days=60)

    assert refused(lambda: office.renewals.renew(member(office), request)) is Refusal.KEY_REUSED


@pytest.mark.parametrize(
    "data",
    [b"", b"no request", b"-----BEGIN CERTIFICATE REQUEST-----\n", spoiled_request()],
    ids=["nothing", "words", "a head", "another version"],
)
def test_what_is_no_request_is_refused(office: Office, data: bytes) -> None:
    assert refused(lambda: office.renewals.renew(member(office), data)) is Refusal.REQUEST_KEY


def test_a_site_that_was_revoked_in_this_moment_gets_nothing(office: Office) -> None:
    record = member(office)
    office.registry.revoke(ALPHA)

    with pytest.raises(CallRefused):
        office.renewals.renew(record, new_request("x").request_pem)
    assert office.log.of("site.renewed") == []


def test_without_an_authority_on_the_machine_nothing_is_renewed(office: Office) -> None:
    desk = RenewalDesk(authority=None, registry=office.registry, log=office.log, clock=office.clock)

    word = refused(lambda: desk.renew(member(office), new_request("x").request_pem))

    assert word is Refusal.NO_AUTHORITY


def test_a_stolen_certificate_is_not_renewed_again_and_again(office: Office) -> None:
    """The first call with a new certificate is a renewal: it is as young as any other."""
    admission = Admission(federation=FEDERATION, roster=office.registry, clock=office.clock)
    new = office.renewals.renew(member(office), new_request("x").request_pem)
    office.clock.time += timedelta(minutes=2)

    word = refused(
        lambda: office.renewals.renew(admission.member(new), new_request("y").request_pem)
    )

    assert word is Refusal.TOO_EARLY
    assert len(office.log.of("site.renewed")) == 1
