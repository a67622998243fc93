"""What the site's decisions need of the outside: time, a signature, a model's shapes, storage."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

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


class GatewayGuard(Protocol):
    """What the gateway may ask of the guard."""

    def release(self, message_id: str, object_ids: Sequence[str]) -> bool:
        """Whether the message with exactly these objects may leave; true once per receipt."""
        ...

    def journal(self, direction: str, route: str, kind: str, sha256: str, bytes: int) -> None:
        """Writes down one object that came in or goes out, before it goes."""
        ...

    def bundle_allowed(self, sha256: str) -> bool:
        """Whether the site approved this app bundle."""
        ...
