"""What a site does to become a member: it asks, with its invite, and comes back for the answer.

The decisions only; the listener and `site import` are the two ways in.
"""

import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fedward_common.channel.refusals import Refusal
from fedward_common.errors import ConfigError, ProtocolError, SignatureRefused
from fedward_common.ids import SiteId
from fedward_common.trust.enrolment import CarriedRequest, EnrolmentRequest, token_sha256
from fedward_server.enrolment_rules import (
    EnrolmentRefused,
    Membership,
    check_keys,
    find_request,
    may_be_fetched,
    returning_member,
    waiting_request,
)
from fedward_server.ports import Clock, EventSink, InviteRecord, RequestRecord, RequestStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a site is told that asks for the answer to its request."""

    status: RequestStatus
    grant: bytes = b""


class EnrolmentIntake:
    """Takes requests and hands answers over, or refuses with one word. What was done is logged.

    Refusals are logged by the callers, because the listener must not let a stranger fill the log.
    """

    def __init__(
        self, *, federation: str, registry: Membership, log: EventSink, clock: Clock
    ) -> None:
        self._federation = federation
        self._registry = registry
        self._book = registry.book
        self._log = log
        self._clock = clock

    def submit(self, token: str, data: bytes) -> EnrolmentRequest:
        """Takes a request that came with the token itself.

        1. The token is that of an invite of ours that has not expired.
        2. What `_take` proves.

        The same request again under the same token (a reply was lost) is taken as one.

        Raises:
            EnrolmentRefused: the first step that failed; nothing was changed then.
        """
        invite = self._invite_of(token)
        try:
            request = EnrolmentRequest.parse(data)
        except ProtocolError as error:
            raise EnrolmentRefused(Refusal.MALFORMED) from error
        with _about(invite.site):
            self._take(invite, request)
        return request

    def import_carried(self, data: bytes) -> EnrolmentRequest:
        """Takes a request that was carried here as a file.

        As `submit`, but the proof of the token stands in for the token.

        Raises:
            EnrolmentRefused: the first step that failed; nothing was changed then.
        """
        try:
            carried = CarriedRequest.parse(data)
        except ProtocolError as error:
            raise EnrolmentRefused(Refusal.MALFORMED) from error
        invite = self._book.find_invite(carried.token_sha256)
        if invite is None:
            raise EnrolmentRefused(Refusal.INVITE_UNKNOWN)
        try:
            carried.verify(invite.proof_public_key)
        except SignatureRefused as error:
            raise EnrolmentRefused(Refusal.INVITE_UNKNOWN) from error
        with _about(invite.site):
            self._take(invite, carried.request)
        return carried.request

    def _invite_of(self, token: str) -> InviteRecord:
        try:
            digest = token_sha256(token)
        except ProtocolError as error:
            raise EnrolmentRefused(Refusal.INVITE_UNKNOWN) from error
        # Looked up by digest: how long it takes says nothing of the token. Compared in constant
        # time all the same, should a database ever match otherwise than byte by byte.
        invite = self._book.find_invite(digest)
        if invite is None or not hmac.compare_digest(invite.token_sha256, digest):
            raise EnrolmentRefused(Refusal.INVITE_UNKNOWN)
        return invite

    def _take(self, invite: InviteRecord, request: EnrolmentRequest) -> None:
        """Keeps the request and uses the invite up.

        1. The invite has not expired and was not used, except by this very request.
        2. The request is for the invite's site and this federation.
        3. The asker holds every key in it (`EnrolmentRequest.verify`).
        4. The site is no member, or one whose certificate has ended; no other request of it waits.
        5. No key in it is or was a member's or is in another waiting request; a returning member
           brings its own keys and a new TLS key.
        6. No other request used the invite in the meantime.
        """
        now = self._clock()
        # 1.
        if invite.used_at is not None:
            found = self._book.find_request(request.sha256)
            if found is not None and found.token_sha256 == invite.token_sha256:
                return
            raise EnrolmentRefused(Refusal.INVITE_USED)
        if now > invite.expires_at:
            raise EnrolmentRefused(Refusal.INVITE_EXPIRED)
        # 2.
        if (request.site, request.federation) != (invite.site, self._federation):
            raise EnrolmentRefused(Refusal.OTHER_SITE)
        # 3.
        try:
            request.verify()
        except (SignatureRefused, ConfigError) as error:
            raise EnrolmentRefused(Refusal.PROOF, str(error)) from error
        # 4.
        returning = returning_member(self._registry, request.site, now=now)
        if waiting_request(self._book, request.site) is not None:
            raise EnrolmentRefused(Refusal.ALREADY_ENROLLED)
        # 5.
        check_keys(self._book, request, returning=returning)
        # 6.
        record = RequestRecord(
            request_sha256=request.sha256,
            site=request.site,
            token_sha256=invite.token_sha256,
            document=request.canonical,
            submitted_at=now,
        )
        if not self._book.submit(record):
            raise EnrolmentRefused(Refusal.INVITE_USED)
        self._log.append("site.requested", site=request.site, sha256=request.sha256)

    def fetch(self, request_sha256: str, *, time: int, signature: bytes) -> Answer:
        """The answer to a request, for the holder of its TLS key.

        Raises:
            EnrolmentRefused: no such request, too late, another key, or another time.
        """
        record, now = find_request(self._book, request_sha256), self._clock()
        if record is None or not may_be_fetched(record, now):
            raise EnrolmentRefused(Refusal.REQUEST_UNKNOWN)
        try:
            EnrolmentRequest.parse(record.document).check_fetch(
                time=time, signature=signature, now=now
            )
        except SignatureRefused as error:
            raise EnrolmentRefused(Refusal.FETCH_SIGNATURE, site=record.site) from error
        except ProtocolError as error:
            raise EnrolmentRefused(Refusal.FETCH_TIME, site=record.site) from error
        if record.status is not RequestStatus.WAITING and record.fetched_at is None:
            self._book.fetched(record.request_sha256, now)
            self._log.append("site.answered", site=record.site, status=record.status.value)
        return Answer(status=record.status, grant=record.grant)


@contextmanager
def _about(site: SiteId) -> Iterator[None]:
    """Names the invited site in a refusal: operators must learn whose invite was tried twice."""
    try:
        yield
    except EnrolmentRefused as refused:
        refused.site = site
        raise
