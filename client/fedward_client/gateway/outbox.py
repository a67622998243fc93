"""Which replies may leave and which objects belong to them: decisions without I/O."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from fedward_client.gateway.fleet import Addressing, Incoming, Outgoing, PushedObject
from fedward_common.canonical import sha256_hex
from fedward_common.errors import ProtocolError

MAX_INSTRUCTIONS: Final = 1024
MAX_RELEASED: Final = 64
MAX_SESSIONS: Final = 16
MAX_KEPT: Final = 16
MAX_SECONDS: Final = 86400.0
"""How long a gateway that is started again knows an instruction, whatever its lifetime."""
CLOCK_SECONDS: Final = 1.0
"""Worker and gateway share a host; its clock may be set by this much while a message is at work."""


@dataclass(kw_only=True, slots=True)
class _Instruction:
    """An instruction's metadata as announced, and as its object has them (with the task ids)."""

    addressings: list[Addressing]
    received_at: float
    answered_as: str = ""


@dataclass(kw_only=True, slots=True)
class _Released:
    outgoing: Outgoing
    sessions: list[str] = field(default_factory=list)


class Outbox:
    """Remembers the instructions that came in and the replies that were released.

    A worker writes the metadata of its reply, so nothing in it may be free: everything is fixed by
    the instruction it answers, except the time of its creation, which must lie between the
    instruction's arrival and now. (Where in that span is still the worker's to choose: Flower keeps
    microseconds, so some 25 to 32 bits a reply.)
    """

    def __init__(self) -> None:
        self._instructions: OrderedDict[str, _Instruction] = OrderedDict()
        self._released: OrderedDict[str, _Released] = OrderedDict()

    def received(self, incoming: Incoming, *, now: float) -> None:
        """Remembers an instruction from the coordinator; `now` is Unix time."""
        self._instructions.setdefault(
            incoming.message_id,
            _Instruction(addressings=[incoming.addressing], received_at=now),
        )
        while len(self._instructions) > MAX_INSTRUCTIONS:
            self._instructions.popitem(last=False)

    def expects(self, object_id: str) -> bool:
        """Whether an object is the message object of an instruction."""
        return object_id in self._instructions

    def read(self, message_id: str, addressing: Addressing) -> None:
        """Remembers what the message object of an instruction says of it."""
        known = self._instructions[message_id].addressings
        if addressing not in known:
            known[1:] = [addressing]

    def check(self, outgoing: Outgoing, *, now: float) -> None:
        """Returns when nothing in a reply but its objects was free for the worker to choose.

        1. It answers an instruction that came in through this gateway.
        2. Its metadata are the instruction's, turned round; its lifetime ends when the
           instruction's does; it was created between then and now.
        3. Its id is the digest of the message object that these facts and its content determine,
           and that object is the root of its tree.
        4. It has content and no error, or one of Flower's error replies and no content.
        5. No other reply to this instruction left: a worker could send one for each word that the
           time of creation can spell, free of charge.

        Left to the caller: the guard's receipt for the content, the text of an error.

        Raises:
            ProtocolError: with the step that failed.
        """
        # 1.
        instruction = self._instructions.get(outgoing.addressing.reply_to)
        if instruction is None:
            raise ProtocolError("reply: expected an answer to an instruction that came in here")
        # 2.
        said = outgoing.addressing
        if said.source != outgoing.node or not any(
            _answers(said, asked) for asked in instruction.addressings
        ):
            raise ProtocolError("reply: expected the instruction's own metadata, found others")
        earliest = instruction.received_at - CLOCK_SECONDS
        if not earliest <= said.created_at <= now + CLOCK_SECONDS:
            raise ProtocolError("reply: expected it created since the instruction came in")
        # 3.
        if not outgoing.message_id == outgoing.root == outgoing.object_sha256:
            raise ProtocolError("reply: expected the id of its own object, found another")
        # 4.
        if outgoing.error == bool(outgoing.objects):
            raise ProtocolError("reply: expected either content or an error")
        # 5.
        _require_only(instruction, outgoing)

    def release(self, outgoing: Outgoing) -> None:
        """Lets the objects of a reply out from now on; called after the receipt was spent.

        Raises:
            ProtocolError: another reply to the same instruction was faster.
        """
        instruction = self._instructions.get(outgoing.addressing.reply_to)
        if instruction is not None:
            _require_only(instruction, outgoing)
            instruction.answered_as = outgoing.message_id
        known = self._released.pop(outgoing.message_id, _Released(outgoing=outgoing))
        self._released[outgoing.message_id] = known
        while len(self._released) > MAX_RELEASED:
            self._released.popitem(last=False)

    def opened(self, message_id: str, session: str) -> None:
        """Remembers the push session that the coordinator opened for a released reply."""
        sessions = self._released[message_id].sessions
        if session not in sessions:
            sessions.append(session)
        del sessions[:-MAX_SESSIONS]

    def reply_of(self, pushed: PushedObject) -> str:
        """The released reply that an object is part of; the object is what its id says.

        Raises:
            ProtocolError: it is not.
        """
        if sha256_hex(pushed.content) != pushed.object_id:
            raise ProtocolError("object: expected the bytes of its id, found others")
        for message_id, released in self._released.items():
            if _belongs(pushed, released):
                return message_id
        raise ProtocolError("object: expected one of a released reply, found another")

    def session(self, message_id: str) -> str:
        """The push session that was opened last for a released reply: the others are over."""
        return self._released[message_id].sessions[-1]

    @property
    def works_until(self) -> float:
        """When the last instruction that has no reply yet is over, in Unix time; 0 without one."""
        return max(
            (_ends(one) for one in self._instructions.values() if not one.answered_as), default=0.0
        )

    def snapshot(self, *, now: float) -> dict[str, Any]:
        """What of this a gateway that is started again needs to know, as a JSON value.

        The latest instructions that still live at `now`, and the replies to them that were
        released: SuperNode works at one after the other.
        """
        living = {
            message_id: asdict(instruction)
            for message_id, instruction in list(self._instructions.items())[-MAX_KEPT:]
            if _ends(instruction) > now
        }
        released = {
            message_id: asdict(one)
            for message_id, one in self._released.items()
            if one.outgoing.addressing.reply_to in living
        }
        return {"instructions": living, "released": released}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Takes up what `snapshot` gave. Raises KeyError, TypeError, AttributeError for another."""
        instructions = {
            message_id: _Instruction(
                addressings=[Addressing(**one) for one in facts["addressings"]],
                received_at=float(facts["received_at"]),
                answered_as=str(facts["answered_as"]),
            )
            for message_id, facts in snapshot["instructions"].items()
        }
        released = {
            message_id: _Released(
                outgoing=_outgoing(facts["outgoing"]), sessions=list(facts["sessions"])
            )
            for message_id, facts in snapshot["released"].items()
        }
        self._instructions.update(instructions)
        self._released.update(released)


def _ends(instruction: _Instruction) -> float:
    said = instruction.addressings[0]
    return min(said.created_at + said.ttl_seconds, instruction.received_at + MAX_SECONDS)


def _outgoing(facts: Mapping[str, Any]) -> Outgoing:
    return Outgoing(
        **{
            **facts,
            "addressing": Addressing(**facts["addressing"]),
            "objects": tuple(facts["objects"]),
        }
    )


def _require_only(instruction: _Instruction, outgoing: Outgoing) -> None:
    if instruction.answered_as not in ("", outgoing.message_id):
        raise ProtocolError("reply: expected one answer to an instruction, found a second")


def _belongs(pushed: PushedObject, released: _Released) -> bool:
    outgoing = released.outgoing
    return (
        pushed.object_id in (outgoing.root, *outgoing.objects)
        and pushed.run_id == outgoing.addressing.run_id
        and pushed.node == outgoing.node
        and pushed.session in released.sessions
    )


def _answers(said: Addressing, asked: Addressing) -> bool:
    """Whether a reply's metadata follow from the instruction's as Flower makes them follow."""
    return (
        said.run_id == asked.run_id
        and said.source == asked.destination
        and said.destination == asked.source
        and said.group == asked.group
        and said.kind == asked.kind
        and said.source_task == asked.destination_task
        and said.destination_task == asked.source_task
        and said.ttl_seconds == asked.created_at + asked.ttl_seconds - said.created_at
    )
