"""The little that the edge reads of Flower's messages; private names of Flower stand here."""

from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from google.protobuf.message import DecodeError

from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused


class FlowerFleetMessages:
    """Implements the edge's `FleetMessages` with Flower 1.41's own protobuf."""

    def polling_node(self, body: bytes) -> int:
        """The node id in a pull-messages request. Raises CallRefused(MALFORMED)."""
        try:
            return int(PullMessagesRequest.FromString(body).node.node_id)
        except DecodeError as error:
            raise CallRefused(
                Refusal.MALFORMED, "expected a PullMessagesRequest, found something else"
            ) from error

    def carries_message(self, body: bytes) -> bool:
        """Whether a pull-messages reply holds a message; true where it cannot be read.

        What cannot be read is passed on at once: it is SuperNode's to judge.
        """
        try:
            return bool(PullMessagesResponse.FromString(body).messages_list)
        except DecodeError:
            return True

    def nothing(self) -> bytes:
        """A pull-messages reply without a message."""
        return bytes(PullMessagesResponse().SerializeToString())
