"""What may cross the channel: Flower's twelve Fleet operations, its own headers, 8 MiB at a time.

Both ends check with these functions: the gateway what it sends, the edge what it gets. Everything
that is not named here does not pass.
"""

import re
from collections.abc import Mapping
from typing import Final

from fedward_common.channel.refusals import Refusal
from fedward_common.errors import ChannelError

ROUTES: Final = frozenset(
    {
        "register-node",
        "activate-node",
        "deactivate-node",
        "unregister-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    }
)
PATH_PREFIX: Final = "/v1/fleet/"
MEDIA_TYPE: Final = "application/protobuf"

MAX_BODY_BYTES: Final = 8 << 20
MAX_MESSAGE_BYTES: Final = 2 * MAX_BODY_BYTES
"""gRPC's own limit lies above ours, so that a body that is too large is refused with our words."""

NODE_KEY_HEADER: Final = "flwr-public-key"

_BASE64 = r"[A-Za-z0-9+/]{1,1024}={0,2}"
REQUEST_HEADERS: Final[Mapping[str, re.Pattern[str]]] = {
    NODE_KEY_HEADER: re.compile(_BASE64),
    "flwr-signature": re.compile(_BASE64),
    "flwr-timestamp": re.compile(r"[0-9T:.+-]{10,40}"),
    "flwr-package-name": re.compile(r"flwr"),
    "flwr-package-version": re.compile(r"1\.41\.\d{1,2}"),
    "flwr-component-name": re.compile(r"SuperNode"),
}
REPLY_HEADERS: Final[Mapping[str, re.Pattern[str]]] = {
    "flwr-version-incompatibility-message": re.compile(r"[\x20-\x7e]{1,1024}"),
}


class CallRefused(ChannelError):
    """A call that may not pass; `refusal` is the reason on the wire and in the logs."""

    def __init__(self, refusal: Refusal, found: str) -> None:
        super().__init__(f"channel: {refusal.value}: {found}")
        self.refusal = refusal


def check_route(route: str) -> None:
    """Returns when `route` is a Fleet operation. Raises CallRefused(ROUTE) otherwise."""
    if route not in ROUTES:
        raise CallRefused(Refusal.ROUTE, "expected one of Flower's twelve Fleet operations")


def check_body(body: bytes) -> None:
    """Returns when `body` is at most 8 MiB. Raises CallRefused(BODY_TOO_LARGE) otherwise."""
    if len(body) > MAX_BODY_BYTES:
        raise CallRefused(
            Refusal.BODY_TOO_LARGE, f"expected at most {MAX_BODY_BYTES} bytes, found {len(body)}"
        )


def check_headers(headers: Mapping[str, str]) -> None:
    """Returns when every header is one that Flower sends, in Flower's form.

    Raises:
        CallRefused: HEADER. A free header would be a way out for anything.
    """
    for name, value in headers.items():
        pattern = REQUEST_HEADERS.get(name)
        if pattern is None or not pattern.fullmatch(value):
            raise CallRefused(Refusal.HEADER, "expected Flower's own headers in their own form")


def request_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Flower's headers among those of an HTTP request; HTTP's own headers stay behind."""
    return {name: headers[name] for name in REQUEST_HEADERS if name in headers}


def reply_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Flower's headers among those of an HTTP reply, where they are of Flower's form."""
    return {
        name: headers[name]
        for name, pattern in REPLY_HEADERS.items()
        if name in headers and pattern.fullmatch(headers[name])
    }
