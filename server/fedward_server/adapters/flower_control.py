"""Flower's Control API on the coordinator's own loopback: register site keys, start and watch runs.

Private names of Flower stand here and in the other adapters only; a contract test pins them.
"""

import hashlib
import ssl
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
)
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from fedward_common.errors import StartError

TIMEOUT_SECONDS: Final = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """The code-free Flower bundle: its bytes and the SHA-256 that sites allow."""

    content: bytes
    sha256: str


def build_bundle(folder: Path) -> Bundle:
    """The bundle of `folder`; the same files give the same bytes on every machine."""
    content = build_fab_from_disk(folder)
    return Bundle(content=content, sha256=hashlib.sha256(content).hexdigest())


class FlowerControl:
    """A connection to SuperLink's Control API."""

    def __init__(self, *, socket: Path, port: int, ca_certificate: Path) -> None:
        """`socket` is the bridge's; `port` is SuperLink's own, in its private network."""
        self._client = ControlHttpClient.from_server_address(
            f"127.0.0.1:{port}",
            False,
            str(ca_certificate),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="fedward-server")],
        )
        # A private name of Flower 1.41, pinned by a contract test: it knows no Unix socket.
        self._client._client = httpx.Client(
            transport=httpx.HTTPTransport(
                uds=str(socket), verify=ssl.create_default_context(cafile=ca_certificate)
            ),
            trust_env=False,
            timeout=TIMEOUT_SECONDS,
        )

    def __enter__(self) -> Self:
        """The connection itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the connection."""
        self._client.close()

    def register_node(self, public_key: bytes, *, name: str) -> None:
        """Makes SuperLink accept the node with this key; a key that is known already stays known.

        Raises:
            StartError: SuperLink refused or did not answer.
        """
        try:
            self._client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name))
        except httpx.HTTPStatusError as error:
            known = (httpx.codes.CONFLICT, httpx.codes.PRECONDITION_FAILED)
            if error.response.status_code in known:
                return
            raise StartError(
                f"SuperLink: expected to register the node of {name}, found HTTP "
                f"{error.response.status_code}"
            ) from error
        except httpx.HTTPError as error:
            raise StartError("SuperLink: expected an answer on loopback, found none") from error

    def start_run(self, bundle: Bundle, *, config: dict[str, str]) -> int:
        """The id of a new run of the bundle.

        Raises:
            StartError: SuperLink refused or did not answer.
        """
        request = StartRunRequest(
            fab=fab_to_proto(Fab(bundle.sha256, bundle.content, {})),
            override_config=user_config_to_proto(dict(config)),
        )
        try:
            response = self._client.StartRun(request)
        except httpx.HTTPError as error:
            raise StartError("SuperLink: expected it to start the run, found a refusal") from error
        return int(response.run_id)

    def stop_run(self, run_id: int) -> None:
        """Ends a run at SuperLink: its messages are gone, its ServerApp's token is void.

        Raises:
            StartError: SuperLink does not know the run, or did not answer.
        """
        try:
            self._client.StopRun(StopRunRequest(run_id=run_id))
        except httpx.HTTPStatusError as error:
            if self.run_status(run_id).startswith("finished"):
                return
            raise StartError(
                f"SuperLink: expected to end the run, found HTTP {error.response.status_code}"
            ) from error
        except httpx.HTTPError as error:
            raise StartError("SuperLink: expected an answer on loopback, found none") from error

    def run_status(self, run_id: int) -> str:
        """Flower's word for where a run stands, such as `running` or `finished:failed`.

        Raises:
            StartError: SuperLink did not answer.
        """
        try:
            response = self._client.ListRuns(ListRunsRequest(run_id=run_id))
        except httpx.HTTPError as error:
            raise StartError("SuperLink: expected an answer on loopback, found none") from error
        if run_id not in response.run_dict:
            return "unknown"
        status = response.run_dict[run_id].status
        return f"{status.status}:{status.sub_status}" if status.sub_status else str(status.status)

    def online_nodes(self) -> int:
        """How many registered nodes are connected now; 0 when SuperLink does not answer."""
        try:
            response = self._client.ListNodes(ListNodesRequest())
        except httpx.HTTPError:
            return 0
        return sum(1 for node in response.nodes_info if node.status == "online")
