"""The little that the edge reads of Flower's messages; private names of Flower stand here."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from flwr.proto.fab_pb2 import GetFabRequest, GetFabResponse
from flwr.proto.fleet_pb2 import (
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse, PushObjectRequest
from flwr.proto.run_pb2 import GetRunRequest
from google.protobuf.message import DecodeError, Message

from fedward_common.canonical import sha256_hex
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_server.edge.objects import OpenedPush, PassedObject, PushedTo

T = TypeVar("T", bound=Message)

UNREADABLE: Final = "unreadable"
_ID = re.compile(r"[0-9a-f]{64}")


class FlowerFleetMessages:
    """Implements the edge's `ReadsObjects` with Flower 1.41's own protobuf."""

    def polling_node(self, body: bytes) -> int:
        """The node id in a pull-messages request. Raises CallRefused(MALFORMED)."""
        return int(_parse(PullMessagesRequest, body).node.node_id)

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

    def opened_push(self, request: bytes, reply: bytes) -> OpenedPush:
        """What a push-messages call opened. Raises CallRefused(MALFORMED)."""
        pushed, opened = _parse(PushMessagesRequest, request), _parse(PushMessagesResponse, reply)
        return OpenedPush(
            node=int(pushed.node.node_id),
            session=str(opened.session_id),
            missing=frozenset(opened.objects_to_push),
        )

    def pushed_to(self, request: bytes) -> PushedTo:
        """Whose object a push-object call carries. Raises CallRefused(MALFORMED)."""
        pushed = _parse(PushObjectRequest, request)
        return PushedTo(
            node=int(pushed.node.node_id),
            session=str(pushed.session_id),
            object_id=str(pushed.object_id),
        )

    def entering(self, route: str, request: bytes) -> Sequence[PassedObject]:
        """The objects that a site sends: a reply's message, or one of its objects.

        Raises:
            CallRefused: MALFORMED; the request cannot be read, or an object is not its digest's.
        """
        reader = _ENTERING.get(route)
        found = [] if reader is None else reader(request)
        if not all(_ID.fullmatch(passed.sha256) for passed in found):
            raise CallRefused(Refusal.MALFORMED, "expected objects named by their digests")
        return found

    def leaving(self, route: str, request: bytes, reply: bytes) -> Sequence[PassedObject]:
        """The objects that a site gets: instructions, their objects, the bundle, the run."""
        reader = _LEAVING.get(route)
        try:
            found = [] if reader is None else reader(request, reply)
        except CallRefused:
            found = [PassedObject(kind=UNREADABLE, sha256="", size_bytes=len(reply))]
        return [
            passed
            if _ID.fullmatch(passed.sha256)
            else PassedObject(kind=UNREADABLE, sha256=sha256_hex(reply), size_bytes=len(reply))
            for passed in found
        ]


def _pushed_messages(request: bytes) -> list[PassedObject]:
    return [
        PassedObject(
            kind="error-reply" if message.HasField("error") else "reply",
            sha256=message.metadata.message_id,
            size_bytes=len(request),
            run=str(message.metadata.run_id),
        )
        for message in _parse(PushMessagesRequest, request).messages_list
    ]


def _pushed_object(request: bytes) -> list[PassedObject]:
    pushed = _parse(PushObjectRequest, request)
    found = sha256_hex(pushed.object_content)
    if found != pushed.object_id:
        raise CallRefused(Refusal.MALFORMED, "expected the bytes of the object's id, found others")
    size_bytes, run = len(pushed.object_content), str(pushed.run_id)
    return [PassedObject(kind="object", sha256=found, size_bytes=size_bytes, run=run)]


def _pulled_messages(_request: bytes, reply: bytes) -> list[PassedObject]:
    return [
        PassedObject(
            kind="message",
            sha256=message.metadata.message_id,
            size_bytes=len(reply),
            run=str(message.metadata.run_id),
        )
        for message in _parse(PullMessagesResponse, reply).messages_list
    ]


def _pulled_object(request: bytes, reply: bytes) -> list[PassedObject]:
    content = _parse(PullObjectResponse, reply).object_content
    if not content:
        return []  # not there yet
    wanted = _parse(PullObjectRequest, request)
    size_bytes, run = len(content), str(wanted.run_id)
    return [PassedObject(kind="object", sha256=wanted.object_id, size_bytes=size_bytes, run=run)]


def _bundle(request: bytes, reply: bytes) -> list[PassedObject]:
    fab, run = _parse(GetFabResponse, reply).fab, str(_parse(GetFabRequest, request).run_id)
    size_bytes = len(fab.content)
    return [PassedObject(kind="bundle", sha256=fab.hash_str, size_bytes=size_bytes, run=run)]


def _run(request: bytes, reply: bytes) -> list[PassedObject]:
    run = str(_parse(GetRunRequest, request).run_id)
    return [PassedObject(kind="run", sha256=sha256_hex(reply), size_bytes=len(reply), run=run)]


_ENTERING: Final[Mapping[str, Callable[[bytes], list[PassedObject]]]] = {
    "push-messages": _pushed_messages,
    "push-object": _pushed_object,
}
_LEAVING: Final[Mapping[str, Callable[[bytes, bytes], list[PassedObject]]]] = {
    "pull-messages": _pulled_messages,
    "pull-object": _pulled_object,
    "get-fab": _bundle,
    "get-run": _run,
}


def _parse(kind: type[T], body: bytes) -> Any:
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise CallRefused(
            Refusal.MALFORMED, f"expected a {kind.DESCRIPTOR.name}, found something else"
        ) from error
