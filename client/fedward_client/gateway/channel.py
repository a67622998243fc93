"""The site's end of the encrypted channel: grpc over mutual TLS 1.3 to the edge."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

import grpc

from fedward_client.gateway.fleet import Answer
from fedward_common.channel import channel_pb2 as wire
from fedward_common.channel import channel_pb2_grpc as stubs
from fedward_common.channel.credentials import TlsFiles, channel_credentials, channel_options
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused, check_body, reply_headers
from fedward_common.errors import ChannelError
from fedward_common.trust.certificates import expires_at

CALL_SECONDS: Final = 28.0
HEARTBEAT_SECONDS: Final = 4.5
"""SuperNode waits 30 s for an answer and 5 s for that of a heartbeat: ours comes before."""


class EdgeChannel:
    """Implements `Channel` with one kept-alive connection."""

    def __init__(
        self,
        *,
        coordinator: str,
        server_name: str | None,
        tls: TlsFiles,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        identity, root = tls.read()
        self._expires_at = expires_at(identity.certificate_pem)
        self._clock = clock
        self._channel = grpc.aio.secure_channel(
            coordinator,
            channel_credentials(identity, root),
            options=channel_options(coordinator.rpartition(":")[0], server_name),
        )
        self._stub = stubs.FedwardChannelStub(self._channel)

    async def forward(self, route: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """SuperLink's answer.

        Raises:
            CallRefused: the edge refused, with its reason.
            ChannelError: no answer came; says what this site can see of the cause.
        """
        request = wire.ForwardRequest(route=route, headers=headers, body=body)
        timeout = HEARTBEAT_SECONDS if route == "send-node-heartbeat" else CALL_SECONDS
        try:
            reply = await self._stub.Forward(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise self._explained(error) from error
        if reply.error_code:
            raise CallRefused(_known(reply.error_code), "the coordinator's edge refused the call")
        check_body(reply.body)
        return Answer(
            status=reply.status, headers=reply_headers(dict(reply.headers)), body=reply.body
        )

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()

    def _explained(self, error: grpc.aio.AioRpcError) -> ChannelError:
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            if "larger than max" in (error.details() or ""):
                return CallRefused(Refusal.BODY_TOO_LARGE, "expected at most 8 MiB, found far more")
            return CallRefused(Refusal.RATE, "expected the edge to have room, found it full")
        if self._clock() > self._expires_at:
            return CallRefused(
                Refusal.CERTIFICATE_EXPIRED,
                f"this site's certificate ended at {self._expires_at.isoformat()}: renew it",
            )
        return ChannelError(
            f"coordinator: expected an answer, found {error.code().name.lower()}. It is down, the "
            "network is cut, or it refused this site's certificate: its log says which"
        )


def _known(code: str) -> Refusal:
    try:
        return Refusal(code)
    except ValueError:
        return Refusal.UPSTREAM
