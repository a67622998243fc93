"""A hospital that enrols, without a network: its keys, its request, and what it is granted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedward_common.ids import Digest, SiteId
from fedward_common.trust.certificates import CertificateRequest, NodeKey, new_request
from fedward_common.trust.enrolment import (
    CarriedRequest,
    EnrolmentRequest,
    Invite,
    KeyProofs,
    ecdsa_signer,
    fetch_bytes,
)
from fedward_common.trust.signing import SigningKey
from tests.support.pki import FEDERATION


def some_invite(site: str = "alpha", **changes: Any) -> Invite:
    values: Mapping[str, Any] = {
        "address": "hub.example.org:9444",
        "server_name": None,
        "federation": FEDERATION,
        "site": SiteId(site),
        "root_sha256": Digest("a" * 64),
    }
    return Invite.new(**{**values, **changes})


@dataclass(kw_only=True)
class NewSite:
    """The four fresh keys of a site."""

    site: SiteId = field(default_factory=lambda: SiteId("alpha"))
    federation: str = FEDERATION
    tls: CertificateRequest = field(default_factory=lambda: new_request("site"))
    node: NodeKey = field(default_factory=NodeKey.generate)
    signing: SigningKey = field(default_factory=SigningKey.generate)
    secagg: SigningKey = field(default_factory=SigningKey.generate)

    def proofs(self, **changes: Any) -> KeyProofs:
        values: Mapping[str, Any] = {
            "tls_csr_pem": self.tls.request_pem,
            "tls_sign": ecdsa_signer(self.tls.key_pem),
            "node_public_key": self.node.header,
            "node_sign": ecdsa_signer(self.node.to_openssh()),
            "signing": self.signing,
            "secagg": self.secagg,
        }
        return KeyProofs(**{**values, **changes})

    def request(self, **changes: Any) -> EnrolmentRequest:
        """The site's request; `changes` are other proofs or keys than its own."""
        return EnrolmentRequest.build(
            federation=self.federation, site=self.site, keys=self.proofs(**changes)
        )

    def carried(self, invite: Invite) -> CarriedRequest:
        return CarriedRequest.make(invite, self.request())

    def fetch_signature(self, request: EnrolmentRequest, time: int) -> bytes:
        return ecdsa_signer(self.tls.key_pem)(fetch_bytes(request.sha256, time))
