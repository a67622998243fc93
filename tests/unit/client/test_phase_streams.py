"""How long a gateway tries for a stream: from the cut on, however long it was idle before."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from fedward_client.gateway.phases import PhaseAccess, PhaseDesk
from fedward_client.ports import Passing
from fedward_common.channel.phase_pb2 import PhaseDown, PhaseUp
from fedward_common.channel.phases import framed, read_message, to_step
from fedward_common.errors import ChannelError
from fedward_common.wire import Envelope
from tests.support.guard_site import a_study, instruction, object_ids

STUDY = a_study()
STEP = PhaseDown(step=to_step(1, Envelope(header=instruction(STUDY), blobs={"model": b"m"})))
RESUME_SECONDS = 0.2

Reading = Callable[[], Awaitable[PhaseDown | None]]


class Permissive:
    """A guard that opened the phase."""

    def release(self, _message_id: str, _object_ids: Sequence[str]) -> bool:
        return True

    def journal(self, _passing: Passing) -> None:
        return

    def bundle_allowed(self, _sha256: str) -> bool:
        return True

    def phase_open(self, _study: str) -> bool:
        return True


class ScriptedStream:
    """What comes down is written in the test."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    async def write(self, up: PhaseUp) -> None:
        return

    async def read(self) -> PhaseDown | None:
        return await self._reading()

    def close(self) -> None:
        return


class ScriptedStreams:
    """One script after the other; the last one again and again."""

    edge_certificate_sha256 = ""

    def __init__(self, *readings: Reading) -> None:
        self._readings = list(readings)
        self.opened = 0

    def phase(self) -> ScriptedStream:
        self.opened += 1
        return ScriptedStream(self._readings[min(self.opened, len(self._readings)) - 1])


async def idle_then_cut() -> PhaseDown | None:
    await asyncio.sleep(3 * RESUME_SECONDS)
    raise ChannelError("cut")


async def a_step() -> PhaseDown | None:
    return STEP


async def refused() -> PhaseDown | None:
    return PhaseDown(refused="phase")


async def first_word(folder: Path, streams: ScriptedStreams) -> PhaseDown | None:
    """What a worker hears first after it joined."""

    async def ask(question: Callable[..., Any], *arguments: object) -> object:
        return question(*arguments)

    path = folder / "phase.sock"
    desk = PhaseDesk(
        access=PhaseAccess(path=path, worker_uid=os.geteuid()),
        streams=streams,
        guard=Permissive(),
        ask=ask,
        object_ids=object_ids,
        resume_seconds=RESUME_SECONDS,
    )
    await desk.start()
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(framed(PhaseUp(join=STUDY.digest)))
    heard = await asyncio.wait_for(read_message(reader, PhaseDown), 30)
    writer.close()
    await desk.stop()
    return heard


def test_a_stream_that_was_idle_and_is_cut_is_tried_again(tmp_path: Path) -> None:
    streams = ScriptedStreams(idle_then_cut, a_step)

    heard = asyncio.run(first_word(tmp_path, streams))

    assert heard == STEP
    assert streams.opened == 2


def test_an_edge_that_only_refuses_ends_the_phase_for_the_worker(tmp_path: Path) -> None:
    heard = asyncio.run(first_word(tmp_path, ScriptedStreams(refused)))

    assert heard == PhaseDown(ended=True)
