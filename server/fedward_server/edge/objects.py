"""What the edge reads of the messages that pass: enough to name each object that they carry."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fedward_server.ports import FleetMessages


@dataclass(frozen=True, kw_only=True, slots=True)
class PassedObject:
    """One object on its way: kind, digest and size as in the site's journal; `run` is Flower's."""

    kind: str
    sha256: str
    size_bytes: int
    run: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedPush:
    """A site's message at SuperLink, and the ids of the objects that are to follow in a session."""

    node: int
    session: str
    missing: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class PushedTo:
    """The node, its session and the id of one object."""

    node: int
    session: str
    object_id: str


class ReadsObjects(FleetMessages, Protocol):
    """Flower's Fleet messages, with the objects in them."""

    def entering(self, route: str, request: bytes) -> Sequence[PassedObject]:
        """The objects that a site sends in a request.

        Raises:
            CallRefused: MALFORMED; the request cannot be read, or an object is not its digest's.
        """
        ...

    def leaving(self, route: str, request: bytes, reply: bytes) -> Sequence[PassedObject]:
        """The objects that a site gets in SuperLink's answer to its request.

        What cannot be read is one object of the kind `unreadable`: it passes, and is written down.
        """
        ...

    def opened_push(self, request: bytes, reply: bytes) -> OpenedPush:
        """What a push-messages call opened.

        Raises:
            CallRefused: MALFORMED; request or reply cannot be read.
        """
        ...

    def pushed_to(self, request: bytes) -> PushedTo:
        """Whose object a push-object call carries. Raises CallRefused(MALFORMED)."""
        ...
