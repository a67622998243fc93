"""Flower 1.41's Fleet messages as the gateway reads them; private names of Flower stand here.

`tests/contract/test_flower_private_names.py` fails where another version moved one of them.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from flwr.common.constant import ErrorCode
from flwr.proto.error_pb2 import Error
from flwr.proto.fab_pb2 import GetFabRequest, GetFabResponse
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.message_pb2 import Message as FlowerMessage
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse
from flwr.supercore.constant import HEAD_BODY_DIVIDER, HEAD_VALUE_DIVIDER
from google.protobuf.message import DecodeError, Message

from fedward_client.adapters.flower_records import in_order, manifests_of_object, tree_sha256
from fedward_client.gateway.fleet import (
    Addressing,
    Bundle,
    Incoming,
    Outgoing,
    PulledObject,
    PushedObject,
)
from fedward_common.canonical import sha256_hex
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused

T = TypeVar("T", bound=Message)

LOAD_FAILED_TEXT: Final = "An exception was raised when attempting to load `ClientApp`"
FIXED_ERRORS: Final = frozenset(
    {
        (ErrorCode.CLIENT_APP_CRASHED, "ClientApp stopped responding."),
        (ErrorCode.INVALID_FAB, "The FAB could not be verified."),
        (ErrorCode.LOAD_CLIENT_APP_EXCEPTION, LOAD_FAILED_TEXT),
    }
)
"""Error replies whose text Flower fixes: no room for a value. Any other text may quote one.

Written out: the modules that hold them load a web server and a database (a second of the gateway).
"""

MAX_TREE: Final = 100_000

_ID = re.compile(r"[0-9a-f]{64}")
_SESSION = re.compile(r"[A-Za-z0-9._-]{0,128}")
_APP_ID = re.compile(r"[A-Za-z0-9_-]{1,64}/[A-Za-z0-9_-]{1,64}")
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+-]{0,31}")

_REQUESTS: Final[Mapping[str, type[Message]]] = {
    "register-node": RegisterNodeFleetRequest,
    "activate-node": ActivateNodeRequest,
    "deactivate-node": DeactivateNodeRequest,
    "unregister-node": UnregisterNodeFleetRequest,
    "send-node-heartbeat": SendNodeHeartbeatRequest,
    "pull-messages": PullMessagesRequest,
    "push-messages": PushMessagesRequest,
    "get-run": GetRunRequest,
    "get-fab": GetFabRequest,
    "push-object": PushObjectRequest,
    "pull-object": PullObjectRequest,
    "confirm-message-received": ConfirmMessageReceivedRequest,
}
_FORMS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "register-node": lambda request: len(request.public_key) <= 512,
    "activate-node": lambda request: (
        len(request.public_key) <= 512 and float(request.heartbeat_interval).is_integer()
    ),
    "send-node-heartbeat": lambda request: float(request.heartbeat_interval).is_integer(),
    "pull-messages": lambda request: not request.message_ids,
    "push-messages": lambda request: (
        len(request.messages_list) == len(request.message_object_trees) == 1
        and request.messages_list[0].content.ByteSize() == 0
    ),
    "get-fab": lambda request: _ID.fullmatch(request.hash_str) is not None,
    "push-object": lambda request: (
        _ID.fullmatch(request.object_id) is not None
        and _SESSION.fullmatch(request.session_id) is not None
    ),
    "pull-object": lambda request: _ID.fullmatch(request.object_id) is not None,
    "confirm-message-received": lambda request: (
        _ID.fullmatch(request.message_object_id) is not None
    ),
}
"""Requests with room for free text: what the text must look like."""


class FlowerFleetMessages:
    """Implements the gateway's `FleetMessages` with Flower 1.41's own protobuf."""

    def normalised(self, route: str, body: bytes) -> bytes:
        """A request again, from what was understood of it: nothing else rides along."""
        request: Any = _parse(_REQUESTS[route], body)
        request.DiscardUnknownFields()  # type: ignore[no-untyped-call, unused-ignore]
        if route == "push-messages":
            # How long the training took depends on the patients drawn (rules 7).
            del request.clientapp_runtime_list[:]
        if not _FORMS.get(route, lambda _request: True)(request):
            raise CallRefused(Refusal.MALFORMED, f"expected Flower's own form of {route}")
        if route == "push-messages":
            request.message_object_trees[0].CopyFrom(in_order(request.message_object_trees[0]))
        return bytes(request.SerializeToString(deterministic=True))

    def incoming(self, reply: bytes) -> Sequence[Incoming]:
        """The instructions in a pull-messages reply."""
        messages = _parse(PullMessagesResponse, reply).messages_list
        if not all(_ID.fullmatch(message.metadata.message_id) for message in messages):
            raise CallRefused(Refusal.MALFORMED, "expected messages named by their digests")
        return [
            Incoming(
                message_id=message.metadata.message_id, addressing=_addressing(message.metadata)
            )
            for message in messages
        ]

    def addressing(self, content: bytes) -> Addressing:
        """The metadata in a message object: what a reply to it is made from."""
        head, _, body = content.partition(HEAD_BODY_DIVIDER)
        if not head.startswith(b"Message" + HEAD_VALUE_DIVIDER.encode()):
            raise CallRefused(Refusal.MALFORMED, "expected a message object, found another")
        return _addressing(_parse(FlowerMessage, body).metadata)

    def outgoing(self, request: bytes) -> Outgoing:
        """The one reply in a push-messages request."""
        pushed = _parse(PushMessagesRequest, request)
        message, tree = pushed.messages_list[0], pushed.message_object_trees[0]
        error = message.error if message.HasField("error") else None
        return Outgoing(
            message_id=message.metadata.message_id,
            addressing=_addressing(message.metadata),
            node=pushed.node.node_id,
            root=tree.object_id,
            objects=tuple(dict.fromkeys(_below(tree))),
            tree_sha256=tree_sha256(tree),
            object_sha256=sha256_hex(message_object(message, tree)),
            error=error is not None,
            error_is_fixed=error is not None and (error.code, error.reason) in FIXED_ERRORS,
        )

    def session(self, reply: bytes) -> str:
        """The push session that a push-messages reply opens."""
        return str(_parse(PushMessagesResponse, reply).session_id)

    def pushed_object(self, request: bytes) -> PushedObject:
        """The object in a push-object request."""
        pushed = _parse(PushObjectRequest, request)
        return PushedObject(
            node=pushed.node.node_id,
            run_id=pushed.run_id,
            object_id=pushed.object_id,
            session=pushed.session_id,
            content=pushed.object_content,
        )

    def pulled_object(self, request: bytes, reply: bytes) -> PulledObject:
        """The object asked for and the content that came."""
        asked = _parse(PullObjectRequest, request)
        content = _parse(PullObjectResponse, reply).object_content
        return PulledObject(object_id=asked.object_id, run_id=asked.run_id, content=content)

    def manifests(self, content: bytes) -> Mapping[str, bytes]:
        """The manifests in an object of an instruction, by their names; none in most objects."""
        return manifests_of_object(content)

    def bundle(self, reply: bytes) -> Bundle:
        """The bundle in a get-fab reply."""
        fab = _parse(GetFabResponse, reply).fab
        return Bundle(sha256=fab.hash_str, content=fab.content)

    def check_run(self, reply: bytes) -> None:
        """Returns when the names in a get-run reply are safe to build paths from."""
        run = _parse(GetRunResponse, reply).run
        if not (
            _APP_ID.fullmatch(run.fab_id)
            and _VERSION.fullmatch(run.fab_version)
            and _ID.fullmatch(run.fab_hash)
        ):
            raise CallRefused(Refusal.MALFORMED, "expected a run with an app's name and digest")

    def to_push(self, reply: bytes) -> Sequence[str]:
        """The objects that a push-messages reply asks for."""
        return tuple(_parse(PushMessagesResponse, reply).objects_to_push)

    def object_request(self, pushed: PushedObject) -> bytes:
        """A push-object request, as SuperNode makes it."""
        return bytes(
            PushObjectRequest(
                node=Node(node_id=pushed.node),
                run_id=pushed.run_id,
                object_id=pushed.object_id,
                object_content=pushed.content,
                session_id=pushed.session,
            ).SerializeToString(deterministic=True)
        )

    def was_stored(self, reply: bytes) -> bool:
        """What a push-object reply says."""
        return bool(_parse(PushObjectResponse, reply).stored)

    def taken(self, message_id: str, objects: Sequence[str], session: str) -> bytes:
        """A push-messages reply that takes the message and asks for its objects."""
        taken = PushMessagesResponse(
            results={message_id: 0}, objects_to_push=objects, session_id=session
        )
        return bytes(taken.SerializeToString())

    def stored(self) -> bytes:
        """A push-object reply that says the object was taken."""
        return bytes(PushObjectResponse(stored=True).SerializeToString())

    def swallowed(self, message_id: str) -> bytes:
        """A push-messages reply that says done and asks for nothing."""
        return bytes(PushMessagesResponse(results={message_id: 0}).SerializeToString())

    def not_stored(self) -> bytes:
        """A push-object reply that says the object was not taken."""
        return bytes(PushObjectResponse(stored=False).SerializeToString())


def message_object(message: FlowerMessage, tree: ObjectTree) -> bytes:
    """The bytes of the object as which Flower sends `message` itself: its metadata and error.

    The head is the type, the ids of the children and the length of the body; the body is the
    message without its id and its content.
    """
    metadata = Metadata()
    metadata.CopyFrom(message.metadata)
    metadata.message_id = ""
    error = Error()
    error.CopyFrom(message.error)
    body = FlowerMessage(
        metadata=metadata, error=error if message.HasField("error") else None
    ).SerializeToString(deterministic=True)
    children = ",".join(child.object_id for child in tree.children)
    head = HEAD_VALUE_DIVIDER.join(("Message", children, str(len(body))))
    return head.encode() + HEAD_BODY_DIVIDER + bytes(body)


def _addressing(metadata: Metadata) -> Addressing:
    return Addressing(
        run_id=metadata.run_id,
        source=metadata.src_node_id,
        destination=metadata.dst_node_id,
        reply_to=metadata.reply_to_message_id,
        group=metadata.group_id,
        kind=metadata.message_type,
        created_at=metadata.created_at,
        ttl_seconds=metadata.ttl,
        source_task=metadata.src_task_id if metadata.HasField("src_task_id") else None,
        destination_task=metadata.dst_task_id if metadata.HasField("dst_task_id") else None,
    )


def _below(tree: ObjectTree) -> Iterator[str]:
    """The ids below the root; an id of another form, or too many of them, is refused."""
    waiting, count = list(tree.children), 0
    while waiting:
        node = waiting.pop()
        count += 1
        if count > MAX_TREE or not _ID.fullmatch(node.object_id):
            raise CallRefused(Refusal.MALFORMED, "expected a tree of object ids")
        waiting.extend(node.children)
        yield node.object_id


def _parse(kind: type[T], body: bytes) -> T:
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise CallRefused(
            Refusal.MALFORMED, f"expected a {kind.DESCRIPTOR.name}, found something else"
        ) from error
