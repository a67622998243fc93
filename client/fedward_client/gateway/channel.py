"""The site's end of the encrypted channel: grpc over mutual TLS 1.3 to the edge."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Final, Protocol, Self, TypeVar

import grpc

from fedward_client.adapters.key_files import certificate_request, read_passphrase
from fedward_client.adapters.tls_pair import SiteIdentity, TlsPair
from fedward_client.gateway.dial import dial, explained
from fedward_client.gateway.fleet import Answer
from fedward_client.gateway.greeting import Greeting
from fedward_client.gateway.offers import ModelOffer, model_offers
from fedward_client.gateway.streams import (
    FetchStream,
    SendStream,
    Stream,
    fetch_stream,
    phase_stream,
    send_stream,
)
from fedward_client.proxy import Proxy
from fedward_client.settings import SiteSettings
from fedward_common.channel import channel_pb2 as wire
from fedward_common.channel import channel_pb2_grpc as stubs
from fedward_common.channel.credentials import channel_credentials
from fedward_common.channel.refusals import Refusal, explain_refusal
from fedward_common.channel.routes import CallRefused, check_body, reply_headers
from fedward_common.errors import ChannelError, ConfigError, SignatureRefused
from fedward_common.trust.certificates import Identity, PeerCertificate, parse_peer_certificate
from fedward_common.trust.chains import verify_site_chain

T = TypeVar("T")

CALL_SECONDS: Final = 28.0
HEARTBEAT_SECONDS: Final = 4.5
"""SuperNode waits 30 s for an answer and 5 s for that of a heartbeat: ours comes before."""
OWN_CONNECTION: Final = ("grpc.use_local_subchannel_pool", 1)
OWN_CALL_SECONDS: Final = 20.0
"""For what the gateway asks on its own."""


class IdentitySource(Protocol):
    """Where the channel finds the site's identity, each time it opens a connection."""

    def read(self) -> tuple[Identity, bytes]:
        """The identity and the federation's root in PEM. Raises ConfigError."""
        ...


class EdgeChannel:
    """Implements `Channel` and `SiteChannel` with one kept-alive connection."""

    def __init__(
        self,
        *,
        coordinator: str,
        server_name: str | None,
        tls: IdentitySource,
        proxy: Proxy | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._coordinator = coordinator
        self._server_name = server_name
        self._tls = tls
        self._proxy = proxy
        self._clock = clock
        self._closing: set[asyncio.Task[None]] = set()
        self.edge_certificate_sha256 = ""
        """The certificate that the edge last showed, for the journal; "" while it is not known."""
        self._open()

    @classmethod
    def of(cls, settings: SiteSettings) -> Self:
        """A channel with the identity and by the way that site.toml names.

        Raises:
            ConfigError: a key, a certificate or the proxy's file is not in order.
        """
        keys, coordinator = settings.keys, settings.coordinator
        pair = TlsPair(
            certificate=keys.tls_certificate,
            key=keys.tls_key,
            passphrase=read_passphrase(keys.passphrase_file),
        )
        return cls(
            coordinator=coordinator.address,
            server_name=coordinator.server_name,
            tls=SiteIdentity(pair=pair, ca=keys.ca),
            proxy=Proxy.of(coordinator.proxy, coordinator.proxy_auth_file),
        )

    def _open(self) -> None:
        identity, root = self._tls.read()
        self._own = _own_certificate(identity)
        self._foreign = self._own is not None and _is_foreign(
            identity, root, self._own, now=self._clock()
        )
        target, options = dial(self._coordinator, server_name=self._server_name, proxy=self._proxy)
        credentials = channel_credentials(identity, root)
        self._channel = grpc.aio.secure_channel(target, credentials, options=options)
        # Connects with its first stream. Behind a blob a heartbeat would be late.
        self._bulk = grpc.aio.secure_channel(
            target, credentials, options=[*options, OWN_CONNECTION]
        )
        self._stub = stubs.FedwardChannelStub(self._channel)
        self._site = stubs.FedwardSiteStub(self._channel)

    async def forward(self, route: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """SuperLink's answer.

        Raises:
            CallRefused: the edge refused, with its reason.
            ChannelError: no answer came; says what this site can see of the cause.
        """
        request = wire.ForwardRequest(route=route, headers=headers, body=body)
        timeout = HEARTBEAT_SECONDS if route == "send-node-heartbeat" else CALL_SECONDS
        reply = await self._answered(self._stub.Forward(request, timeout=timeout))
        _check(reply.error_code)
        check_body(reply.body)
        return Answer(
            status=reply.status, headers=reply_headers(dict(reply.headers)), body=reply.body
        )

    async def hello(self, versions: Mapping[str, str]) -> Greeting:
        """What the coordinator says of itself, after it heard our versions.

        Raises:
            CallRefused, ChannelError: as `forward`.
        """
        asked_at = self._clock().timestamp()
        call = self._site.Hello(wire.HelloRequest(versions=versions), timeout=OWN_CALL_SECONDS)
        reply = await self._answered(call)
        _check(reply.error_code)
        return Greeting.of(
            versions=dict(reply.versions),
            time=reply.time,
            revoked=reply.revoked,
            asked_at=asked_at,
            answered_at=self._clock().timestamp(),
        )

    async def renew(self, request_pem: bytes) -> bytes:
        """The new certificate chain (PEM) for the key of `request_pem`, not yet verified.

        Raises:
            CallRefused, ChannelError: as `forward`.
        """
        request = wire.RenewRequest(request_pem=request_pem)
        reply = await self._answered(self._site.Renew(request, timeout=OWN_CALL_SECONDS))
        _check(reply.error_code)
        chain: bytes = reply.chain_pem
        return chain

    async def models(self) -> tuple[ModelOffer, ...]:
        """The signed models of this site's studies, as the coordinator lists them.

        Raises:
            CallRefused, ChannelError: as `forward`.
        """
        request = wire.ListModelsRequest()
        reply = await self._answered(self._site.ListModels(request, timeout=OWN_CALL_SECONDS))
        _check(reply.error_code)
        return model_offers(reply)

    async def model_piece(self, run: str, file: str, *, offset: int) -> tuple[bytes, int]:
        """The bytes of a model package's file from `offset`, and the file's whole size.

        Raises:
            CallRefused, ChannelError: as `forward`.
        """
        request = wire.FetchModelRequest(run=run, file=file, offset=offset)
        reply = await self._answered(self._site.FetchModel(request, timeout=CALL_SECONDS))
        _check(reply.error_code)
        return reply.content, reply.size

    def phase(self) -> Stream:
        """A new stream for the steps of a phase."""
        return phase_stream(self._channel, self._explained)

    def fetch_blob(self) -> FetchStream:
        """A new stream for a blob that comes in."""
        return fetch_stream(self._bulk, self._explained)

    def send_blob(self) -> SendStream:
        """A new stream for a blob that goes out."""
        return send_stream(self._bulk, self._explained)

    def reconnect(self) -> None:
        """Makes the next call with the identity that lies in the files now.

        Calls under way end on the connection that they began on: no run notices.

        Raises:
            ConfigError: the files are not in order; the present connection stays.
        """
        before = (self._channel, self._bulk)
        self._open()
        for channel in before:
            task = asyncio.get_running_loop().create_task(channel.close(CALL_SECONDS))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Closes the connection, and those that still served calls."""
        for task in list(self._closing):
            task.cancel()
        await self._channel.close()
        await self._bulk.close()

    async def _answered(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise self._explained(error) from error

    def _explained(self, error: grpc.aio.AioRpcError) -> ChannelError:
        details = error.details() or ""
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            if "larger than max" in details:
                return CallRefused(Refusal.BODY_TOO_LARGE, "expected at most 8 MiB, found far more")
            return CallRefused(Refusal.RATE, "expected the edge to have room, found it full")
        if (refused := self._not_acceptable()) is not None:
            return refused
        found = explained(details, coordinator=self._coordinator, proxy=self._proxy)
        return found or ChannelError(
            f"coordinator: expected an answer, found {error.code().name.lower()}. It is down, the "
            "network is cut, or it refused this site's certificate: its log says which"
        )

    def _not_acceptable(self) -> CallRefused | None:
        """Why our own certificate cannot be accepted, as far as this site can tell."""
        now, own = self._clock(), self._own
        if own is None:
            return None
        if now > own.not_after:
            return CallRefused(
                Refusal.CERTIFICATE_EXPIRED,
                f"this site's certificate ended at {own.not_after.isoformat()}: renew it. The "
                "operator gives a new invite for `fedward-client enrol`",
            )
        if now < own.not_before:
            return CallRefused(
                Refusal.CERTIFICATE_NOT_YET_VALID,
                f"this site's certificate starts at {own.not_before.isoformat()}: check this "
                "machine's clock",
            )
        if self._foreign:
            return CallRefused(
                Refusal.UNKNOWN_AUTHORITY,
                f"{own.site_id} of {own.federation}: the root in keys.ca did not sign it, so the "
                "edge refused this site's certificate. Put both from one grant there, or enrol",
            )
        return None


def _own_certificate(identity: Identity) -> PeerCertificate | None:
    """What our certificate says; None where it is not a site's, which the edge will say itself."""
    try:
        return parse_peer_certificate(identity.certificate_pem)
    except ChannelError:
        return None


def _is_foreign(
    identity: Identity, root_pem: bytes, own: PeerCertificate, *, now: datetime
) -> bool:
    """Whether our certificate, if it is valid now, does not lead to the root that we trust."""
    try:
        verify_site_chain(
            identity.certificate_pem,
            root_pem=root_pem,
            request_pem=certificate_request(identity.key_pem, common_name="compare"),
            federation=own.federation,
            site=own.site_id,
            now=now,
        )
    except (SignatureRefused, ConfigError):
        return True
    return False


def _check(code: str) -> None:
    if code:
        refusal = _known(code)
        raise CallRefused(refusal, explain_refusal(refusal.value))


def _known(code: str) -> Refusal:
    try:
        return Refusal(code)
    except ValueError:
        return Refusal.UPSTREAM
