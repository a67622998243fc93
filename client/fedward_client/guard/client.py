"""The guard as its callers see it: the worker asks to begin and seal, the gateway to release.

One connection per request: nothing is left half-open when the guard restarts. What the guard
refuses is raised here as the same class of error, with the guard's text (same host).
"""

import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from fedward_client.guard.frames import Frame, read_frame, take_over, write_frame
from fedward_client.policy import EthicsExpired, NotApproved, OutOfHours, Paused
from fedward_client.ports import Passing
from fedward_common.errors import FedwardError, ProtocolError, StartError
from fedward_common.wire import Envelope

TIMEOUT_SECONDS: Final = 300.0
"""A first admission computes two accountants; sealing hashes and syncs a whole model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """The charge is durable and the mechanism may run once; its result is sealed with `receipt`.

    `plugin_sha256` names the files of the approved plugin that builds the model, if one does;
    `state` is what this site kept of the study's last round that it answered, if it keeps anything.
    """

    receipt: str
    site: str
    plugin_sha256: str | None = None
    state: bytes = b""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredReply:
    """The instruction was answered before: these bytes again, and no charge."""

    envelope: Envelope


class GuardClient:
    """Asks the guard at a Unix socket. Safe to use from several threads and after a fork."""

    def __init__(self, socket_path: Path, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._path = socket_path
        self._timeout_seconds = timeout_seconds

    def begin(
        self, instruction: bytes, signed_study: bytes, known_rows: bytes = b"", boxes: bytes = b""
    ) -> Grant | StoredReply:
        """A receipt after the charge is durable, or the reply that was sealed before.

        `known_rows`: what came beside the instruction of the sites' ledgers; `boxes`: in a study
        with secure sums, the other sites' encrypted shares.

        Raises:
            FedwardError: what the guard refuses, as its class; StartError when it is not there.
        """
        answer = self._ask({"op": "begin"}, instruction, signed_study, known_rows, boxes)
        if "receipt" in answer.header:
            return Grant(
                receipt=str(answer.header["receipt"]),
                site=str(answer.header["site"]),
                plugin_sha256=str(answer.header.get("plugin_sha256", "")) or None,
                state=answer.blobs[0],
            )
        return StoredReply(envelope=_envelope(answer))

    def seal(
        self, receipt: str, payload: bytes, boxes: bytes = b"", *, state: bytes = b""
    ) -> Envelope:
        """The signed envelope with `payload` that must leave unchanged.

        In a study with secure sums: with its noised and masked form; `boxes` opens the masks.
        `state` stays here for the study's next round.

        Raises:
            FedwardError: the receipt is void or the payload is not what the study releases.
        """
        return _envelope(self._ask({"op": "seal", "receipt": receipt}, payload, boxes, state))

    def step(self, instruction: bytes, signed_study: bytes, message: bytes) -> Envelope:
        """The signed answer to a step of secure aggregation that must leave unchanged.

        Raises:
            FedwardError: what the guard refuses, as its class.
        """
        return _envelope(self._ask({"op": "step"}, instruction, signed_study, message))

    def refuse(self, instruction: bytes, code: str) -> Envelope:
        """The signed refusal that must leave unchanged.

        Raises:
            FedwardError: no instruction, no known code, or answered before.
        """
        return _envelope(self._ask({"op": "refuse", "code": code}, instruction))

    def release(self, message_id: str, object_ids: Sequence[str]) -> bool:
        """Whether the message with exactly these objects may leave; true once per receipt.

        Raises:
            PolicyRefused: it was sealed here, but the policy keeps it back now.
        """
        header = {"op": "release", "message_id": message_id, "object_ids": list(object_ids)}
        return self._ask(header).header.get("allowed") is True

    def journal(self, passing: Passing) -> None:
        """Writes down one object that came in or goes out; on disk when this returns.

        Raises:
            PolicyRefused: it may not go out now; it must stay here.
        """
        self._ask({"op": "journal", **asdict(passing)})

    def blob(self, message_id: str) -> tuple[bytes, int] | None:
        """The manifest of what leaves beside a message, and a descriptor that reads it.

        The caller closes the descriptor. None where nothing leaves beside it.

        Raises:
            PolicyRefused: the policy keeps it back now.
        """
        answer = self._ask({"op": "blob", "message_id": message_id})
        return None if answer.file is None else (answer.blobs[0], answer.file)

    def require_blob(self, blob: str) -> None:
        """Returns when a blob that is on its way out may go on. Raises PolicyRefused."""
        self._ask({"op": "require_blob", "id": blob})

    def bundle_allowed(self, sha256: str) -> bool:
        """Whether the site approved this app bundle."""
        return self._ask({"op": "bundle_allowed", "sha256": sha256}).header.get("allowed") is True

    def phase_open(self, study: str) -> bool:
        """Whether the gateway may open a stream for a phase of this study."""
        return self._ask({"op": "phase_open", "study": study}).header.get("open") is True

    def record(self, statement: bytes, signed_study: bytes = b"") -> str:
        """The digest of a person's statement, in force from now on.

        Raises:
            FedwardError: what the guard refuses, as its class; StartError when it is not there.
        """
        return str(self._ask({"op": "record"}, statement, signed_study).header.get("sha256"))

    def _ask(self, header: dict[str, Any], *blobs: bytes) -> Frame:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(self._timeout_seconds)
                connection.connect(str(self._path))
                # A guard that refuses this user answers without reading: its answer still counts.
                with suppress(BrokenPipeError, ConnectionResetError):
                    write_frame(connection, header, blobs)
                answer = read_frame(connection)
                if answer is not None and answer.header.get("file") is True:
                    answer = replace(answer, file=take_over(connection))
        except OSError as error:
            raise StartError(
                f"guard: expected it to answer at {self._path}, found "
                f"{error.strerror or type(error).__name__}. Is `fedward-client run` up?"
            ) from error
        if answer is None:
            raise StartError(
                f"guard: expected an answer at {self._path}, found the connection closed. "
                "The guard's log says why"
            )
        if answer.header.get("ok") is not True:
            raise _error(answer.header)
        return answer


def _envelope(answer: Frame) -> Envelope:
    names = answer.header.get("names")
    if not isinstance(names, list) or len(answer.blobs) != 1 + len(names):
        raise ProtocolError("guard: expected an envelope, found something else")
    return Envelope(
        header=answer.blobs[0],
        blobs={str(name): blob for name, blob in zip(names, answer.blobs[1:], strict=True)},
    )


def _error(header: dict[str, Any]) -> FedwardError:
    finer: list[type[FedwardError]] = [Paused, OutOfHours, EthicsExpired, NotApproved]
    known = {kind.code: kind for kind in [*FedwardError.__subclasses__(), *finer]}
    kind = known.get(str(header.get("code")), FedwardError)
    return kind(str(header.get("message", "the guard refused without saying why")))
