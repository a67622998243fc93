"""What the edge needs of the outside: the roster, SuperLink, Flower's messages, a log, the time."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from fedward_common.ids import Digest, SiteId
from fedward_common.trust.certificates import node_key_sha256
from fedward_common.trust.signing import key_sha256


class SiteStatus(StrEnum):
    """Where a site stands: only an active one passes the edge."""

    ACTIVE = "active"
    REVOKED = "revoked"


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteRecord:
    """A site in the registry: one certificate, one Flower node key, one signing key.

    `node_public_key` is the value of Flower's `flwr-public-key` header, `signing_public_key` the
    32 raw bytes in hexadecimal.
    """

    site_id: SiteId
    certificate_sha256: Digest
    node_public_key: str
    signing_public_key: str
    status: SiteStatus = SiteStatus.ACTIVE

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
