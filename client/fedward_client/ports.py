"""What the site's decisions need of the outside: time, a signature, a model's shapes, storage."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from fedward_common.study.spec import StudySpec
from fedward_common.wire import Envelope

Clock = Callable[[], datetime]
"""The current time, with its zone (UTC)."""

Shapes = Callable[[StudySpec], Mapping[str, tuple[int, ...]]]
"""The names and shapes of a study's tensors: what an update must look like."""

ObjectIds = Callable[[Envelope], frozenset[str]]
"""The ids under which the transport carries an envelope, and of the form in which it names them;
equal bytes, equal ids."""


class Signer(Protocol):
    """A private key that signs and never leaves."""

    @property
    def public_hex(self) -> str:
        """The public key: 32 raw bytes in hexadecimal."""
        ...

    def sign(self, data: bytes) -> bytes:
        """The signature of `data`."""
        ...


class Journal(Protocol):
    """Where the guard writes what happened; durable when `append` returns."""

    def append(self, action: str, **fields: object) -> None:
        """Writes one event; an unknown field is an error."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Passing:
    """One object on its way in or out: what the journal says of it.

    `run` is the transport's number of the run, `certificate_sha256` the certificate of the
    coordinator that it goes to or came from; each is empty where it is not known.
    """

    direction: Literal["in", "out"]
    route: str
    kind: str
    sha256: str
    bytes: int
    run: str = ""
    certificate_sha256: str = ""


class GatewayGuard(Protocol):
    """What the gateway may ask of the guard."""

    def release(self, message_id: str, object_ids: Sequence[str]) -> bool:
        """Whether the message with exactly these objects may leave; true once per receipt.

        Raises:
            PolicyRefused: it was sealed here, but the policy keeps it back now.
        """
        ...

    def journal(self, passing: Passing) -> None:
        """Writes down one object that came in or goes out, before it goes.

        Raises:
            PolicyRefused: it may not go out now; it is not in the journal then.
        """
        ...

    def bundle_allowed(self, sha256: str) -> bool:
        """Whether the site approved this app bundle."""
        ...


class BlobGuard(GatewayGuard, Protocol):
    """What the gateway may ask of the guard besides, where large tensors go by blobs."""

    def blob(self, message_id: str) -> tuple[bytes, int] | None:
        """The manifest of what leaves beside a released message, and a descriptor that reads it.

        The caller closes the descriptor. None where nothing leaves beside the message.

        Raises:
            PolicyRefused: the policy keeps it back now.
        """
        ...

    def require_blob(self, blob: str) -> None:
        """Returns when a blob that is on its way out may go on.

        Raises:
            PolicyRefused: the rest of it must stay here now.
        """
        ...


class PhaseGuard(GatewayGuard, Protocol):
    """What the gateway may ask of the guard besides, where steps go by a stream."""

    def phase_open(self, study: str) -> bool:
        """Whether a phase of this study began here and may be streamed now."""
        ...
