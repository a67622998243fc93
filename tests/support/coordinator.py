"""A coordinator as a site sees it: the edge's services and the enrolment listener, on loopback.

The real grpc, the real TLS, real documents; what it decides a test sets by an attribute.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc

from fedward_common.channel import channel_pb2 as wire
from fedward_common.channel import channel_pb2_grpc as stubs
from fedward_common.channel.credentials import server_credentials, server_options
from fedward_common.errors import FedwardError
from fedward_common.ids import SiteId
from fedward_common.trust.certificates import (
    Identity,
    issue_server,
    issue_site,
    new_request,
    parse_peer_certificate,
)
from fedward_common.trust.enrolment import SITE_GRANT, EnrolmentRequest, Grant, Invite, spki_sha256
from fedward_common.trust.signing import SigningKey
from fedward_common.trust.statements import Statement
from tests.support.pki import Authority

OPERATORS = {"A. One": SigningKey.generate(), "B. Two": SigningKey.generate()}
VERSIONS = {"fedward-common": "0.1.0", "flwr": "1.41.0", "grpcio": "1.85.1"}


@dataclass
class Coordinator(stubs.FedwardChannelServicer, stubs.FedwardSiteServicer):
    """What it answers, and what reached it."""

    authority: Authority = field(default_factory=Authority)
    name: str = "localhost"
    port: int = 0
    enrolment_port: int = 0
    versions: dict[str, str] = field(default_factory=lambda: dict(VERSIONS))
    ahead: timedelta = timedelta(0)
    revoked: list[str] = field(default_factory=list)
    refusal: str = ""
    lifetime: timedelta = timedelta(days=90)
    delay_seconds: float = 0.0
    forwarded: list[wire.ForwardRequest] = field(default_factory=list)
    heard: list[dict[str, str]] = field(default_factory=list)
    certificates: list[str] = field(default_factory=list)
    renewals: list[bytes] = field(default_factory=list)
    invites: dict[str, Invite] = field(default_factory=dict)
    requests: dict[str, EnrolmentRequest] = field(default_factory=dict)
    decision: str = "granted"
    refusal_of_fetch: str = ""
    shown_shift: timedelta = timedelta(0)
    shown_root: bytes | None = None
    tokens: list[str] = field(default_factory=list)
    fetches: int = 0
    change_grant: Callable[[Grant], Grant] = field(default=lambda grant: grant)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def invite(self, site: str = "alpha", *, address: str | None = None, **changes: Any) -> Invite:
        made = Invite.new(
            address=address or f"127.0.0.1:{self.enrolment_port}",
            server_name=self.name,
            federation=self.authority.federation,
            site=SiteId(site),
            root_sha256=spki_sha256(self.authority.root.certificate_pem),
        ).model_copy(update=changes)
        self.invites[made.token] = made
        return made

    def issue(self, request_pem: bytes, site: str, *, shift: timedelta = timedelta(0)) -> bytes:
        return issue_site(
            self.authority.issuing,
            request_pem,
            federation=self.authority.federation,
            site=SiteId(site),
            now=datetime.now(UTC) + shift,
            lifetime=self.lifetime,
        )

    def grant(self, request: EnrolmentRequest) -> Grant:
        return self.change_grant(self.grant_of(request))

    def grant_of(self, request: EnrolmentRequest) -> Grant:
        facts = {"request_sha256": str(request.sha256), "site": str(request.site)}
        statements = tuple(
            Statement.sign(SITE_GRANT, facts, person=person, key=key, now=datetime.now(UTC))
            for person, key in OPERATORS.items()
        )
        return Grant(
            request_sha256=request.sha256,
            site=request.site,
            federation=request.federation,
            chain_pem=self.issue(request.tls_csr_pem.encode(), request.site).decode(),
            root_pem=self.authority.root.certificate_pem.decode(),
            edge_address=self.address,
            server_name=self.name,
            statements=statements,
        )

    # FedwardChannel and FedwardSite

    def Forward(self, request: wire.ForwardRequest, context: Any) -> wire.ForwardReply:
        self._met(context)
        time.sleep(self.delay_seconds)
        self.forwarded.append(request)
        if self.refusal:
            return wire.ForwardReply(error_code=self.refusal)
        return wire.ForwardReply(status=200, body=b"answer to " + request.body)

    def Hello(self, request: wire.HelloRequest, context: Any) -> wire.HelloReply:
        self._met(context)
        self.heard.append(dict(request.versions))
        if self.refusal:
            return wire.HelloReply(error_code=self.refusal)
        return wire.HelloReply(
            versions=self.versions,
            time=(datetime.now(UTC) + self.ahead).timestamp(),
            revoked=self.revoked,
        )

    def Renew(self, request: wire.RenewRequest, context: Any) -> wire.RenewReply:
        site = self._met(context)
        self.renewals.append(request.request_pem)
        if self.refusal:
            return wire.RenewReply(error_code=self.refusal)
        return wire.RenewReply(chain_pem=self.issue(request.request_pem, site))

    def _met(self, context: Any) -> str:
        pem = context.auth_context()["x509_pem_cert"][0]
        peer = parse_peer_certificate(pem)
        self.certificates.append(peer.fingerprint_sha256)
        return peer.site_id


class Enrolment(stubs.FedwardEnrolmentServicer):
    """Submit and Fetch of a coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def Submit(self, request: wire.SubmitRequest, context: Any) -> wire.SubmitReply:
        del context
        own = self._coordinator
        own.tokens.append(request.token)
        if own.refusal:
            return wire.SubmitReply(error_code=own.refusal)
        asked = EnrolmentRequest.parse(request.request)
        asked.verify()
        if own.invites[request.token].site != asked.site:
            return wire.SubmitReply(error_code="malformed")
        own.requests[asked.sha256] = asked
        return wire.SubmitReply(request_sha256=asked.sha256)

    def Fetch(self, request: wire.FetchRequest, context: Any) -> wire.FetchReply:
        del context
        own = self._coordinator
        own.fetches += 1
        if own.refusal_of_fetch:
            return wire.FetchReply(error_code=own.refusal_of_fetch)
        asked = own.requests[request.request_sha256]
        try:
            asked.check_fetch(time=request.time, signature=request.signature, now=datetime.now(UTC))
        except FedwardError:
            return wire.FetchReply(error_code="malformed")
        if own.decision != "granted":
            return wire.FetchReply(status=own.decision)
        return wire.FetchReply(status="granted", grant=own.grant(asked).canonical)


def _server_identity(made: Coordinator) -> Identity:
    request = new_request("edge")
    chain = issue_server(
        made.authority.issuing,
        request.request_pem,
        hosts=(made.name, "127.0.0.1"),
        now=datetime.now(UTC) + made.shown_shift,
    )
    return Identity(certificate_pem=chain, key_pem=request.key_pem)


@contextlib.contextmanager
def coordinator(authority: Authority | None = None, **answers: Any) -> Iterator[Coordinator]:
    """A coordinator that listens on two ports of loopback."""
    made = Coordinator(authority=authority or Authority(), **answers)
    identity = _server_identity(made)
    root = made.authority.root.certificate_pem
    edge = grpc.server(ThreadPoolExecutor(8), options=server_options())
    stubs.add_FedwardChannelServicer_to_server(made, edge)
    stubs.add_FedwardSiteServicer_to_server(made, edge)
    made.port = edge.add_secure_port("127.0.0.1:0", server_credentials(identity, root))
    listener = grpc.server(ThreadPoolExecutor(4), options=server_options())
    stubs.add_FedwardEnrolmentServicer_to_server(Enrolment(made), listener)
    # As the listener does: the root is in the chain, so that a site can compare it with its pin.
    shown = Identity(
        certificate_pem=identity.certificate_pem + (made.shown_root or root),
        key_pem=identity.key_pem,
    )
    credentials = grpc.ssl_server_credentials([(shown.key_pem, shown.certificate_pem)])
    made.enrolment_port = listener.add_secure_port("127.0.0.1:0", credentials)
    edge.start()
    listener.start()
    try:
        yield made
    finally:
        edge.stop(0).wait(10)
        listener.stop(0).wait(10)
