"""Who calls the gateway: the site's own SuperNode, proven on every call."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import NODE_KEY_HEADER, CallRefused
from fedward_common.errors import SignatureRefused
from fedward_common.trust.certificates import verify_node_signature

SIGNATURE_HEADER: Final = "flwr-signature"
TIMESTAMP_HEADER: Final = "flwr-timestamp"


class Caller(Protocol):
    """Decides whether a call comes from the process that the gateway is there for."""

    def check(self, headers: Mapping[str, str]) -> None:
        """Returns when it does. Raises CallRefused(NODE_KEY) otherwise."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SuperNode:
    """The holder of the site's node key; `public_key` is the value of its `flwr-public-key`.

    Every process of this machine reaches a loopback port. Without this check each of them, the
    worker too, could send what it likes in the ids and headers of a request: SuperLink would refuse
    the call, but the words would have left.
    """

    public_key: str

    def check(self, headers: Mapping[str, str]) -> None:
        """Returns when the key is this site's and signed the timestamp (Flower's own signature).

        Left to SuperLink: that the timestamp is of now.
        """
        if headers.get(NODE_KEY_HEADER) != self.public_key:
            raise CallRefused(Refusal.NODE_KEY, "expected this site's SuperNode, found another")
        signature, timestamp = headers.get(SIGNATURE_HEADER), headers.get(TIMESTAMP_HEADER)
        if signature is None or timestamp is None:
            raise CallRefused(Refusal.NODE_KEY, "expected a signed call, found none")
        try:
            verify_node_signature(self.public_key, signature=signature, text=timestamp)
        except SignatureRefused as error:
            raise CallRefused(Refusal.NODE_KEY, str(error)) from error
