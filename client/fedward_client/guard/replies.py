"""Sealed replies on disk: what a site answered, once and for all, to each round of each study.

That a slot was answered is kept for ever; the protected bytes themselves only until the next round
of the study begins, 24 hours passed or the quota is reached (rules 5). Folder 0700, files 0600.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from fedward_client.ports import Clock
from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.channel.blob_files import BlobFile, keep_as
from fedward_common.channel.blobs import SUFFIX
from fedward_common.errors import LedgerError, ProtocolError
from fedward_common.trust.private_files import write_private
from fedward_common.wire import Envelope, Octets, ReplyKind

FORMAT: Final = "fedward-reply/1"
PAYLOAD: Final = "payload"


@dataclass(frozen=True, kw_only=True, slots=True)
class SealedReply:
    """One answer and whether it may leave: `released_to` is None while its receipt is unused."""

    slot: str
    study: str
    round: int
    key: str
    kind: ReplyKind
    header: bytes
    payload_sha256: str
    object_ids: frozenset[str]
    sealed_at: datetime
    released_to: str | None = None
    manifest: bytes = b""
    """What its message carries in place of the payload, where that leaves as a blob."""

    @property
    def has_payload(self) -> bool:
        """Whether the answer carries bytes besides its header."""
        return self.kind != "refusal"


class Replies:
    """The sealed replies of a site in one folder. The caller serialises the calls."""

    def __init__(
        self, folder: Path, *, quota_bytes: int, keep_seconds: float, clock: Clock
    ) -> None:
        """Opens the folder, or creates it.

        Raises:
            LedgerError: a file in it is damaged: what was answered is not known any more.
        """
        self._folder = folder
        self._quota_bytes = quota_bytes
        self._keep = timedelta(seconds=keep_seconds)
        self._clock = clock
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        self._by_slot: dict[str, SealedReply] = {}
        self._by_objects: dict[frozenset[str], str] = {}
        self._stored: set[str] = set()
        for path in sorted(folder.glob("*.json")):
            reply = _load(path)
            self._remember(reply)
            if self._payload_path(reply).exists():
                self._stored.add(reply.slot)
        self._remove_unnamed()
        self.prune()

    def _remove_unnamed(self) -> None:
        """Deletes payloads without a record: the guard was killed between the two, no answer is."""
        named = {self._payload_path(reply) for reply in self._by_slot.values()}
        for path in self._folder.glob("*.payload"):
            if path not in named:
                path.unlink()

    def require(self, slots: frozenset[str]) -> None:
        """Returns when every one of `slots` has its answer here.

        Raises:
            LedgerError: one has not: records were deleted or an older folder was put back. Its
                round would be granted again without a charge, with fresh noise.
        """
        missing = len(slots - self._by_slot.keys())
        if missing:
            raise LedgerError(
                f"replies {self._folder}: expected the records of all answers that the journal "
                f"noted, found {missing} missing. Restore the newest copy: no round may be "
                "answered twice"
            )

    def find(self, slot: str) -> SealedReply | None:
        """What was answered in a slot, or None."""
        return self._by_slot.get(slot)

    def has_update(self, study: str) -> bool:
        """Whether an update of this study was ever sealed."""
        return any(
            reply.study == study and reply.kind == "train" for reply in self._by_slot.values()
        )

    def find_by_objects(self, object_ids: frozenset[str]) -> SealedReply | None:
        """The reply whose envelope is carried by exactly these objects, or None."""
        slot = self._by_objects.get(object_ids)
        return None if slot is None else self._by_slot[slot]

    def released(self) -> Iterator[SealedReply]:
        """Every answer whose receipt was used up for a message."""
        return (reply for reply in self._by_slot.values() if reply.released_to is not None)

    def size(self, reply: SealedReply) -> int:
        """The bytes of an answer's header and of its payload, as far as they are still here."""
        return len(reply.header) + self._size(reply.slot)

    def envelope(self, reply: SealedReply) -> Envelope | None:
        """The stored answer as a message carries it; None when its bytes are gone or others."""
        if not reply.has_payload:
            return Envelope(header=reply.header)
        try:
            payload = self._payload_path(reply).read_bytes()
        except FileNotFoundError:
            return None
        if sha256_hex(payload) != reply.payload_sha256:
            return None
        if reply.manifest:
            return Envelope(header=reply.header, blobs={PAYLOAD + SUFFIX: reply.manifest})
        return Envelope(header=reply.header, blobs={PAYLOAD: payload})

    def open_payload(self, reply: SealedReply) -> int | None:
        """A descriptor that reads the stored payload, which the caller closes; None if it is gone.

        Raises:
            LedgerError: it cannot be read.
        """
        try:
            return os.open(self._payload_path(reply), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LedgerError(
                f"replies {self._folder}: expected to read a reply, found "
                f"{os.strerror(error.errno or 0)}"
            ) from error

    def room(self, size: int) -> BlobFile | None:
        """An empty nameless file, which `keep` names when it is an answer; None above the quota.

        Nothing is deleted for it: what comes may be no answer.

        Raises:
            StorageError: the disk has no room.
        """
        if size > self._quota_bytes:
            return None
        return BlobFile.make(self._folder, size, may_be_named=True)

    def keep(self, reply: SealedReply, payload: Octets) -> None:
        """Stores an answer: the slot counts as answered exactly when this returns.

        Raises:
            ProtocolError: the payload alone is above the quota, or the slot has an answer.
            LedgerError: it cannot be written.
        """
        if reply.slot in self._by_slot:
            raise ProtocolError("reply: expected a round that is not answered, found an answer")
        if len(payload) > self._quota_bytes:
            raise ProtocolError(
                f"reply: expected at most {self._quota_bytes} bytes (guard.reply_quota_bytes), "
                f"found {len(payload)}"
            )
        self._make_room(len(payload))
        if reply.has_payload:
            self._write(self._payload_path(reply), payload)
        # The answer exists from here on; a crash before leaves a payload that nothing names.
        self._save(reply)
        if reply.has_payload:
            self._stored.add(reply.slot)

    def set_released(self, reply: SealedReply, message_id: str | None) -> None:
        """Uses up the reply's receipt for a message, or arms it again with None; durable.

        Raises:
            LedgerError: it cannot be written.
        """
        self._save(replace(reply, released_to=message_id))

    def forget_before(self, study: str, *, slot: str) -> None:
        """Deletes the bytes of the study's other slots: a later round means those are committed
        or abandoned.
        """
        for other in tuple(self._stored):
            if other != slot and other.startswith(f"{study}/"):
                self._delete(other)

    def prune(self) -> None:
        """Deletes bytes that are older than the site keeps them."""
        limit = self._clock() - self._keep
        for slot in tuple(self._stored):
            if self._by_slot[slot].sealed_at < limit:
                self._delete(slot)

    def _make_room(self, needed: int) -> None:
        """Deletes the oldest payloads until `needed` bytes fit into the quota."""
        oldest_first = sorted(self._stored, key=lambda slot: self._by_slot[slot].sealed_at)
        sizes = {slot: self._size(slot) for slot in oldest_first}
        total = sum(sizes.values())
        for slot in oldest_first:
            if total + needed <= self._quota_bytes:
                return
            self._delete(slot)
            total -= sizes[slot]

    def _size(self, slot: str) -> int:
        path = self._payload_path(self._by_slot[slot])
        return path.stat().st_size if path.exists() else 0

    def _delete(self, slot: str) -> None:
        self._payload_path(self._by_slot[slot]).unlink(missing_ok=True)
        self._stored.discard(slot)

    def _save(self, reply: SealedReply) -> None:
        self._write(self._folder / f"{_name(reply.slot)}.json", _text(reply))
        self._remember(reply)

    def _remember(self, reply: SealedReply) -> None:
        self._by_slot[reply.slot] = reply
        self._by_objects[reply.object_ids] = reply.slot

    def _write(self, path: Path, data: Octets) -> None:
        try:
            if not keep_as(data, path):
                write_private(path, bytes(data))
        except OSError as error:
            raise LedgerError(
                f"replies {self._folder}: expected to store a reply, found "
                f"{os.strerror(error.errno or 0)}. Free space on its disk"
            ) from error

    def _payload_path(self, reply: SealedReply) -> Path:
        return self._folder / f"{_name(reply.slot)}.payload"


def _name(slot: str) -> str:
    return sha256_hex(slot.encode())


def _text(reply: SealedReply) -> bytes:
    return canonical_json(
        {
            "format": FORMAT,
            "slot": reply.slot,
            "study": reply.study,
            "round": reply.round,
            "key": reply.key,
            "kind": reply.kind,
            "header": reply.header.decode(),
            "payload_sha256": reply.payload_sha256,
            "object_ids": sorted(reply.object_ids),
            "sealed_at": reply.sealed_at.isoformat(),
            "released_to": reply.released_to,
            **({"manifest": reply.manifest.decode()} if reply.manifest else {}),
        }
    )


def _load(path: Path) -> SealedReply:
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
        if value["format"] != FORMAT or path.name != f"{_name(value['slot'])}.json":
            raise ValueError("another format or slot")
        return SealedReply(
            slot=value["slot"],
            study=value["study"],
            round=value["round"],
            key=value["key"],
            kind=value["kind"],
            header=value["header"].encode(),
            payload_sha256=value["payload_sha256"],
            object_ids=frozenset(value["object_ids"]),
            sealed_at=datetime.fromisoformat(value["sealed_at"]),
            released_to=value["released_to"],
            manifest=value.get("manifest", "").encode(),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LedgerError(
            f"reply {path}: expected the record of an answered round, found a damaged one. "
            "Restore the newest copy: the round must not be answered twice"
        ) from error
