"""Submit and Fetch at the coordinator's enrolment listener. Import it after `require_tls13`."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import grpc

from fedward_client.enrol.answer import Answer
from fedward_client.gateway.dial import dial, explained
from fedward_client.peer import Target
from fedward_client.proxy import Proxy
from fedward_common.channel import channel_pb2 as wire
from fedward_common.channel import channel_pb2_grpc as stubs
from fedward_common.channel.refusals import Refusal, explain_refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.errors import ChannelError, ProtocolError
from fedward_common.ids import Digest
from fedward_common.trust.enrolment import MAX_REQUEST_BYTES, EnrolmentRequest, fetch_bytes

CALL_SECONDS: Final = 20.0
ANSWERS: Final = {"waiting", "granted", "denied"}


class Listener:
    """The listener behind one connection that trusts the pinned root only."""

    def __init__(self, target: Target, *, root_pem: bytes, proxy: Proxy | None) -> None:
        self._target = target
        self._proxy = proxy
        address, options = dial(str(target), server_name=target.server_name, proxy=proxy)
        self._channel = grpc.secure_channel(
            address, grpc.ssl_channel_credentials(root_certificates=root_pem), options=options
        )
        self._stub = stubs.FedwardEnrolmentStub(self._channel)

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def submit(self, request: EnrolmentRequest, *, token: str) -> Digest:
        """Hands the request in under the invite's token; returns its digest.

        Raises:
            CallRefused: the coordinator's reason.
            ChannelError: no answer; ProtocolError: the answer is about something else.
        """
        message = wire.SubmitRequest(token=token, request=request.canonical)
        reply = self._answered(self._stub.Submit, message)
        _check(reply.error_code)
        if reply.request_sha256 != request.sha256:
            raise ProtocolError("enrolment: expected the digest of our request, found another")
        return request.sha256

    def fetch(
        self,
        request_sha256: Digest,
        *,
        sign: Callable[[bytes], bytes],
        now: datetime,
    ) -> Answer:
        """The answer to the request, if there is one yet.

        Raises:
            CallRefused, ChannelError, ProtocolError: as `submit`.
        """
        seconds = int(now.timestamp())
        message = wire.FetchRequest(
            request_sha256=request_sha256,
            time=seconds,
            signature=sign(fetch_bytes(request_sha256, seconds)),
        )
        reply = self._answered(self._stub.Fetch, message)
        _check(reply.error_code)
        if reply.status not in ANSWERS or len(reply.grant) > MAX_REQUEST_BYTES:
            raise ProtocolError("enrolment: expected waiting, granted or denied, found another")
        return Answer(status=reply.status, grant=reply.grant)

    def _answered(self, call: Any, message: Any) -> Any:
        try:
            return call(message, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            details, code = error.details() or "", error.code().name.lower()
            found = explained(details, coordinator=str(self._target), proxy=self._proxy)
            raise found or ChannelError(
                f"listener {self._target}: expected an answer, found {code}. It is open only while "
                "an invite is; ask the operator"
            ) from error


def _check(code: str) -> None:
    if not code:
        return
    try:
        refusal = Refusal(code)
    except ValueError:
        refusal = Refusal.UPSTREAM
    raise CallRefused(refusal, explain_refusal(code))
