"""What the coordinator's decisions need of the outside.

The edge: the roster, SuperLink, Flower's messages. Enrolment: the book of invites and requests.
Both: a log and the time.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from fedward_common.ids import Digest, SiteId
from fedward_common.trust.certificates import node_key_sha256
from fedward_common.trust.signing import key_sha256
from fedward_common.trust.statements import Statement


class SiteStatus(StrEnum):
    """Where a site stands: only an active one passes the edge."""

    ACTIVE = "active"
    REVOKED = "revoked"


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteRecord:
    """A site in the registry: one certificate, one Flower node key, one signing key.

    `node_public_key` is the value of Flower's `flwr-public-key` header, `signing_public_key` the
    32 raw bytes in hexadecimal. `previous_certificate_sha256` is there between a renewal and the
    first call with the new certificate: until then the former one passes as well.
    """

    site_id: SiteId
    certificate_sha256: Digest
    node_public_key: str
    signing_public_key: str
    status: SiteStatus = SiteStatus.ACTIVE
    previous_certificate_sha256: Digest | None = None
    secagg_public_key: str | None = None

    def accepts(self, certificate_sha256: str) -> bool:
        """Whether this certificate is the site's: the present one, or in an overlap the former."""
        return certificate_sha256 in (self.certificate_sha256, self.previous_certificate_sha256)

    @property
    def node_public_key_bytes(self) -> bytes:
        """The node's public key as Flower's Control API takes it: PEM text."""
        return base64.b64decode(self.node_public_key)

    @property
    def node_key_sha256(self) -> Digest:
        """The digest by which a study names the node key."""
        return node_key_sha256(self.node_public_key)

    @property
    def key_sha256(self) -> Digest:
        """The digest by which a study names the signing key."""
        return key_sha256(self.signing_public_key)


class Roster(Protocol):
    """Who belongs to the federation. Asked on every call, so that a revocation holds at once."""

    def find(self, site_id: SiteId) -> SiteRecord | None:
        """The record of a site, revoked or not, or None."""
        ...

    def seen(self, site_id: SiteId, certificate_sha256: Digest) -> None:
        """Ends the overlap of a renewal: the site called with its present certificate."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetReply:
    """What SuperLink answered: HTTP status, Flower's headers, body."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class Upstream(Protocol):
    """SuperLink on this machine's loopback."""

    async def call(self, route: str, headers: Mapping[str, str], body: bytes) -> FleetReply:
        """The answer to one Fleet operation.

        Raises:
            CallRefused: UPSTREAM, nothing answered; BODY_TOO_LARGE, the answer is over 8 MiB.
        """
        ...


class FleetMessages(Protocol):
    """The little that the edge reads of Flower's messages."""

    def polling_node(self, body: bytes) -> int:
        """The node id in a pull-messages request. Raises CallRefused(MALFORMED)."""
        ...

    def carries_message(self, body: bytes) -> bool:
        """Whether a pull-messages reply holds a message for the node."""
        ...

    def nothing(self) -> bytes:
        """A pull-messages reply without a message."""
        ...


class EventSink(Protocol):
    """The coordinator's hash-chained log."""

    def append(self, action: str, **fields: object) -> None:
        """Writes one event; durable when it returns."""
        ...


class Clock(Protocol):
    """The time of day, for validity."""

    def __call__(self) -> datetime:
        """Now, aware."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class CertificateRecord:
    """A certificate that this federation issued to a site; `key_sha256` is its public key's."""

    certificate_sha256: Digest
    key_sha256: Digest
    chain_pem: bytes
    issued_at: datetime
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class InviteRecord:
    """An invite as the registry keeps it: whoever reads this cannot use it."""

    token_sha256: Digest
    proof_public_key: str
    site: SiteId
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None


class RequestStatus(StrEnum):
    """Where an enrolment request stands; the values are those of the wire."""

    WAITING = "waiting"
    GRANTED = "granted"
    DENIED = "denied"


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestRecord:
    """An enrolment request: `document` is the site's own canonical JSON, `grant` our answer."""

    request_sha256: Digest
    site: SiteId
    token_sha256: Digest
    document: bytes
    submitted_at: datetime
    status: RequestStatus = RequestStatus.WAITING
    grant: bytes = b""
    fetched_at: datetime | None = None


class EnrolmentBook(Protocol):
    """The registry's memory of who was invited, asked, was granted, denied and revoked."""

    def add_invite(self, invite: InviteRecord) -> None:
        """Keeps an invite."""
        ...

    def withdraw_invites(self, site: SiteId, at: datetime) -> None:
        """Makes every unused invite of `site` used."""
        ...

    def find_invite(self, token_sha256: Digest) -> InviteRecord | None:
        """The invite, used or not, expired or not, or None."""
        ...

    def invites(self) -> list[InviteRecord]:
        """Every invite, the oldest first."""
        ...

    def submit(self, request: RequestRecord) -> bool:
        """Keeps a request and marks its invite as used, both or neither.

        False when the invite was used by another request in between.
        """
        ...

    def find_request(self, request_sha256: Digest) -> RequestRecord | None:
        """The request, or None."""
        ...

    def requests(self, site: SiteId | None = None) -> list[RequestRecord]:
        """Every request (of `site`), the oldest first."""
        ...

    def key_used(self, key_sha256: Digest) -> bool:
        """Whether a member has or had a key with this digest, of whatever kind."""
        ...

    def add_statement(self, statement: Statement) -> None:
        """Keeps what an operator signed; the same statement again changes nothing."""
        ...

    def statements(self, kind: str, site: SiteId) -> list[Statement]:
        """What operators signed of this kind about a site, the oldest first."""
        ...

    def enrol(
        self,
        request_sha256: Digest,
        record: SiteRecord,
        *,
        certificate: CertificateRecord,
        keys: Mapping[str, Digest],
        grant: bytes,
    ) -> None:
        """Makes a site a member and its waiting request granted, all in one step or not at all.

        `keys` are the digests of its new keys by kind. A revoked site of that name is replaced; a
        member whose certificate has ended gets another one for the same keys.

        Raises:
            ConfigError: the site is a member, a key or the certificate is another's or was used
                before, or the request does not wait.
        """
        ...

    def deny(self, request_sha256: Digest) -> bool:
        """Makes a waiting request denied; False when it does not wait."""
        ...

    def fetched(self, request_sha256: Digest, at: datetime) -> None:
        """Notes when an answer was first handed over."""
        ...

    def present_certificate(self, site: SiteId) -> CertificateRecord | None:
        """What is known of a site's present certificate, or None."""
        ...
