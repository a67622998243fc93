"""What the gateway reads of Flower's messages, as values, and the ports that it uses for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class Addressing:
    """The metadata of a Flower message, without its own id."""

    run_id: int
    source: int
    destination: int
    reply_to: str
    group: str
    kind: str
    created_at: float
    ttl_seconds: float
    source_task: int | None
    destination_task: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Incoming:
    """An instruction that the coordinator sent."""

    message_id: str
    addressing: Addressing


@dataclass(frozen=True, kw_only=True, slots=True)
class Outgoing:
    """A reply that SuperNode wants to push, before its objects.

    `object_sha256` is the digest of the message object that these facts determine, `objects` the
    ids below it, `tree_sha256` the digest of the tree that they form. `error` says that it is one
    of Flower's error replies, `error_is_fixed` that its text is one that Flower always uses.
    """

    message_id: str
    addressing: Addressing
    node: int
    root: str
    objects: tuple[str, ...]
    tree_sha256: str
    object_sha256: str
    error: bool
    error_is_fixed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class PushedObject:
    """One object on its way out."""

    node: int
    run_id: int
    object_id: str
    session: str
    content: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class PulledObject:
    """One object that came in; without content it is not there yet."""

    object_id: str
    run_id: int
    content: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """An app bundle (FAB) as it came in: the digest that it claims and its bytes."""

    sha256: str
    content: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What goes back: HTTP status, Flower's headers, body."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class FleetMessages(Protocol):
    """Flower's Fleet messages. Whatever cannot be read raises CallRefused(MALFORMED)."""

    def normalised(self, route: str, body: bytes) -> bytes:
        """A request again, from what was understood of it: nothing else rides along.

        Fields that Flower 1.41 does not have, and the time that the ClientApp took, are gone.
        """
        ...

    def incoming(self, reply: bytes) -> Sequence[Incoming]:
        """The instructions in a pull-messages reply."""
        ...

    def addressing(self, content: bytes) -> Addressing:
        """The metadata in a message object: what a reply to it is made from."""
        ...

    def outgoing(self, request: bytes) -> Outgoing:
        """The one reply in a push-messages request."""
        ...

    def session(self, reply: bytes) -> str:
        """The push session that a push-messages reply opens."""
        ...

    def pushed_object(self, request: bytes) -> PushedObject:
        """The object in a push-object request."""
        ...

    def pulled_object(self, request: bytes, reply: bytes) -> PulledObject:
        """The object asked for and the content that came."""
        ...

    def manifests(self, content: bytes) -> Mapping[str, bytes]:
        """The manifests in an object of an instruction, by their names; none in most objects."""
        ...

    def bundle(self, reply: bytes) -> Bundle:
        """The bundle in a get-fab reply."""
        ...

    def check_run(self, reply: bytes) -> None:
        """Returns when the names in a get-run reply are safe to build paths from."""
        ...

    def to_push(self, reply: bytes) -> Sequence[str]:
        """The objects that a push-messages reply asks for."""
        ...

    def object_request(self, pushed: PushedObject) -> bytes:
        """A push-object request, as SuperNode makes it."""
        ...

    def was_stored(self, reply: bytes) -> bool:
        """What a push-object reply says."""
        ...

    def taken(self, message_id: str, objects: Sequence[str], session: str) -> bytes:
        """A push-messages reply that takes the message and asks for its objects."""
        ...

    def stored(self) -> bytes:
        """A push-object reply that says the object was taken."""
        ...

    def swallowed(self, message_id: str) -> bytes:
        """A push-messages reply that says done and asks for nothing."""
        ...

    def not_stored(self) -> bytes:
        """A push-object reply that says the object was not taken."""
        ...


class Channel(Protocol):
    """The encrypted channel to the edge."""

    @property
    def edge_certificate_sha256(self) -> str:
        """The digest of the edge's certificate; empty while it is not known."""
        ...

    async def forward(self, route: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """SuperLink's answer.

        Raises:
            CallRefused: the edge refused, with its reason.
            ChannelError: no answer came.
        """
        ...
