"""What a study run needs of the outside: sites, time, a place for checkpoints, an audience."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from fedward_common.arrays import Array, Tensors, tensors_to_bytes
from fedward_common.canonical import sha256_hex
from fedward_common.ids import SiteId
from fedward_common.wire import Envelope, Octets
from fedward_server.progress import Progress, Resumed


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One site's answer to one instruction: an envelope, or the reason why none came.

    A late one answers an instruction that was given up.
    """

    site: SiteId
    envelope: Envelope | None
    lost: str = ""
    late: bool = False


class Fleet(Protocol):
    """The sites of a study as a run sees them; only sites whose node key is in the study."""

    def online(self) -> frozenset[SiteId]:
        """The study's sites that are connected now."""
        ...

    def send(self, envelopes: Mapping[SiteId, Envelope]) -> None:
        """Hands one envelope to each site; forgets what earlier rounds left unanswered."""
        ...

    def send_again(self, site: SiteId, envelope: Envelope) -> None:
        """Hands a site the same once more, after the way there lost it; forgets nothing."""
        ...

    def receive(self, *, timeout_seconds: float) -> list[Answer]:
        """The answers that arrived since the last call; waits up to the timeout for a first one."""
        ...


class MappedTensors(dict[str, Array]):
    """Tensors that are views of the file which `octets`, their one byte form, is mapped from.

    Nobody can write to that file any more, so what was hashed once need not be hashed again.
    `kept_as` is the name that the file has in the run's folder, if it has one.
    """

    def __init__(self, tensors: Tensors, *, octets: Octets) -> None:
        super().__init__(tensors)
        self.octets = octets
        self.kept_as = ""

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of `octets`."""
        return sha256_hex(self.octets)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Kept:
    """Tensors and their bytes, which may be one and the same mapped file."""

    tensors: Tensors
    octets: Octets

    @property
    def sha256(self) -> str:
        """The SHA-256 of `octets`."""
        tensors = self.tensors
        return tensors.sha256 if isinstance(tensors, MappedTensors) else sha256_hex(self.octets)


class Tray(Protocol):
    """Where a run keeps a model that it is about to send."""

    def keep(self, tensors: Tensors) -> Kept:
        """The same tensors; large ones cost no memory of this process from now on.

        Raises:
            StorageError: the disk has no room.
        """
        ...


class InMemory:
    """The `Tray` that keeps everything in memory."""

    def keep(self, tensors: Tensors) -> Kept:
        """The tensors as they are."""
        return Kept(tensors=tensors, octets=tensors_to_bytes(tensors))


class Clock(Protocol):
    """Monotonic time and waiting."""

    def now(self) -> float:
        """Seconds on a clock that never goes back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Waits."""
        ...


class RunStore(Protocol):
    """Where a run keeps what must survive it."""

    def resume(self, study: str) -> Resumed:
        """Where the run of this study goes on; at its beginning when nothing was kept.

        Raises:
            LedgerError: checkpoint and log do not fit together.
        """
        ...

    def checkpoint(self, progress: Progress) -> None:
        """Keeps the study as it is after a committed round, durably and at once."""
        ...


class RunEvents(Protocol):
    """Who hears what happens in a run: the log and the live view. Public facts only."""

    def emit(self, action: str, **fields: Any) -> None:
        """Tells one event; `fields` are JSON values."""
        ...


@dataclass(kw_only=True, slots=True)
class Silent:
    """A RunEvents that keeps what it hears (tests, benchmarks)."""

    heard: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def emit(self, action: str, **fields: Any) -> None:
        """Keeps the event."""
        self.heard.append((action, fields))
