"""Fedward uses parts of Flower that are not public: another version must fail here, loudly.

Whoever raises the pin reads this file from top to bottom.
"""

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path

import flwr.supernode.fleet_http_client as fleet_client
import flwr.supernode.fleet_http_connection as fleet_connection
import flwr.supernode.nodestate.in_memory_nodestate as nodestate
import flwr.supernode.runtime.run_clientapp as run_clientapp
import flwr.supernode.start_client_internal as start_client
import httpx
import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Error
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufClient, ProtobufRequestContext
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.supercore.retry import http_retry
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from httpx import Request, Response, codes

from fedward_client.adapters import flower_fleet
from fedward_common.channel.routes import (
    MEDIA_TYPE,
    PATH_PREFIX,
    REQUEST_HEADERS,
    ROUTES,
    check_headers,
    request_headers,
)
from fedward_common.trust.certificates import NodeKey
from tests.support.flower_node import instruction, reply_to

ROOT = Path(__file__).parents[2]
ADAPTERS = sorted(
    path
    for side in ("server/fedward_server", "client/fedward_client")
    for path in (*(ROOT / side / "adapters").glob("flower_*.py"), ROOT / side / "flower_app.py")
)
FIELDS = {
    "register-node": {"public_key"},
    "activate-node": {"public_key", "heartbeat_interval"},
    "deactivate-node": {"node_id"},
    "unregister-node": {"node_id"},
    "send-node-heartbeat": {"node", "heartbeat_interval"},
    "pull-messages": {"node", "message_ids"},
    "push-messages": {
        "node",
        "messages_list",
        "message_object_trees",
        "clientapp_runtime_list",
    },
    "get-run": {"node", "run_id"},
    "get-fab": {"node", "hash_str", "run_id"},
    "push-object": {"node", "run_id", "object_id", "object_content", "session_id"},
    "pull-object": {"node", "run_id", "object_id"},
    "confirm-message-received": {"node", "run_id", "message_object_id"},
}


def test_flower_is_the_version_that_was_read() -> None:
    assert importlib.metadata.version("flwr") == "1.41.0"


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of everything that a file takes from flwr."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr":
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((a.name, "") for a in node.names if a.name.split(".")[0] == "flwr")


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: f"{path.parts[-3]}/{path.name}")
def test_every_name_that_an_adapter_imports_is_there(path: Path) -> None:
    for module, name in imported(path):
        there = not name or hasattr(importlib.import_module(module), name)
        # Or a module that nobody has imported yet.
        assert there or importlib.util.find_spec(f"{module}.{name}"), f"{module}.{name}"


def test_flower_has_these_twelve_fleet_operations_and_no_other() -> None:
    served = {
        path.removeprefix(PATH_PREFIX): kind
        for (method, path), kind in PROTOBUF_REQUEST_TYPES.items()
        if path.startswith(PATH_PREFIX) and method == "POST"
    }

    assert served.keys() == ROUTES
    assert {route: flower_fleet._REQUESTS[route] for route in ROUTES} == served


@pytest.mark.parametrize("route", sorted(ROUTES))
def test_a_request_has_the_fields_that_the_gateway_checks_and_no_other(route: str) -> None:
    """A new field would be a new way out that nobody looked at."""
    kind = flower_fleet._REQUESTS[route]

    assert {field.name for field in kind.DESCRIPTOR.fields} == FIELDS[route]


def test_a_messages_metadata_has_the_fields_that_the_outbox_checks_and_no_other() -> None:
    message = PushMessagesRequest.DESCRIPTOR.fields_by_name["messages_list"].message_type
    tree = PushMessagesRequest.DESCRIPTOR.fields_by_name["message_object_trees"].message_type
    names = {
        kind.name: {field.name for field in kind.fields}
        for kind in (
            message,
            message.fields_by_name["metadata"].message_type,
            message.fields_by_name["error"].message_type,
            tree,
        )
    }

    assert names == {
        "Message": {"metadata", "content", "error"},
        "Metadata": {
            "run_id",
            "message_id",
            "src_node_id",
            "dst_node_id",
            "reply_to_message_id",
            "group_id",
            "ttl",
            "message_type",
            "created_at",
            "src_task_id",
            "dst_task_id",
        },
        "Error": {"code", "reason"},
        "ObjectTree": {"object_id", "children"},
    }


@pytest.mark.parametrize("content", [None, Error(8, "ClientApp stopped responding."), Error(2)])
def test_a_message_object_is_built_as_flower_builds_it(content: Error | None) -> None:
    reply = reply_to(instruction(), content)

    built = flower_fleet.message_object(message_to_proto(reply), get_object_tree(reply))

    assert built == reply.deflate()


def test_the_fixed_error_texts_are_those_in_flowers_source() -> None:
    assert f'"{flower_fleet.LOAD_FAILED_TEXT}"' in inspect.getsource(run_clientapp)
    flowers = (nodestate.CLIENT_APP_CRASHED_ERROR, start_client.FAB_VERIFICATION_ERROR)
    assert {(error.code, error.reason) for error in flowers} < flower_fleet.FIXED_ERRORS
    assert len(flower_fleet.FIXED_ERRORS) == 3


def test_the_media_type_is_flowers() -> None:
    assert MEDIA_TYPE == PROTOBUF_MEDIA_TYPE


def test_the_headers_that_supernode_sends_are_those_that_may_pass() -> None:
    key = NodeKey.generate()
    private = load_ssh_private_key(key.to_openssh(), password=None)
    sent: dict[str, str] = {}

    def send(context: ProtobufRequestContext) -> Response:
        sent.update(context.request.headers)
        return Response(200)

    context = ProtobufRequestContext("", PushMessagesRequest(), Request("POST", "https://x"))
    version = RuntimeVersionHttpInterceptor(component_name="SuperNode")
    identity = NodeAuthHttpInterceptor(private, private.public_key())  # type: ignore[arg-type, union-attr]
    version.intercept(context, lambda inner: identity.intercept(inner, send))

    passing = request_headers(sent)
    assert passing.keys() == REQUEST_HEADERS.keys()
    assert {name for name in sent if name.startswith("flwr-")} == passing.keys()
    assert passing["flwr-public-key"] == key.header
    assert key.public_bytes == public_key_to_bytes(private.public_key())  # type: ignore[arg-type, union-attr]
    check_headers(passing)


def test_the_statuses_that_supernode_survives_are_still_the_same() -> None:
    source = inspect.getsource(http_retry)

    assert set(http_retry._RETRYABLE_STATUS_CODES) == {502, 503, 504}
    assert "if status_code == httpx.codes.FORBIDDEN:" in source
    assert "raise RunNotRunningException" in source
    assert codes.FORBIDDEN == 403


@pytest.mark.parametrize("function", ["_pull_and_store_message", "_push_messages"])
def test_supernode_drops_a_message_on_403_and_goes_on(function: str) -> None:
    assert "except RunNotRunningException:" in inspect.getsource(getattr(start_client, function))


def test_supernode_waits_as_long_as_the_gateways_answers_take() -> None:
    timeout = inspect.signature(ProtobufClient.__init__).parameters["timeout"].default

    assert timeout == 30.0
    assert fleet_client.HEARTBEAT_CALL_TIMEOUT == 5


def test_supernode_pushes_one_message_with_its_objects_after_it() -> None:
    source = inspect.getsource(fleet_connection.http_request_response)

    assert "messages_list=[message_to_proto(message)]" in source
    assert "message = remove_content_from_message(message)" in source


def test_the_control_client_keeps_its_http_client_under_one_name() -> None:
    client = ControlHttpClient.from_server_address("127.0.0.1:1", True, None, interceptors=[])

    assert isinstance(client._client, httpx.Client)
    client.close()
