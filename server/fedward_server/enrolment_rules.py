"""What holds at every step of enrolment, whoever takes it."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from fedward_common.channel.refusals import Refusal, explain_refusal
from fedward_common.errors import ProtocolError
from fedward_common.ids import DIGEST, Digest, SiteId
from fedward_common.trust.certificates import node_key_sha256, parse_peer_certificate
from fedward_common.trust.chains import request_key_sha256
from fedward_common.trust.enrolment import EnrolmentRequest
from fedward_common.trust.signing import key_sha256
from fedward_server.ports import (
    CertificateRecord,
    EnrolmentBook,
    InviteRecord,
    RequestRecord,
    RequestStatus,
    Roster,
    SiteRecord,
    SiteStatus,
)

INVITE_LIFETIME: Final = timedelta(hours=24)
ANSWER_LIFETIME: Final = timedelta(days=14)
"""How long a site may come back for the answer to its request."""
HANDED_OVER: Final = timedelta(minutes=10)
"""How long the answer stays there after it was first handed over, should a connection break."""


class EnrolmentRefused(ProtocolError):
    """A step of enrolment that may not be taken; `refusal` is the word on the wire and in logs."""

    def __init__(self, refusal: Refusal, found: str = "", *, site: SiteId | None = None) -> None:
        detail = f" ({found})" if found else ""
        super().__init__(f"enrolment: {refusal.value}: {explain_refusal(refusal)}{detail}")
        self.refusal = refusal
        self.site = site


class SiteAuthority(Protocol):
    """What the desk needs of the certificate authority."""

    @property
    def root_pem(self) -> bytes:
        """The federation's root."""
        ...

    def issue_site(self, request_pem: bytes, *, site: SiteId, now: datetime) -> bytes:
        """The certificate chain of a site."""
        ...


class Membership(Roster, Protocol):
    """The registry as the desk needs it."""

    @property
    def book(self) -> EnrolmentBook:
        """Invites, requests and answers."""
        ...

    def revoke(self, site_id: SiteId) -> None:
        """Ends a site's membership."""
        ...


def returning_member(registry: Membership, site: SiteId, *, now: datetime) -> SiteRecord | None:
    """The member `site` whose certificate has ended, or None when `site` is no active member.

    A hospital that was away too long cannot renew; it enrols again and keeps the keys that studies
    name.

    Raises:
        EnrolmentRefused: it is a member with a certificate that is still good.
    """
    record = registry.find(site)
    if record is None or record.status is not SiteStatus.ACTIVE:
        return None
    certificate = registry.book.present_certificate(site)
    if certificate is None or now <= certificate.not_after:
        raise EnrolmentRefused(Refusal.ALREADY_ENROLLED, f"{site} is a member")
    return record


def check_keys(
    book: EnrolmentBook,
    request: EnrolmentRequest,
    *,
    returning: SiteRecord | None = None,
    but: RequestRecord | None = None,
) -> dict[str, Digest]:
    """The digests of the new keys in `request`: no member ever had them, no other request has.

    The node, signing and aggregation key of a returning member must be its own; they are not new.

    Raises:
        EnrolmentRefused: one was used before, or is not the returning member's.
    """
    digests = key_digests(request)
    if returning is not None:
        theirs = (request.node_public_key, request.signing_public_key, request.secagg_public_key)
        own = (returning.node_public_key, returning.signing_public_key, returning.secagg_public_key)
        if theirs != own:
            raise EnrolmentRefused(Refusal.OTHER_KEYS)
        digests = {"tls": digests["tls"]}
    if any(book.key_used(digest) for digest in digests.values()):
        raise EnrolmentRefused(Refusal.KEY_REUSED)
    for other in book.requests():
        if other.status is RequestStatus.WAITING and other != but:
            waiting = key_digests(EnrolmentRequest.parse(other.document))
            if set(digests.values()) & set(waiting.values()):
                raise EnrolmentRefused(Refusal.KEY_REUSED)
    return digests


def find_request(book: EnrolmentBook, request_sha256: object) -> RequestRecord | None:
    """The request of this digest, as someone names it; None for what is no digest at all."""
    if not isinstance(request_sha256, str) or not re.fullmatch(DIGEST, request_sha256):
        return None
    return book.find_request(Digest(request_sha256))


def waiting_request(book: EnrolmentBook, site: SiteId) -> RequestRecord | None:
    """The request of `site` that nobody decided yet, or None."""
    waiting = [r for r in book.requests(site) if r.status is RequestStatus.WAITING]
    return waiting[-1] if waiting else None


def must_listen(
    invites: Iterable[InviteRecord], requests: Iterable[RequestRecord], *, now: datetime
) -> bool:
    """Whether anybody is expected at the enrolment listener.

    An invite is open from when it is made until it expires unused, or until the answer to its
    request was handed over; with none open the port is closed (rules 18).
    """
    unused = any(invite.used_at is None and now <= invite.expires_at for invite in invites)
    return unused or any(may_be_fetched(request, now) for request in requests)


def may_be_fetched(request: RequestRecord, now: datetime) -> bool:
    """Whether a site may still come for the answer to its request."""
    if request.fetched_at is not None:
        return now <= request.fetched_at + HANDED_OVER
    return now <= request.submitted_at + ANSWER_LIFETIME


def certificate_of(chain_pem: bytes, *, key: Digest, now: datetime) -> CertificateRecord:
    """What the registry keeps of a certificate that was just issued."""
    peer = parse_peer_certificate(chain_pem)
    return CertificateRecord(
        certificate_sha256=Digest(peer.fingerprint_sha256),
        key_sha256=key,
        chain_pem=chain_pem,
        issued_at=now,
        not_before=peer.not_before,
        not_after=peer.not_after,
    )


def stamp(moment: datetime) -> str:
    """A time as logs and people read it: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def key_digests(request: EnrolmentRequest) -> dict[str, Digest]:
    """The digests of the four keys in a request, by kind."""
    return {
        "tls": request_key_sha256(request.tls_csr_pem.encode()),
        "node": node_key_sha256(request.node_public_key),
        "signing": key_sha256(request.signing_public_key),
        "secagg": key_sha256(request.secagg_public_key),
    }
