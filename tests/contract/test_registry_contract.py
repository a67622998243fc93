"""What every registry of sites promises; the one in memory is what other tests use."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event

from fedward_common.errors import ConfigError, SignatureRefused
from fedward_common.ids import Digest, SiteId
from fedward_common.trust.signing import SigningKey
from fedward_common.trust.statements import Statement
from fedward_server.adapters.registry import SqlRegistry, open_registry
from fedward_server.ports import (
    CertificateRecord,
    InviteRecord,
    RequestRecord,
    RequestStatus,
    SiteRecord,
    SiteStatus,
)
from tests.support.pki import Authority, now
from tests.support.postgres import Postgres, postgres  # noqa: F401 - a fixture
from tests.support.roster import InMemoryRegistry

Registry = SqlRegistry | InMemoryRegistry
ALPHA, BETA = SiteId("alpha"), SiteId("beta")
ISSUED = now()


@pytest.fixture(scope="module")
def records() -> dict[SiteId, SiteRecord]:
    authority = Authority()
    return {site: authority.site(site).record for site in (ALPHA, BETA)}


DATABASES = ("sqlite", "postgresql")


def url_of(database: str, request: pytest.FixtureRequest) -> str:
    """An empty database of the kind."""
    if database == "sqlite":
        return f"sqlite:///{request.getfixturevalue('tmp_path') / 'registry.sqlite'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture(params=DATABASES)
def registry_url(request: pytest.FixtureRequest) -> str:
    """A database of each kind that a coordinator may name, empty."""
    return url_of(request.param, request)


@pytest.fixture
def sql(registry_url: str) -> Iterator[SqlRegistry]:
    registry = open_registry(registry_url)
    yield registry
    registry.close()


@pytest.fixture(params=[*DATABASES, "in memory"])
def registry(request: pytest.FixtureRequest) -> Iterator[Registry]:
    """A registry of each kind, empty."""
    in_memory = request.param == "in memory"
    opened = InMemoryRegistry() if in_memory else open_registry(url_of(request.param, request))
    yield opened
    opened.close()


def certificate(letter: str = "e", *, key: str | None = None) -> CertificateRecord:
    return CertificateRecord(
        certificate_sha256=Digest(letter * 64),
        key_sha256=Digest((key or letter) * 64),
        chain_pem=b"chain " + letter.encode(),
        issued_at=ISSUED,
        not_before=ISSUED,
        not_after=ISSUED + timedelta(days=90),
    )


def test_a_new_registry_knows_nobody(registry: Registry) -> None:
    assert registry.sites() == []
    assert registry.find(ALPHA) is None


def test_a_site_is_found_as_it_was_added(
    registry: Registry, records: dict[SiteId, SiteRecord]
) -> None:
    registry.add(records[BETA])
    registry.add(records[ALPHA])

    assert registry.find(ALPHA) == records[ALPHA]
    assert registry.sites() == registry.active_sites() == [records[ALPHA], records[BETA]]


@pytest.mark.parametrize(
    "same", ["site_id", "certificate_sha256", "node_public_key", "signing_public_key"]
)
def test_nothing_of_a_site_may_be_another_sites(
    registry: Registry, records: dict[SiteId, SiteRecord], same: str
) -> None:
    registry.add(records[ALPHA])
    twin = replace(records[BETA], **{same: getattr(records[ALPHA], same)})

    with pytest.raises(ConfigError):
        registry.add(twin)
    assert registry.sites() == [records[ALPHA]]


def test_a_revoked_site_stays_in_the_registry_as_revoked(
    registry: Registry, records: dict[SiteId, SiteRecord]
) -> None:
    registry.add(records[ALPHA])
    registry.add(records[BETA])

    registry.revoke(ALPHA)

    assert registry.find(ALPHA) == replace(records[ALPHA], status=SiteStatus.REVOKED)
    assert registry.active_sites() == [records[BETA]]


def test_revoking_twice_is_as_good_as_once(
    registry: Registry, records: dict[SiteId, SiteRecord]
) -> None:
    registry.add(records[ALPHA])
    registry.revoke(ALPHA)

    registry.revoke(ALPHA)

    assert registry.active_sites() == []


def test_after_a_renewal_both_certificates_pass_until_the_new_one_is_seen(
    registry: Registry, records: dict[SiteId, SiteRecord]
) -> None:
    registry.add(records[ALPHA])
    old = records[ALPHA].certificate_sha256

    registry.renew(ALPHA, certificate("e"))
    during = found(registry)
    registry.seen(ALPHA, Digest("e" * 64))
    after = found(registry)

    assert (during.accepts(old), during.accepts("e" * 64)) == (True, True)
    assert (after.accepts(old), after.accepts("e" * 64)) == (False, True)
    assert replace(after, certificate_sha256=old) == records[ALPHA]


def test_a_site_that_renews_again_before_it_used_the_new_certificate_keeps_its_old_one(
    registry: Registry, records: dict[SiteId, SiteRecord]
) -> None:
    """The answer to the first renewal was lost."""
    registry.add(records[ALPHA])
    old = records[ALPHA].certificate_sha256

    registry.renew(ALPHA, certificate("e"))
    registry.renew(ALPHA, certificate("f"))

    assert [found(registry).accepts(c) for c in (old, "e" * 64, "f" * 64)] == [True, False, True]


def test_a_call_with_another_than_the_present_certificate_ends_no_overlap(
    registry: Registry, records: dict[SiteId, SiteRecord]
) -> None:
    registry.add(records[ALPHA])
    registry.renew(ALPHA, certificate("e"))

    registry.seen(ALPHA, records[ALPHA].certificate_sha256)
    registry.seen(BETA, Digest("e" * 64))

    assert found(registry).accepts(records[ALPHA].certificate_sha256)


def test_renewal_does_not_bring_a_revoked_site_back(
    registry: Registry, records: dict[SiteId, SiteRecord]
) -> None:
    registry.add(records[ALPHA])
    registry.revoke(ALPHA)

    with pytest.raises(ConfigError):
        registry.renew(ALPHA, certificate())
    assert registry.revoked_sites() == [ALPHA]


def test_renewal_to_another_sites_certificate_is_refused(
    registry: Registry, records: dict[SiteId, SiteRecord]
) -> None:
    registry.add(records[ALPHA])
    registry.add(replace(records[BETA], certificate_sha256=Digest("e" * 64)))

    with pytest.raises(ConfigError):
        registry.renew(ALPHA, certificate("e"))
    assert registry.find(ALPHA) == records[ALPHA]


def test_renewal_with_a_key_that_was_used_before_is_refused(
    registry: Registry, records: dict[SiteId, SiteRecord]
) -> None:
    registry.add(records[ALPHA])
    registry.renew(ALPHA, certificate("e"))

    with pytest.raises(ConfigError):
        registry.renew(ALPHA, certificate("f", key="e"))


def test_a_site_that_is_not_there_cannot_be_changed(registry: Registry) -> None:
    with pytest.raises(ConfigError):
        registry.renew(ALPHA, certificate())
    with pytest.raises(ConfigError):
        registry.revoke(ALPHA)


def found(registry: Registry) -> SiteRecord:
    record = registry.find(ALPHA)
    assert record is not None
    return record


# The book of enrolment: in SQL only, on every database.


def invite(letter: str = "1", site: SiteId = ALPHA) -> InviteRecord:
    return InviteRecord(
        token_sha256=Digest(letter * 64),
        proof_public_key=letter * 64,
        site=site,
        created_at=now(),
        expires_at=now() + timedelta(hours=24),
    )


def request_of(letter: str = "1", *, number: str = "a", site: SiteId = ALPHA) -> RequestRecord:
    return RequestRecord(
        request_sha256=Digest(number * 64),
        site=site,
        token_sha256=Digest(letter * 64),
        document=b"\x00document",
        submitted_at=now(),
    )


def asked(sql: SqlRegistry) -> RequestRecord:
    sql.book.add_invite(invite())
    request = request_of()
    assert sql.book.submit(request)
    return request


def enrol(sql: SqlRegistry, record: SiteRecord, number: str = "a", key: str = "c") -> None:
    sql.book.enrol(
        Digest(number * 64),
        replace(record, certificate_sha256=Digest(number * 64)),
        certificate=certificate(number),
        keys={"tls": Digest(number * 64), "node": Digest(key * 64)},
        grant=b"grant",
    )


def test_an_invite_is_found_as_it_was_added(sql: SqlRegistry) -> None:
    sql.book.add_invite(invite())

    assert sql.book.find_invite(Digest("1" * 64)) == invite() == sql.book.invites()[0]
    assert sql.book.find_invite(Digest("2" * 64)) is None


def test_an_invite_serves_one_request(sql: SqlRegistry) -> None:
    request = asked(sql)

    again = sql.book.submit(request_of(number="b"))

    assert not again
    assert sql.book.requests() == [request] == sql.book.requests(ALPHA)
    assert sql.book.requests(BETA) == []
    used = sql.book.find_invite(Digest("1" * 64))
    assert used is not None
    assert used.used_at == request.submitted_at


def test_a_request_for_an_invite_that_is_not_there_is_not_kept(sql: SqlRegistry) -> None:
    assert not sql.book.submit(request_of())
    assert sql.book.find_request(Digest("a" * 64)) is None


def test_one_of_two_requests_at_the_same_moment_gets_the_invite(registry_url: str) -> None:
    first, second = open_registry(registry_url), open_registry(registry_url)
    first.book.add_invite(invite())
    barrier = threading.Barrier(2)

    def submit(registry: SqlRegistry, number: str) -> bool:
        barrier.wait()
        return registry.book.submit(request_of(number=number))

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(submit, (first, second), "ab"))
    kept = first.book.requests()
    first.close()
    second.close()

    assert sorted(outcomes) == [False, True]
    assert len(kept) == 1


def test_withdrawn_invites_serve_nobody(sql: SqlRegistry) -> None:
    sql.book.add_invite(invite())

    sql.book.withdraw_invites(ALPHA, now())

    assert not sql.book.submit(request_of())


def test_enrolling_makes_a_member_and_answers_the_request(
    sql: SqlRegistry, records: dict[SiteId, SiteRecord]
) -> None:
    asked(sql)

    enrol(sql, records[ALPHA])

    answered = sql.book.find_request(Digest("a" * 64))
    assert answered is not None
    assert (answered.status, answered.grant) == (RequestStatus.GRANTED, b"grant")
    assert found(sql).certificate_sha256 == "a" * 64
    assert sql.book.present_certificate(ALPHA) == certificate("a")
    assert sql.book.key_used(Digest("c" * 64))
    assert not sql.book.key_used(Digest("d" * 64))


def test_a_site_is_enrolled_once(sql: SqlRegistry, records: dict[SiteId, SiteRecord]) -> None:
    asked(sql)
    enrol(sql, records[ALPHA])

    with pytest.raises(ConfigError, match="found it a member"):
        enrol(sql, records[ALPHA])


def test_a_key_that_a_member_has_or_had_changes_nothing_when_it_comes_again(
    sql: SqlRegistry, records: dict[SiteId, SiteRecord]
) -> None:
    asked(sql)
    enrol(sql, records[ALPHA])
    sql.revoke(ALPHA)
    sql.book.add_invite(invite("2", BETA))
    sql.book.submit(request_of("2", number="b", site=BETA))

    with pytest.raises(ConfigError, match="one of them used"):
        enrol(sql, records[BETA], number="b", key="c")
    waiting = sql.book.find_request(Digest("b" * 64))
    assert sql.find(BETA) is None
    assert waiting is not None
    assert waiting.status is RequestStatus.WAITING


def test_a_revoked_site_comes_back_with_new_keys_only(
    sql: SqlRegistry, records: dict[SiteId, SiteRecord]
) -> None:
    asked(sql)
    enrol(sql, records[ALPHA])
    sql.revoke(ALPHA)
    sql.book.add_invite(invite("2"))
    sql.book.submit(request_of("2", number="b"))

    enrol(sql, replace(records[BETA], site_id=ALPHA), number="b", key="d")

    assert found(sql).status is SiteStatus.ACTIVE
    assert found(sql).node_public_key == records[BETA].node_public_key


def test_a_revoked_site_does_not_come_back_with_a_key_that_it_had(
    sql: SqlRegistry, records: dict[SiteId, SiteRecord]
) -> None:
    asked(sql)
    enrol(sql, records[ALPHA])
    sql.revoke(ALPHA)
    sql.book.add_invite(invite("2"))
    sql.book.submit(request_of("2", number="b"))

    with pytest.raises(ConfigError):
        enrol(sql, records[ALPHA], number="b", key="d")
    assert found(sql).status is SiteStatus.REVOKED


def test_two_requests_granted_at_the_same_moment_make_one_member(
    registry_url: str, records: dict[SiteId, SiteRecord]
) -> None:
    """Of a site that was revoked: the row that both would replace is there already."""
    first = open_registry(registry_url)
    asked(first)
    enrol(first, records[ALPHA])
    first.revoke(ALPHA)
    for letter in "bd":
        first.book.add_invite(invite(letter))
        first.book.submit(request_of(letter, number=letter))
    registries, gate = {"b": first, "d": open_registry(registry_url)}, threading.Barrier(2)
    read = threading.Barrier(2)

    def after(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        """Both have read the row before either writes it, unless one may not read it yet."""
        if "FROM sites" in statement:
            with suppress(threading.BrokenBarrierError):
                read.wait(timeout=1)

    for opened in registries.values():
        event.listen(opened._engine, "after_cursor_execute", after)
    fresh = {
        letter: replace(
            Authority().site(ALPHA).record, secagg_public_key=SigningKey.generate().public_hex
        )
        for letter in registries
    }

    def granted(letter: str) -> bool:
        gate.wait()
        try:
            enrol(
                registries[letter], fresh[letter], number=letter, key={"b": "8", "d": "9"}[letter]
            )
        except ConfigError:
            return False
        return True

    with ThreadPoolExecutor(2) as threads:
        results = dict(zip(registries, threads.map(granted, registries), strict=True))

    member = found(first)
    for opened in registries.values():
        opened.close()
    assert sorted(results.values()) == [False, True]
    assert results[member.certificate_sha256[0]]


def test_a_denied_request_is_never_granted(
    sql: SqlRegistry, records: dict[SiteId, SiteRecord]
) -> None:
    asked(sql)

    first, second = sql.book.deny(Digest("a" * 64)), sql.book.deny(Digest("a" * 64))

    assert (first, second) == (True, False)
    with pytest.raises(ConfigError, match="a request that waits"):
        enrol(sql, records[ALPHA])
    assert sql.find(ALPHA) is None


def test_an_answer_is_handed_over_first_once(sql: SqlRegistry) -> None:
    asked(sql)

    sql.book.fetched(Digest("a" * 64), now())
    sql.book.fetched(Digest("a" * 64), now() + timedelta(days=1))

    request = sql.book.find_request(Digest("a" * 64))
    assert request is not None
    assert request.fetched_at is not None
    assert request.fetched_at < now() + timedelta(hours=1)


def test_statements_are_kept_once_by_kind_and_site(sql: SqlRegistry) -> None:
    key = SigningKey.generate()
    said = [
        Statement.sign("site-revocation", {"site": site}, person="Ada", key=key, now=now())
        for site in (ALPHA, BETA)
    ]

    for statement in (*said, said[0]):
        sql.book.add_statement(statement)

    assert sql.book.statements("site-revocation", ALPHA) == [said[0]]
    assert sql.book.statements("site-grant", ALPHA) == []


def test_a_statement_that_was_edited_in_the_database_is_refused(sql: SqlRegistry) -> None:
    facts = {"site": ALPHA}
    said = Statement.sign(
        "site-revocation", facts, person="Ada", key=SigningKey.generate(), now=now()
    )
    sql.book.add_statement(said.model_copy(update={"person": "Eve"}))

    with pytest.raises(SignatureRefused):
        sql.book.statements("site-revocation", ALPHA)
