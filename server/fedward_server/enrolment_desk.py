"""How operators decide on a hospital: invite, review, grant or deny, and in the end revoke.

The decisions only. Where keys, certificate authority and files lie is the business of the commands
(`site_commands`); what the site does is `enrolment_intake`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fedward_common.channel.refusals import Refusal
from fedward_common.errors import ConfigError, ProtocolError, SignatureRefused
from fedward_common.ids import LABEL, Digest, SiteId
from fedward_common.trust.chains import request_key_sha256, spki_sha256
from fedward_common.trust.enrolment import SITE_GRANT, EnrolmentRequest, Grant, Invite
from fedward_common.trust.statements import Statement
from fedward_server.enrolment_rules import (
    INVITE_LIFETIME,
    EnrolmentRefused,
    Membership,
    SiteAuthority,
    certificate_of,
    check_keys,
    find_request,
    returning_member,
    stamp,
    waiting_request,
)
from fedward_server.ports import (
    Clock,
    EventSink,
    InviteRecord,
    RequestRecord,
    RequestStatus,
    SiteRecord,
    SiteStatus,
)

SITE_DENIAL: Final = "site-denial"
SITE_REVOCATION: Final = "site-revocation"


@dataclass(frozen=True, kw_only=True, slots=True)
class DeskRules:
    """What coordinator.toml says of enrolment. `operators`: public key -> name."""

    federation: str
    operators: Mapping[str, str]
    operators_needed: int
    edge_address: str
    server_name: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Review:
    """A request as an operator looks at it before granting."""

    record: RequestRecord
    request: EnrolmentRequest
    granted_by: tuple[str, ...]

    @property
    def words(self) -> str:
        """What the hospital's people must read as well, over the telephone."""
        return self.request.fingerprint_words


class EnrolmentDesk:
    """Takes the steps that operators decide, or refuses with one word. Every step taken is logged.

    Grants, denials and revocations are statements under operators' keys (rules 16). Refusals are
    logged by the callers.
    """

    def __init__(
        self, *, rules: DeskRules, registry: Membership, log: EventSink, clock: Clock
    ) -> None:
        self._rules = rules
        self._registry = registry
        self._book = registry.book
        self._log = log
        self._clock = clock

    def invite(
        self, site: SiteId, *, address: str, server_name: str | None, root_pem: bytes
    ) -> Invite:
        """A new invite for `site`, good for 24 h and one request. Only its digest is kept.

        An earlier invite of the site that was not used is good no more.

        Raises:
            EnrolmentRefused: the site is a member with a good certificate, or it waits.
        """
        now = self._clock()
        returning_member(self._registry, site, now=now)
        if waiting_request(self._book, site) is not None:
            raise EnrolmentRefused(Refusal.ALREADY_ENROLLED, "it waits: grant or deny it first")
        invite = Invite.new(
            address=address,
            server_name=server_name,
            federation=self._rules.federation,
            site=site,
            root_sha256=spki_sha256(root_pem),
        )
        expires = now + INVITE_LIFETIME
        self._book.withdraw_invites(site, now)
        self._book.add_invite(
            InviteRecord(
                token_sha256=invite.token_sha256,
                proof_public_key=invite.proof_public_key,
                site=site,
                created_at=now,
                expires_at=expires,
            )
        )
        self._log.append("site.invited", site=site, not_after=stamp(expires))
        return invite

    def review(self, site: SiteId) -> Review:
        """The request of `site` that waits.

        Raises:
            EnrolmentRefused: there is none.
        """
        record = waiting_request(self._book, site)
        if record is None:
            raise EnrolmentRefused(Refusal.REQUEST_UNKNOWN, f"{site} has no request that waits")
        by = tuple(s.person for s in self._granted(record, also=None))
        return Review(record=record, request=EnrolmentRequest.parse(record.document), granted_by=by)

    def grant(self, statement: Statement, authority: SiteAuthority) -> SiteRecord | None:
        """Counts one operator's signed grant; the last one needed makes the site a member.

        1. The statement is a signed `site-grant` by one of this federation's operators.
        2. It names the very request that waits for that site.
        3. This operator's key has not granted it before: two operators are two keys (rules 16).
        4. The site is still no member (or one whose certificate has ended), and its new keys are
           still nobody's.

        Returns the new member, or None while further operators are needed.

        Raises:
            EnrolmentRefused: the first step that failed.
        """
        # 1. and 2.
        record = self._addressed(statement, SITE_GRANT)
        # 3.
        before, needed = self._granted(record, also=None), self._rules.operators_needed
        again = any(s.public_key == statement.public_key for s in before)
        if again and len(before) < needed:  # with enough, a step that was cut off is taken again
            raise EnrolmentRefused(Refusal.OPERATOR_TWICE, self._name(statement))
        # 4.
        request = EnrolmentRequest.parse(record.document)
        returning = returning_member(self._registry, record.site, now=self._clock())
        keys = check_keys(self._book, request, returning=returning, but=record)
        self._book.add_statement(statement)
        grants = self._granted(record, also=statement)
        self._log.append(
            "site.grant-signed",
            site=record.site,
            sha256=record.request_sha256,
            key_sha256=statement.key_sha256,
            count=len(grants),
            quorum=needed,
        )
        if len(grants) < needed:
            return None
        return self._enrol(request, grants, authority, keys=keys)

    def deny(self, statement: Statement) -> None:
        """Ends a request that waits; one operator is enough.

        Raises:
            EnrolmentRefused: not a signed `site-denial` by an operator for a request that waits.
        """
        record = self._addressed(statement, SITE_DENIAL)
        self._book.add_statement(statement)
        if not self._book.deny(record.request_sha256):
            raise EnrolmentRefused(Refusal.REQUEST_DECIDED)
        self._log.append(
            "site.denied",
            site=record.site,
            sha256=record.request_sha256,
            key_sha256=statement.key_sha256,
        )

    def revoke(self, statement: Statement) -> SiteId:
        """Ends a membership at its next call; one operator is enough, for it may be urgent.

        Raises:
            EnrolmentRefused: not a signed `site-revocation` by an operator for an active site.
        """
        self._check_operator(statement, SITE_REVOCATION)
        named = statement.facts.get("site")
        if set(statement.facts) != {"site"} or not re.fullmatch(LABEL, str(named)):
            raise EnrolmentRefused(Refusal.STATEMENT)
        site = SiteId(str(named))
        record = self._registry.find(site)
        if record is None:
            raise EnrolmentRefused(Refusal.SITE_UNKNOWN, site)
        if record.status is not SiteStatus.ACTIVE:
            raise EnrolmentRefused(Refusal.SITE_REVOKED, site)
        self._book.add_statement(statement)
        self._registry.revoke(site)
        self._log.append(
            "site.revoked",
            site=site,
            certificate_sha256=record.certificate_sha256,
            key_sha256=statement.key_sha256,
        )
        return site

    def export(self, site: SiteId) -> bytes:
        """The grant of the member `site`, to be carried to it.

        Raises:
            EnrolmentRefused: it is no member, or its newest request was not granted.
        """
        member = self._registry.find(site)
        if member is None:
            raise EnrolmentRefused(Refusal.SITE_UNKNOWN, site)
        if member.status is not SiteStatus.ACTIVE:
            raise EnrolmentRefused(Refusal.SITE_REVOKED, site)
        records = self._book.requests(site)
        if not records or records[-1].status is not RequestStatus.GRANTED:
            raise EnrolmentRefused(Refusal.REQUEST_UNKNOWN, f"{site} has no granted request")
        self._book.fetched(records[-1].request_sha256, self._clock())
        self._log.append("site.exported", site=site, sha256=records[-1].request_sha256)
        return records[-1].grant

    def _enrol(
        self,
        request: EnrolmentRequest,
        grants: list[Statement],
        authority: SiteAuthority,
        *,
        keys: Mapping[str, Digest],
    ) -> SiteRecord | None:
        now, csr = self._clock(), request.tls_csr_pem.encode()
        chain = authority.issue_site(csr, site=request.site, now=now)
        certificate = certificate_of(chain, key=request_key_sha256(csr), now=now)
        record = SiteRecord(
            site_id=request.site,
            certificate_sha256=certificate.certificate_sha256,
            node_public_key=request.node_public_key,
            signing_public_key=request.signing_public_key,
            secagg_public_key=request.secagg_public_key,
        )
        grant = Grant(
            request_sha256=request.sha256,
            site=request.site,
            federation=request.federation,
            chain_pem=chain.decode("ascii"),
            root_pem=authority.root_pem.decode("ascii"),
            edge_address=self._rules.edge_address,
            server_name=self._rules.server_name,
            statements=tuple(grants),
        )
        try:
            self._book.enrol(
                request.sha256,
                record,
                certificate=certificate,
                keys=keys,
                grant=grant.canonical,
            )
        except ConfigError as error:
            answered = self._book.find_request(request.sha256)
            if answered is not None and answered.status is RequestStatus.GRANTED:
                return self._registry.find(request.site)  # the other operator was faster
            raise EnrolmentRefused(Refusal.ALREADY_ENROLLED, str(error)) from error
        self._log.append(
            "site.granted",
            site=request.site,
            sha256=request.sha256,
            certificate_sha256=certificate.certificate_sha256,
            not_after=stamp(certificate.not_after),
        )
        return record

    def _addressed(self, statement: Statement, kind: str) -> RequestRecord:
        """The waiting request that an operator's statement is about."""
        self._check_operator(statement, kind)
        record = find_request(self._book, statement.facts.get("request_sha256"))
        if record is None:
            raise EnrolmentRefused(Refusal.REQUEST_UNKNOWN)
        if dict(statement.facts) != grant_facts(record):
            raise EnrolmentRefused(Refusal.STATEMENT)
        if record.status is not RequestStatus.WAITING:
            raise EnrolmentRefused(Refusal.REQUEST_DECIDED)
        return record

    def _check_operator(self, statement: Statement, kind: str) -> None:
        try:
            Statement.parse(statement.canonical, kind=kind)
        except (ProtocolError, SignatureRefused) as error:
            raise EnrolmentRefused(Refusal.STATEMENT, str(error)) from error
        if self._rules.operators.get(statement.public_key) != statement.person:
            raise EnrolmentRefused(Refusal.OPERATOR_UNKNOWN)

    def _name(self, statement: Statement) -> str:
        return self._rules.operators[statement.public_key]

    def _granted(self, record: RequestRecord, *, also: Statement | None) -> list[Statement]:
        """The grants of this request, one per key of a present operator."""
        said = [*self._book.statements(SITE_GRANT, record.site), *([also] if also else [])]
        facts = grant_facts(record)
        return list(
            {
                s.public_key: s
                for s in said
                if dict(s.facts) == facts and self._rules.operators.get(s.public_key) == s.person
            }.values()
        )


def grant_facts(record: RequestRecord) -> dict[str, str]:
    """What an operator signs to grant or deny a request."""
    return {"request_sha256": record.request_sha256, "site": record.site}
