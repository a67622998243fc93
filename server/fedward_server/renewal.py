"""A member's next certificate, for a new key, before the present one ends."""

from datetime import timedelta
from typing import Final, Protocol

from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.errors import ConfigError, SignatureRefused
from fedward_common.ids import SiteId
from fedward_common.trust.chains import request_key_sha256
from fedward_server.enrolment_rules import SiteAuthority, certificate_of, stamp
from fedward_server.ports import CertificateRecord, Clock, EnrolmentBook, EventSink, SiteRecord

RENEWED_AGAIN: Final = timedelta(minutes=1)
"""A site that lost the answer asks again no sooner: each answer is a row and a signature."""


class Members(Protocol):
    """The registry as renewals need it."""

    @property
    def book(self) -> EnrolmentBook:
        """Certificates and keys."""
        ...

    def renew(self, site_id: SiteId, certificate: CertificateRecord) -> None:
        """Gives an active site a further certificate; the one it uses passes until it was seen."""
        ...


class RenewalDesk:
    """Decides on a renewal. The caller has proven who asks (`Admission.member`)."""

    def __init__(
        self, *, authority: SiteAuthority | None, registry: Members, log: EventSink, clock: Clock
    ) -> None:
        self._authority = authority
        self._registry = registry
        self._log = log
        self._clock = clock

    def renew(self, record: SiteRecord, request_pem: bytes) -> bytes:
        """The new certificate chain (PEM) of the member `record`.

        1. The issuing authority is on this machine.
        2. The request is signed by its own P-256 key.
        3. The site asks for the certificate that it was just given and has not used yet: the
           same chain again.
        4. Half of the present certificate's life has passed; one that was never used may be
           replaced after a minute.
        5. The key was never a member's before.

        The present certificate passes until the new one was first seen (`Roster.seen`).

        Raises:
            CallRefused: the first step that failed.
        """
        # 1.
        if self._authority is None:
            raise CallRefused(Refusal.NO_AUTHORITY, "expected an issuing authority, found none")
        # 2.
        try:
            key = request_key_sha256(request_pem)
        except SignatureRefused as error:
            raise CallRefused(Refusal.REQUEST_KEY, str(error)) from error
        # 3. and 4.
        book, now = self._registry.book, self._clock()
        present = book.present_certificate(record.site_id)
        unused = record.previous_certificate_sha256 is not None
        if present is not None:
            if unused and present.key_sha256 == key:
                return present.chain_pem
            half = present.not_before + (present.not_after - present.not_before) / 2
            if now < (present.issued_at + RENEWED_AGAIN if unused else half):
                raise CallRefused(Refusal.TOO_EARLY, f"{record.site_id}: expected an older one")
        # 5.
        if book.key_used(key):
            raise CallRefused(Refusal.KEY_REUSED, f"{record.site_id}: expected a new key")
        chain = self._authority.issue_site(request_pem, site=record.site_id, now=now)
        certificate = certificate_of(chain, key=key, now=now)
        try:
            self._registry.renew(record.site_id, certificate)
        except ConfigError as error:  # revoked, or renewed by another call, in this moment
            raise CallRefused(Refusal.KEY_REUSED, str(error)) from error
        self._log.append(
            "site.renewed",
            site=record.site_id,
            certificate_sha256=certificate.certificate_sha256,
            not_after=stamp(certificate.not_after),
        )
        return chain
