"""`Renew`: a new certificate for a site's new key, before its present one ends."""

from dataclasses import dataclass
from typing import Final, Protocol

from fedward_common.channel import channel_pb2 as wire
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_server.ports import SiteRecord

MAX_REQUEST_BYTES: Final = 16 << 10


class RenewsCertificates(Protocol):
    """Who decides on a renewal and issues it (`renewal.RenewalDesk`)."""

    def renew(self, record: SiteRecord, request_pem: bytes) -> bytes:
        """The new certificate chain (PEM). Raises CallRefused with the reason."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Renewal:
    """Answers `Renew`. Over the present mutual TLS only: an expired site enrols again."""

    desk: RenewsCertificates

    def answer(self, record: SiteRecord, request: wire.RenewRequest) -> wire.RenewReply:
        """The new chain.

        Raises:
            CallRefused: BODY_TOO_LARGE, or the desk's reason.
        """
        if len(request.request_pem) > MAX_REQUEST_BYTES:
            raise CallRefused(
                Refusal.BODY_TOO_LARGE, f"expected a request of at most {MAX_REQUEST_BYTES} bytes"
            )
        return wire.RenewReply(chain_pem=self.desk.renew(record, request.request_pem))
