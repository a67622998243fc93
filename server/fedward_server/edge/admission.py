"""Who may pass: the questions that the edge asks on every call, without I/O of their own."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import (
    NODE_KEY_HEADER,
    CallRefused,
    check_body,
    check_headers,
    check_route,
)
from fedward_common.errors import ChannelError
from fedward_common.ids import SiteId
from fedward_common.trust.certificates import PeerCertificate, parse_peer_certificate
from fedward_server.ports import Clock, Roster, SiteRecord, SiteStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call as it came in: the certificate of its connection (PEM) and the request."""

    certificate_pem: bytes
    route: str
    headers: Mapping[str, str]
    body: bytes


class Admission:
    """Decides whether a call may pass, and for which site."""

    def __init__(self, *, federation: str, roster: Roster, clock: Clock) -> None:
        self._federation = federation
        self._roster = roster
        self._clock = clock

    def check(self, call: Call, record: SiteRecord) -> None:
        """Returns when `record`, a member that was admitted just now, may make this call.

        1. The route is one of Flower's twelve Fleet operations.
        2. The headers are Flower's own, and the node key among them is the one registered with
           this certificate.
        3. The body is at most 8 MiB.

        Left to SuperLink: Flower's own signature and that the node id belongs to the node key.

        Raises:
            CallRefused: with the reason of the step that failed.
        """
        check_route(call.route)
        check_headers(call.headers)
        if call.headers.get(NODE_KEY_HEADER) != record.node_public_key:
            raise CallRefused(
                Refusal.NODE_KEY, f"expected the node key registered for {record.site_id}"
            )
        check_body(call.body)

    def member(self, certificate_pem: bytes) -> SiteRecord:
        """The site whose connection shows this certificate, after proving that it may call now.

        The handshake proved that the federation's authority signed the certificate and that the
        peer holds its key. Here, on every call (rules 17), because a connection may live for days:

        1. The certificate names one site of this federation.
        2. It is valid at this moment.
        3. The registry knows the site, has not revoked it, and holds this very certificate: the
           present one, or until that was first shown the one before.

        Raises:
            CallRefused: with the reason of the step that failed.
        """
        return self._record(self._peer(certificate_pem))

    def _peer(self, certificate_pem: bytes) -> PeerCertificate:
        try:
            peer = _parsed(certificate_pem)
        except ChannelError as error:
            raise CallRefused(Refusal.CERTIFICATE_NAME, str(error)) from error
        if peer.federation != self._federation:
            raise CallRefused(
                Refusal.OTHER_FEDERATION, f"expected a site of {self._federation}, found another's"
            )
        now = self._clock()
        if now > peer.not_after:
            raise CallRefused(
                Refusal.CERTIFICATE_EXPIRED,
                f"{peer.site_id}: expected a valid certificate, found one that ended at "
                f"{peer.not_after.isoformat()}",
            )
        if not peer.valid_at(now):
            raise CallRefused(
                Refusal.CERTIFICATE_NOT_YET_VALID,
                f"{peer.site_id}: expected a valid certificate, found one that starts at "
                f"{peer.not_before.isoformat()}",
            )
        return peer

    def _record(self, peer: PeerCertificate) -> SiteRecord:
        record = self._roster.find(peer.site_id)
        if record is None:
            raise CallRefused(
                Refusal.SITE_UNKNOWN, f"{peer.site_id}: expected it in the registry, found nothing"
            )
        if record.status is not SiteStatus.ACTIVE:
            raise CallRefused(
                Refusal.SITE_REVOKED, f"{peer.site_id}: expected an active site, found it revoked"
            )
        if not record.accepts(peer.fingerprint_sha256):
            raise CallRefused(
                Refusal.CERTIFICATE_NOT_CURRENT,
                f"{peer.site_id}: expected the certificate in the registry, found another",
            )
        if (
            record.previous_certificate_sha256 is not None
            and peer.fingerprint_sha256 == record.certificate_sha256
        ):
            # The site holds what it was given: the former certificate ends here.
            self._roster.seen(peer.site_id, record.certificate_sha256)
            return replace(record, previous_certificate_sha256=None)
        return record


@lru_cache(maxsize=256)
def _parsed(certificate_pem: bytes) -> PeerCertificate:
    # What a certificate says never changes; only what is compared with it does.
    return parse_peer_certificate(certificate_pem)


def certificate_sha256(certificate_pem: bytes) -> str:
    """The digest of a site's certificate. Raises ChannelError when it is no site's."""
    return _parsed(certificate_pem).fingerprint_sha256


def claimed_site(certificate_pem: bytes) -> SiteId | None:
    """The site that a certificate names, for the log of a refusal; None when it names none."""
    peer = claimed_peer(certificate_pem)
    return None if peer is None else peer.site_id


def claimed_peer(certificate_pem: bytes) -> PeerCertificate | None:
    """What a certificate says before anything was asked; None when it is no site's."""
    try:
        return _parsed(certificate_pem)
    except ChannelError:
        return None


@dataclass(kw_only=True, slots=True)
class CallRate:
    """A token bucket per certificate: `per_second` calls on average, `burst` at once.

    Not per site: whoever stole a certificate that was revoked or replaced since would otherwise use
    up the calls of the hospital that it names.
    """

    per_second: float
    burst: float
    clock: Callable[[], float] = time.monotonic
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)

    def spend(self, certificate: str) -> None:
        """Counts one call with a certificate of ours, by its digest. Raises CallRefused(RATE)."""
        now = self.clock()
        tokens, last = self._buckets.get(certificate, (self.burst, now))
        tokens = min(self.burst, tokens + (now - last) * self.per_second)
        if tokens < 1:
            self._buckets[certificate] = (tokens, now)
            raise CallRefused(
                Refusal.RATE, f"expected at most {self.per_second:g} calls a second of a site"
            )
        self._buckets[certificate] = (tokens - 1, now)
