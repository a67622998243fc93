"""What leaves: only what was sealed here, and only while the policy still permits it.

Asked twice for each message: when its receipt is spent, and again for every object of it, so that a
pause or a revocation holds in the middle of a message. A refusal is one word of a fixed list and
always may leave: it is how the coordinator hears that this site said no.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from fedward_client.guard.memory import OBJECT
from fedward_client.guard.notes import reason
from fedward_client.guard.receipts import Refusals, Steps
from fedward_client.guard.replies import Replies, SealedReply
from fedward_client.guard.shelf import StudyShelf
from fedward_client.guard.traffic import Traffic
from fedward_client.policy import SitePolicy
from fedward_client.ports import Clock, Journal, Passing
from fedward_common.channel.blobs import BLOB, REST, Manifest
from fedward_common.errors import PolicyRefused
from fedward_common.wire import CONTROL_KINDS

MAX_MESSAGES: Final = 64
ERROR: Final = "error-reply"
OF_STUDIES: Final = frozenset({"reply", ERROR, "object", BLOB, REST})
"""Kinds of objects that belong to a study's messages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Carried:
    """What the objects of one message carry: an answer, or only a refusal."""

    study: str
    round: int
    kind: str

    @property
    def is_refusal(self) -> bool:
        """Whether it is one word and no more."""
        return self.kind == "refusal"


@dataclass(frozen=True, kw_only=True, slots=True)
class OutgoingBlob:
    """A sealed payload that leaves as a blob: its manifest, and a descriptor that reads it."""

    manifest: bytes
    descriptor: int


@dataclass(frozen=True, kw_only=True)
class Release:
    """Decides about messages and objects on their way out. The caller serialises the calls."""

    policy: SitePolicy
    replies: Replies
    refusals: Refusals
    steps: Steps
    shelf: StudyShelf
    traffic: Traffic
    log: Journal
    clock: Clock
    _messages: OrderedDict[str, frozenset[str]] = field(default_factory=OrderedDict)
    _objects: dict[str, Carried] = field(default_factory=dict)
    _errors: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        """Knows again what was on its way when the guard stopped."""
        for sealed in sorted(self.replies.released(), key=lambda one: one.sealed_at):
            carried = Carried(study=sealed.study, round=sealed.round, kind=sealed.kind)
            ids = sealed.object_ids | _blob_of(sealed)
            self._carry(sealed.released_to or "", ids, carried)

    def message(self, message_id: str, object_ids: Sequence[str]) -> bool:
        """Whether the message with exactly these content objects may leave.

        True once for a sealed envelope, and again for the same message (a retry of the transport);
        False for anything that was not sealed here, changed, or already left in another message.

        Raises:
            PolicyRefused: it was sealed here, but the policy keeps it back now. Its receipt is
                still good.
        """
        wanted = frozenset(object_ids)
        sealed = self.replies.find_by_objects(wanted)
        step = self.steps.find_by_objects(wanted) if sealed is None else None
        refusal = self.refusals.find_by_objects(wanted) if sealed is None else None
        found = sealed or step or refusal
        if found is None or found.released_to not in (None, message_id):
            self.log.append("reply.held", message_id=message_id, objects=len(wanted))
            return False
        carried = Carried(study=found.study, round=found.round, kind=found.kind)
        size = 0 if step is None else step.bytes
        if sealed is not None:
            size = self.replies.size(sealed)
        if not carried.is_refusal:
            try:
                self._require(carried, size)
            except PolicyRefused as error:
                self.log.append(
                    "reply.held", message_id=message_id, objects=len(wanted), **reason(error)
                )
                raise
        if sealed is not None and sealed.released_to is None:
            self.replies.set_released(sealed, message_id)
        elif step is not None:
            step.released_to = message_id
        elif refusal is not None:
            refusal.released_to = message_id
        if sealed is not None:
            wanted |= _blob_of(sealed)
        self._carry(message_id, wanted, carried)
        self.log.append("reply.released", message_id=message_id, objects=len(wanted))
        return True

    def journal(self, passing: Passing) -> None:
        """Writes down one object that came in or goes out; on disk when this returns.

        Raises:
            PolicyRefused: it may not go out now; that is in the journal instead.
        """
        carried = self._objects.get(passing.sha256) if passing.direction == "out" else None
        if passing.direction == "out":
            try:
                self._require_out(carried, passing)
            except PolicyRefused as error:
                self.log.append(
                    "object.held",
                    kind=passing.kind,
                    sha256=passing.sha256,
                    bytes=passing.bytes,
                    **reason(error),
                )
                raise
        self.log.append(OBJECT, **_fields(passing, carried))
        if passing.direction == "out":
            study, number = ("", 0) if carried is None else (carried.study, carried.round)
            self.traffic.add(passing.bytes, study=study, round_number=number)
            if passing.kind == ERROR:
                self._errors[passing.sha256] = None
                while len(self._errors) > MAX_MESSAGES:
                    self._errors.popitem(last=False)

    def blob(self, message_id: str) -> OutgoingBlob | None:
        """What leaves beside a message that was let out, if it has a blob.

        Raises:
            PolicyRefused: the policy keeps it back now.
            LedgerError: it cannot be read.
        """
        for sealed in self.replies.released():
            if sealed.released_to != message_id or not sealed.manifest:
                continue
            descriptor = self.replies.open_payload(sealed)
            if descriptor is not None:
                return OutgoingBlob(manifest=sealed.manifest, descriptor=descriptor)
        return None

    def require_blob(self, blob: str) -> None:
        """Returns when a blob that is on its way out may go on.

        Raises:
            PolicyRefused: the policy keeps the rest of it back now; that is in the journal.
        """
        carried = self._objects.get(blob)
        try:
            if carried is None:
                raise PolicyRefused("Site policy keeps a blob back: it is of no message let out")
            self._require(carried, 0)
        except PolicyRefused as error:
            self.log.append("object.held", kind=BLOB, sha256=blob, bytes=0, **reason(error))
            raise

    def _require_out(self, carried: Carried | None, passing: Passing) -> None:
        if carried is not None:
            if not carried.is_refusal:
                self._require(carried, passing.bytes)
        elif passing.kind in OF_STUDIES:
            # An error of Flower's fixed list waits for the end of a pause, too. The renewal of a
            # certificate does not: it says nothing of a study.
            self.policy.require_not_paused()
            if passing.kind != ERROR and passing.sha256 not in self._errors:
                raise PolicyRefused(
                    "Site policy keeps an object back: it is of no message that the guard has let "
                    "out since its start"
                )

    def _require(self, carried: Carried, size_bytes: int) -> None:
        """Returns when the policy permits the study's answer now, and so many bytes of it.

        Raises:
            PolicyRefused: it does not, or the study is not known here any more.
        """
        study = self.shelf.find(carried.study)
        if study is None:
            raise PolicyRefused(
                f"Site policy keeps a message back: its study {carried.study} is not in the "
                "guard's folder of studies any more"
            )
        kind = None if carried.kind in CONTROL_KINDS else carried.kind
        self.policy.permits(study, now=self.clock(), kind=kind)
        self.traffic.check(carried.study, carried.round, size_bytes)

    def _carry(self, message_id: str, object_ids: frozenset[str], carried: Carried) -> None:
        """Remembers what the objects of a message carry, the message object itself included."""
        ids = object_ids | {message_id}
        self._messages[message_id] = ids
        self._messages.move_to_end(message_id)
        self._objects.update(dict.fromkeys(ids, carried))
        while len(self._messages) > MAX_MESSAGES:
            _, old = self._messages.popitem(last=False)
            for one in old - frozenset().union(*self._messages.values()):
                self._objects.pop(one, None)


def _blob_of(sealed: SealedReply) -> frozenset[str]:
    return frozenset({Manifest.parse(sealed.manifest).id} if sealed.manifest else ())


def _fields(passing: Passing, carried: Carried | None) -> dict[str, object]:
    """What the journal's line about an object says."""
    fields: dict[str, object] = {
        "direction": passing.direction,
        "route": passing.route,
        "kind": passing.kind,
        "sha256": passing.sha256,
        "bytes": passing.bytes,
    }
    if passing.run:
        fields["run"] = passing.run
    if passing.certificate_sha256:
        fields["certificate_sha256"] = passing.certificate_sha256
    if carried is not None:
        fields |= {"study": carried.study, "round": carried.round}
    return fields
