"""The guard's Unix sockets: who may connect, what may be asked, one thread per connection.

The socket file is 0600 (0660 for a group where worker and gateway are users of their own), and the
kernel's word on the other side's user decides (SO_PEERCRED), whatever the file's mode.
"""

import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import Field, ValidationError

from fedward_client.guard.client import Grant
from fedward_client.guard.frames import (
    MAX_BLOB_BYTES,
    Frame,
    Spool,
    hand_over,
    read_frame,
    write_frame,
)
from fedward_client.guard.service import GuardService
from fedward_client.ports import Passing
from fedward_common.channel.blob_files import BlobFile
from fedward_common.channel.blobs import INLINE_BYTES
from fedward_common.errors import (
    FedwardError,
    PolicyRefused,
    ProtocolError,
    StorageError,
)
from fedward_common.ids import DIGEST
from fedward_common.study.registry import Strict
from fedward_common.unix_sockets import listen_unix, peer_uid
from fedward_common.wire import Envelope

MAX_CONNECTIONS: Final = 64
IDLE_SECONDS: Final = 600.0
WORD: Final = r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$"

Operation = Callable[[Frame], Frame]
Request = TypeVar("Request", bound=Strict)


class _Begin(Strict):
    op: Literal["begin"]


class _Seal(Strict):
    op: Literal["seal"]
    receipt: str = Field(pattern=DIGEST)


class _Step(Strict):
    op: Literal["step"]


class _Refuse(Strict):
    op: Literal["refuse"]
    code: str = Field(max_length=32)


class _Release(Strict):
    op: Literal["release"]
    message_id: str = Field(pattern=WORD)
    object_ids: list[str] = Field(min_length=1, max_length=10_000)


class _Journal(Strict):
    op: Literal["journal"]
    direction: Literal["in", "out"]
    route: str = Field(pattern=r"^[A-Za-z0-9_./-]{1,128}$")
    kind: str = Field(pattern=WORD)
    sha256: str = Field(pattern=DIGEST)
    bytes: int = Field(ge=0, lt=2**53)
    run: str = Field(pattern=r"^\d{0,20}$")
    certificate_sha256: str = Field(pattern=r"^([0-9a-f]{64})?$")


class _BundleAllowed(Strict):
    op: Literal["bundle_allowed"]
    sha256: str = Field(pattern=DIGEST)


class _PhaseOpen(Strict):
    op: Literal["phase_open"]
    study: str = Field(pattern=DIGEST)


class _Blob(Strict):
    op: Literal["blob"]
    message_id: str = Field(pattern=WORD)


class _RequireBlob(Strict):
    op: Literal["require_blob"]
    id: str = Field(pattern=DIGEST)


class _Record(Strict):
    op: Literal["record"]


def worker_operations(service: GuardService) -> dict[str, Operation]:
    """What the worker may ask: begin, seal, step, refuse. Never release."""

    def begin(frame: Frame) -> Frame:
        _request(_Begin, frame, blobs=4)
        result = service.begin(*frame.blobs)
        if isinstance(result, Grant):
            header = {"receipt": result.receipt, "site": result.site}
            header |= {"plugin_sha256": result.plugin_sha256 or ""}
            return Frame(header=header, blobs=(result.state,))
        return _envelope(result.envelope)

    def seal(frame: Frame) -> Frame:
        receipt = _request(_Seal, frame, blobs=3).receipt
        payload, boxes, state = frame.blobs
        given = payload if frame.spooled is None else frame.spooled
        return _envelope(service.seal(receipt, given, boxes, state=state))

    def step(frame: Frame) -> Frame:
        _request(_Step, frame, blobs=3)
        return _envelope(service.step(*frame.blobs))

    def refuse(frame: Frame) -> Frame:
        return _envelope(service.refuse(frame.blobs[0], _request(_Refuse, frame, blobs=1).code))

    return {"begin": begin, "seal": seal, "step": step, "refuse": refuse}


def worker_spool(service: GuardService) -> Spool:
    """Where a large update goes while it comes in: into a file of the guard's, if it may."""

    def spool(header: Mapping[str, Any], size: int) -> BlobFile | None:
        receipt = header.get("receipt")
        if header.get("op") != "seal" or not isinstance(receipt, str) or size <= INLINE_BYTES:
            return None
        return service.room_for(receipt, size)

    return spool


def gateway_operations(service: GuardService) -> dict[str, Operation]:
    """What the gateway may ask: release, journal, blob, bundle, phase. Never a receipt."""

    def release(frame: Frame) -> Frame:
        request = _request(_Release, frame)
        return Frame(header={"allowed": service.release(request.message_id, request.object_ids)})

    def journal(frame: Frame) -> Frame:
        entry = _request(_Journal, frame)
        service.journal(Passing(**entry.model_dump(exclude={"op"})))
        return Frame(header={})

    def bundle_allowed(frame: Frame) -> Frame:
        allowed = service.bundle_allowed(_request(_BundleAllowed, frame).sha256)
        return Frame(header={"allowed": allowed})

    def phase_open(frame: Frame) -> Frame:
        return Frame(header={"open": service.phase_open(_request(_PhaseOpen, frame).study)})

    def blob(frame: Frame) -> Frame:
        found = service.blob(_request(_Blob, frame).message_id)
        if found is None:
            return Frame(header={"file": False})
        return Frame(header={"file": True}, blobs=(found.manifest,), file=found.descriptor)

    def require_blob(frame: Frame) -> Frame:
        service.require_blob(_request(_RequireBlob, frame).id)
        return Frame(header={})

    return {
        "blob": blob,
        "require_blob": require_blob,
        "release": release,
        "journal": journal,
        "bundle_allowed": bundle_allowed,
        "phase_open": phase_open,
    }


def admin_operations(service: GuardService) -> dict[str, Operation]:
    """What people may bring: statements that they signed. Who may sign is decided by the key."""

    def record(frame: Frame) -> Frame:
        _request(_Record, frame, blobs=2)
        accepted = service.record(frame.blobs[0], frame.blobs[1])
        return Frame(header={"kind": accepted.kind, "sha256": accepted.sha256})

    return {"record": record}


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """Who may use a socket: the kernel's user ids, and the group its file is opened to."""

    uids: frozenset[int]
    group: str | None = None


class GuardServer:
    """One listening Unix socket. `close` removes it."""

    def __init__(
        self,
        path: Path,
        operations: Mapping[str, Operation],
        *,
        access: Access,
        max_blob_bytes: int = MAX_BLOB_BYTES,
        spool: Spool | None = None,
    ) -> None:
        """Listens at once; connections are served from threads of their own.

        Raises:
            StartError: another guard listens there, or the path cannot be used.
        """
        self._path = path
        self._operations = operations
        self._access = access
        self._max_blob_bytes = max_blob_bytes
        self._spool = spool
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._listener = listen_unix(path, group=access.group)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._accept, name=path.name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening; requests under way are still answered."""
        self._closing.set()
        # Wakes accept(), which a close alone does not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                # Closing, or out of descriptors for a moment; the loop's condition tells.
                self._closing.wait(0.05)
                continue
            while not self._slots.acquire(timeout=0.5):
                if self._closing.is_set():
                    connection.close()
                    return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(IDLE_SECONDS)
                self._answer_all(connection)
        except (OSError, ProtocolError):
            # The other side went away or speaks something else: there is nobody to tell.
            return
        finally:
            self._slots.release()

    def _answer_all(self, connection: socket.socket) -> None:
        uid = peer_uid(connection)
        if uid not in self._access.uids:
            refusal = PolicyRefused(
                f"guard: expected user {sorted(self._access.uids)} at {self._path.name}, found "
                f"{uid}. See [guard] in site.toml"
            )
            write_frame(connection, _refusal(refusal))
            return
        while (frame := self._next(connection)) is not None:
            try:
                answer = self._operation(frame)(frame)
            except FedwardError as error:
                write_frame(connection, _refusal(error))
            else:
                write_frame(connection, {"ok": True, **answer.header}, answer.blobs)
                if answer.file is not None:
                    hand_over(connection, answer.file)

    def _next(self, connection: socket.socket) -> Frame | None:
        try:
            return read_frame(connection, max_blob_bytes=self._max_blob_bytes, spool=self._spool)
        except (ProtocolError, StorageError) as error:
            # Where the next frame would begin is not known any more: answer and close.
            write_frame(connection, _refusal(error))
            return None

    def _operation(self, frame: Frame) -> Operation:
        name = frame.header.get("op")
        operation = self._operations.get(name) if isinstance(name, str) else None
        if operation is None:
            raise ProtocolError(
                f"guard: expected one of {sorted(self._operations)} at {self._path.name}, found "
                "another operation"
            )
        return operation


def _request(model: type[Request], frame: Frame, *, blobs: int = 0) -> Request:
    if len(frame.blobs) != blobs:
        raise ProtocolError(f"guard: expected {blobs} blobs, found {len(frame.blobs)}")
    try:
        return model.model_validate(frame.header)
    except ValidationError as error:
        raise ProtocolError(
            f"guard: expected the fields of {model.__name__.lstrip('_').lower()}, found others"
        ) from error


def _envelope(envelope: Envelope) -> Frame:
    names = sorted(envelope.blobs)
    return Frame(
        header={"names": names},
        blobs=(envelope.header, *(bytes(envelope.blobs[name]) for name in names)),
    )


def _refusal(error: FedwardError) -> dict[str, Any]:
    return {"ok": False, "code": error.code, "message": str(error)}
