"""One phase at the gateway as a state machine without I/O: what is asked, what may answer it.

The coordinator numbers its steps. After a cut it asks again under another number; the site works on
an instruction once and sends the same answer under the newest number.
"""

from dataclasses import dataclass

from fedward_common.channel.phase_pb2 import PhaseStep
from fedward_common.channel.phases import from_step
from fedward_common.errors import ProtocolError
from fedward_common.wire import Envelope, Instruction


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a step asks of us: work for the worker, or the answer that was given before.

    `given` is the number under which the worker has, or had, this instruction.
    """

    envelope: Envelope
    work: bool
    given: int
    answer: Envelope | None = None


@dataclass(kw_only=True, slots=True)
class Course:
    """The steps of one worker's connection, in the phase of one study."""

    study: str
    _key: str = ""
    _newest: int = 0
    _given: int = 0
    _heard: int = 0
    _answer: Envelope | None = None

    def asked(self, step: PhaseStep) -> Asked:
        """What to do with a step of the coordinator.

        1. Its number is above all before. 2. It is an instruction of this study and opens no phase.
        An instruction that is at work is not given to the worker again; one that was answered is
        answered again with the same bytes. Any other replaces the one before, whose answer is late.

        Raises:
            ProtocolError: with the rule that it breaks.
        """
        if step.number <= self._newest:
            raise ProtocolError(
                f"step: expected a number above {self._newest}, found {step.number}"
            )
        envelope = from_step(step)
        instruction = Instruction.parse(envelope.header)
        if instruction.study != self.study or instruction.kind == "phase":
            raise ProtocolError("step: expected an instruction of the phase's study, found another")
        self._newest = step.number
        if instruction.key == self._key:
            return Asked(envelope=envelope, work=False, given=self._given, answer=self._answer)
        self._key, self._given, self._answer = instruction.key, step.number, None
        return Asked(envelope=envelope, work=True, given=self._given)

    def answers(self, step: PhaseStep) -> Envelope | None:
        """The worker's answer to what is at work; None where the coordinator has gone on since.

        Raises:
            ProtocolError: nothing of that number was given to the worker, or it answers twice.
        """
        if not self._heard < step.number <= self._given:
            raise ProtocolError("answer: expected one to a step that was given, found another")
        self._heard = step.number
        envelope = from_step(step)
        return envelope if step.number == self._given else None

    def keep(self, answer: Envelope, *, given: int) -> int | None:
        """Keeps the answer that may leave to what was given under `given`; its number on the way.

        None where the coordinator went on while the guard was asked: under the next step's number
        the answer would cost this site that step, too.
        """
        if given != self._given:
            return None
        self._answer = answer
        return self._newest
