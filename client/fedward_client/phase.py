"""A phase at the worker: one Flower task answers step after step over the gateway's Unix socket.

The worker has no network. It connects to a socket of the gateway, which lets out only answers that
the guard sealed; so nothing here needs to be trusted with what leaves. When the gateway says that
the phase is over, or is gone, the task ends as any other, with the phase's own answer.
"""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from fedward_common.channel import phase_pb2 as wire
from fedward_common.channel.phases import framed, from_step, receive_message, to_step
from fedward_common.errors import ProtocolError
from fedward_common.wire import Envelope, Instruction, Reply

IDLE_SECONDS: Final = 900.0
"""A phase in which nothing is asked for so long is over for this worker; the next message opens
another."""
RETURN_SECONDS: Final = 30.0
"""How long a gateway that went away may take to come back."""
RETRY_SECONDS: Final = 0.25
STUDY: Final = "study"

Answering = Callable[[Envelope], Envelope]

_log = structlog.get_logger(__name__)


def opens_phase(answer: Envelope) -> bool:
    """Whether the guard's answer is the one that ends a phase: its steps come first."""
    return Reply.parse(answer.header).kind == "phase"


def serve_phase(
    opening: Envelope,
    answering: Answering,
    *,
    socket_path: Path,
    return_seconds: float = RETURN_SECONDS,
) -> int:
    """Answers the steps of the phase that `opening` began; the number of steps answered.

    Returns when the coordinator ended the phase, when nothing was asked for a long time, or when
    the gateway is gone and does not come back; never raises for any of these.
    """
    phase = _Phase(opening, answering, socket_path)
    missing_since: float | None = None
    while not phase.over:
        before = phase.answered
        try:
            phase.run()
        except (OSError, ProtocolError) as error:
            _log.warning("phase.interrupted", error=type(error).__name__)
        now = time.monotonic()
        if phase.answered > before or missing_since is None:
            missing_since = now
        if phase.over or now - missing_since > return_seconds:
            break
        time.sleep(RETRY_SECONDS)
    _log.info("phase.ended", steps=phase.answered)
    return phase.answered


class _Phase:
    """The steps of one phase over one connection after the other."""

    def __init__(self, opening: Envelope, answering: Answering, socket_path: Path) -> None:
        self._study = Instruction.parse(opening.header).study
        self._signed = opening.blobs[STUDY]
        self._answering = answering
        self._path = socket_path
        self.answered = 0
        self.over = False

    def run(self) -> None:
        """Joins, then answers until the other side ends it or goes away.

        Raises:
            ProtocolError: what came is no step.
            OSError: the connection broke.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(IDLE_SECONDS)
            connection.connect(str(self._path))
            connection.sendall(framed(wire.PhaseUp(join=self._study)))
            while (down := self._next(connection)) is not None:
                if down.WhichOneof("said") != "step":
                    self.over = True
                    return
                answer = self._answering(self._asked(down.step))
                up = wire.PhaseUp(answer=to_step(down.step.number, answer))
                connection.sendall(framed(up))
                self.answered += 1

    def _next(self, connection: socket.socket) -> wire.PhaseDown | None:
        try:
            return receive_message(connection, wire.PhaseDown)
        except TimeoutError:
            self.over = True
            return None

    def _asked(self, step: wire.PhaseStep) -> Envelope:
        """The step's envelope, with the signed study that came once, when the phase was opened."""
        envelope = from_step(step)
        return Envelope(header=envelope.header, blobs={STUDY: self._signed, **envelope.blobs})
