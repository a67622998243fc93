"""SuperNode and SuperLink in miniature: real Flower messages as they cross the Fleet API."""

import base64
import io
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_to_proto
from flwr.proto.fab_pb2 import Fab, GetFabRequest, GetFabResponse
from flwr.proto.fleet_pb2 import (
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import (
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunResponse, Run
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.primitives.asymmetric import sign_message

from fedward_client.adapters.flower_records import tree_sha256
from fedward_client.gateway.fleet import Answer
from fedward_client.ports import Passing
from fedward_common.canonical import sha256_hex
from fedward_common.errors import ChannelError, PolicyRefused
from fedward_common.trust.certificates import NodeKey

RUN, NODE, SUPERLINK = 11, 22, 1
SESSION = "session-1"
GOOD_PROJECT = """
[project]
name = "fedward"
version = "0.1.0"
dependencies = []
[tool.flwr.app]
publisher = "fedward"
[tool.flwr.app.components]
serverapp = "fedward_server.flower_app:app"
clientapp = "fedward_client.flower_app:app"
"""


def records(payload: bytes = b"payload") -> RecordDict:
    array = Array(dtype="uint8", shape=(len(payload),), stype="fedward.bytes", data=payload)
    return RecordDict(
        {"fedward": ConfigRecord({"header": b"{}"}), "blob": ArrayRecord({"bytes": array})}
    )


def instruction(*, created_at: float | None = None, task: int | None = 77) -> Message:
    """An instruction of a ServerApp; its object names the ServerApp's task."""
    message = make_message(
        metadata=Metadata(
            run_id=RUN,
            message_id="",
            src_node_id=SUPERLINK,
            dst_node_id=NODE,
            reply_to_message_id="",
            group_id="1",
            created_at=time.time() if created_at is None else created_at,
            ttl=600.0,
            message_type="train",
            src_task_id=task,
        ),
        content=RecordDict({"x": ConfigRecord({"y": 1})}),
    )
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


def reply_to(message: Message, content: RecordDict | Error | None = None) -> Message:
    """The reply of a ClientApp, named by its digest as Flower does."""
    reply = Message(records() if content is None else content, reply_to=message)
    return named(reply)


def named(message: Message) -> Message:
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


def announced(message: Message) -> bytes:
    """A pull-messages reply: as SuperLink's SQL state has it, without the task."""
    proto = message_to_proto(remove_content_from_message(message))
    proto.metadata.ClearField("src_task_id")
    tree = get_object_tree(message)
    return PullMessagesResponse(
        messages_list=[proto], message_object_trees=[tree]
    ).SerializeToString()


def push_messages(reply: Message, **changes: object) -> bytes:
    request = PushMessagesRequest(
        node=Node(node_id=NODE),
        messages_list=[message_to_proto(remove_content_from_message(reply))],
        message_object_trees=[get_object_tree(reply)],
        clientapp_runtime_list=[12.5],
    )
    for name, value in changes.items():
        setattr(request, name, value)
    return request.SerializeToString()


def objects(message: Message) -> dict[str, bytes]:
    return {name: item.deflate() for name, item in get_all_nested_objects(message).items()}


def push_object(object_id: str, content: bytes, **changes: object) -> bytes:
    request = PushObjectRequest(
        node=Node(node_id=NODE),
        run_id=RUN,
        object_id=object_id,
        object_content=content,
        session_id=SESSION,
    )
    for name, value in changes.items():
        setattr(request, name, value)
    return request.SerializeToString()


def pull_object(object_id: str) -> bytes:
    return PullObjectRequest(
        node=Node(node_id=NODE), run_id=RUN, object_id=object_id
    ).SerializeToString()


def bundle(files: Mapping[str, str | bytes] | None = None) -> bytes:
    files = {"pyproject.toml": GOOD_PROJECT, "LICENSE": "text"} if files is None else files
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


@dataclass(kw_only=True)
class FakeChannel:
    """A coordinator: gives out what it was given, remembers what reached it."""

    messages: list[Message] = field(default_factory=list)
    fab: bytes = field(default_factory=bundle)
    fab_hash: str = ""
    fab_id: str = "fedward/fedward"
    store: dict[str, bytes] = field(default_factory=dict)
    status: int = 200
    statuses: dict[str, int] = field(default_factory=dict)
    error: ChannelError | None = None
    edge_certificate_sha256: str = ""
    reached: list[tuple[str, bytes]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)

    async def forward(self, route: str, headers: Mapping[str, str], body: bytes) -> Answer:
        if self.error is not None:
            raise self.error
        self.reached.append((route, body))
        self.headers.append(headers)
        if (status := self.statuses.get(route, self.status)) != 200:
            return Answer(status=status, body=b"{}")
        return Answer(status=200, body=self._body(route, body))

    def _body(self, route: str, body: bytes) -> bytes:
        match route:
            case "pull-messages":
                if not self.messages:
                    return b""
                message = self.messages.pop(0)
                self.store.update(objects(message))
                return announced(message)
            case "pull-object":
                content = self.store.get(PullObjectRequest.FromString(body).object_id, b"")
                reply = PullObjectResponse(
                    object_found=True, object_available=bool(content), object_content=content
                )
                return reply.SerializeToString()
            case "push-messages":
                tree = PushMessagesRequest.FromString(body).message_object_trees[0]
                return PushMessagesResponse(
                    session_id=SESSION, objects_to_push=_ids(tree)
                ).SerializeToString()
            case "push-object":
                return PushObjectResponse(stored=True).SerializeToString()
            case "get-fab":
                fab = Fab(hash_str=self.fab_hash or sha256_hex(self.fab), content=self.fab)
                return GetFabResponse(fab=fab).SerializeToString()
            case "get-run":
                run = Run(fab_id=self.fab_id, fab_version="0.1.0", fab_hash="a" * 64)
                return GetRunResponse(run=run).SerializeToString()
            case _:
                return b""

    def routes(self) -> list[str]:
        return [route for route, _ in self.reached]


def _ids(tree: ObjectTree) -> list[str]:
    return [tree.object_id, *(one for child in tree.children for one in _ids(child))]


@dataclass(kw_only=True)
class FakeGuard:
    """A guard that releases what it sealed, once, and keeps its journal in memory."""

    sealed: set[frozenset[str]] = field(default_factory=set)
    released: dict[frozenset[str], str] = field(default_factory=dict)
    bundles: set[str] = field(default_factory=set)
    entries: list[Passing] = field(default_factory=list)
    held: PolicyRefused | None = None
    gone: bool = False

    def release(self, message_id: str, object_ids: list[str]) -> bool:
        self._answer()
        wanted = frozenset(object_ids)
        if wanted not in self.sealed:
            return False
        return self.released.setdefault(wanted, message_id) == message_id

    def journal(self, passing: Passing) -> None:
        self._answer()
        if self.held is not None and passing.direction == "out":
            raise self.held
        self.entries.append(passing)

    def bundle_allowed(self, sha256: str) -> bool:
        self._answer()
        return sha256 in self.bundles

    def seal(self, reply: Message) -> None:
        """Gives the receipt for the content of `reply`."""
        content = frozenset(objects(reply)) - {reply.metadata.message_id}
        self.sealed.add(content | {tree_sha256(get_object_tree(reply))})

    def out(self) -> list[tuple[str, str]]:
        return [(one.kind, one.sha256) for one in self.entries if one.direction == "out"]

    def _answer(self) -> None:
        if self.gone:
            raise ConnectionRefusedError


class AnyCaller:
    """A `Caller` that takes everybody for SuperNode."""

    def check(self, headers: Mapping[str, str]) -> None:
        del headers


def signed_headers(key: NodeKey, timestamp: str = "2026-11-20T10:00:00+00:00") -> dict[str, str]:
    """What SuperNode's interceptor adds to a call."""
    private = load_ssh_private_key(key.to_openssh(), password=None)
    signature = sign_message(private, timestamp.encode("ascii"))  # type: ignore[arg-type]
    return {
        "flwr-public-key": key.header,
        "flwr-signature": base64.b64encode(signature).decode("ascii"),
        "flwr-timestamp": timestamp,
    }


def poll() -> bytes:
    return PullMessagesRequest(node=Node(node_id=NODE)).SerializeToString()


def get_fab() -> bytes:
    return GetFabRequest(node=Node(node_id=NODE), run_id=RUN, hash_str="a" * 64).SerializeToString()
