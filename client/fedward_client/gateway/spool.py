"""Replies that wait on disk while the coordinator is away, until they are delivered or too late.

A reply gets here after everything that lets it leave: its receipt is spent, it is checked and
written down. What waits holds protected bytes only. A gateway or SuperNode that dies meanwhile
loses nothing; whoever delivers asks the guard again, for a site may have been paused since.
"""

import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from fedward_client.gateway.fleet import Outgoing, PushedObject
from fedward_common.canonical import sha256_hex
from fedward_common.errors import ChannelError, ProtocolError
from fedward_common.trust.private_files import write_private

MAX_WAITING: Final = 64
MAX_BYTES: Final = 1 << 30
MAX_SECONDS: Final = 86400.0
"""No reply waits longer, whatever lifetime its instruction names (rules 5)."""
SESSION: Final = "spool-"
REQUEST: Final = "request"
FACTS: Final = "facts.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """A reply in the spool: the push-messages request, and the objects that belong to it."""

    message_id: str
    session: str
    expires_at: float
    node: int
    run_id: int
    wanted: tuple[str, ...]
    folder: Path

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """What lies in a folder of the spool; None where it is not whole."""
        try:
            facts = json.loads((folder / FACTS).read_bytes())
            if sha256_hex((folder / REQUEST).read_bytes()) != facts.pop("request_sha256"):
                return None
            wanted = tuple(facts.pop("wanted"))
            return cls(message_id=folder.name, folder=folder, wanted=wanted, **facts)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    @property
    def missing(self) -> tuple[str, ...]:
        """The objects that SuperNode has not handed over yet."""
        return tuple(one for one in self.wanted if not (self.folder / one).is_file())

    @property
    def request(self) -> bytes:
        """The push-messages request. Raises OSError."""
        return (self.folder / REQUEST).read_bytes()

    def objects(self, wanted: Sequence[str], *, session: str) -> Iterator[PushedObject]:
        """Those of the objects that are `wanted`, one by one. Raises OSError."""
        for object_id in wanted:
            if object_id not in self.wanted:
                continue
            yield PushedObject(
                node=self.node,
                run_id=self.run_id,
                object_id=object_id,
                session=session,
                content=(self.folder / object_id).read_bytes(),
            )


class Spool:
    """The replies that wait, each in a folder 0700 of its own, files 0600.

    Guarantees: at most MAX_WAITING replies and `max_bytes` bytes; nothing is kept past the lifetime
    of its instruction, or a day; what a dead gateway left incomplete is removed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], float] = time.time,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Takes up what lies in `folder`. Raises OSError: it cannot be made."""
        self._folder = folder
        self._clock = clock
        self._max_bytes = max_bytes
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._waiting: dict[str, Waiting] = {}
        for path in sorted(one for one in folder.iterdir() if one.is_dir()):
            found = Waiting.read(path)
            if found is None or found.missing:
                _remove(path)
            else:
                self._waiting[found.message_id] = found
        self.expire()

    def put(self, outgoing: Outgoing, request: bytes) -> Waiting:
        """Keeps a released reply; its objects follow.

        Raises:
            ChannelError: there is no room; SuperNode keeps it and tries again.
        """
        known = self._waiting.get(outgoing.message_id)
        if known is not None:
            return known
        if len(self._waiting) >= MAX_WAITING:
            raise ChannelError(f"spool: expected at most {MAX_WAITING} replies that wait")
        self._require_room(len(request))
        said = outgoing.addressing
        facts = {
            "session": SESSION + secrets.token_hex(16),
            "expires_at": min(said.created_at + said.ttl_seconds, self._clock() + MAX_SECONDS),
            "node": outgoing.node,
            "run_id": said.run_id,
            "wanted": [outgoing.root, *outgoing.objects],
            "request_sha256": sha256_hex(request),
        }
        folder = self._folder / outgoing.message_id
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            write_private(folder / REQUEST, request)
            write_private(folder / FACTS, json.dumps(facts).encode())
        except OSError as error:
            _remove(folder)
            raise _full(error) from error
        found = Waiting.read(folder)
        if found is None:
            raise ChannelError("spool: expected what was just written, found another")
        self._waiting[outgoing.message_id] = found
        return found

    def take(self, pushed: PushedObject) -> None:
        """Keeps an object of a reply that waits; the caller has compared it with its id.

        Raises:
            ChannelError: there is no room; SuperNode tries again.
            ProtocolError: the reply does not wait any more.
        """
        for waiting in self._waiting.values():
            if waiting.session == pushed.session and pushed.object_id in waiting.wanted:
                break
        else:
            raise ProtocolError("spool: expected an object of a reply that waits, found another")
        self._require_room(len(pushed.content))
        try:
            write_private(waiting.folder / pushed.object_id, pushed.content)
        except OSError as error:
            raise _full(error) from error

    def whole(self) -> list[Waiting]:
        """The replies that can be delivered, oldest first; the expired ones are gone."""
        self.expire()
        return [waiting for waiting in self._waiting.values() if not waiting.missing]

    def done(self, waiting: Waiting) -> None:
        """Deletes a reply: it was delivered, or nobody wants it any more."""
        self._waiting.pop(waiting.message_id, None)
        _remove(waiting.folder)

    def expire(self) -> list[str]:
        """The ids of the replies that were deleted because it is too late for them."""
        late = [w for w in self._waiting.values() if w.expires_at <= self._clock()]
        for waiting in late:
            self.done(waiting)
        return [waiting.message_id for waiting in late]

    def _require_room(self, size_bytes: int) -> None:
        held = sum(
            path.stat().st_size
            for waiting in self._waiting.values()
            for path in waiting.folder.iterdir()
        )
        if held + size_bytes > self._max_bytes:
            raise ChannelError(f"spool: expected at most {self._max_bytes} bytes that wait")


def is_spooled(session: str) -> bool:
    """Whether a push session is one of the spool's own."""
    return session.startswith(SESSION)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _full(error: OSError) -> ChannelError:
    return ChannelError(f"spool: expected room on the disk, found {error.strerror}")
