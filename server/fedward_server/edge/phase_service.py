"""grpc's side of phases: one stream of a member site, admitted at its start and at every step."""

import asyncio
import re
from typing import Literal

import grpc

from fedward_common.channel.phase_pb2 import PhaseDown, PhaseEvent, PhaseStep, PhaseUp
from fedward_common.channel.phases import (
    REPLY,
    ROUTE,
    SERVICE,
    STEP,
    envelope_bytes,
    envelope_sha256,
    from_step,
)
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.errors import ProtocolError
from fedward_common.ids import DIGEST
from fedward_common.wire import Envelope
from fedward_server.edge.admission import Admission, certificate_sha256
from fedward_server.edge.gate import Gate
from fedward_server.edge.listening import Requests, read_one, shown_certificate
from fedward_server.edge.phase_hub import OpenPhase, PhaseHub, Seat


class PhaseService:
    """`FedwardPhase` for active sites of the roster.

    Guarantees: as `Edge`: every step and every answer is a line `edge.object` of the log before it
    goes on, and at each of them the certificate and the roster are asked again (rules 17).
    """

    def __init__(self, *, admission: Admission, gate: Gate, hub: PhaseHub) -> None:
        self._admission = admission
        self._gate = gate
        self._hub = hub

    def handler(self) -> grpc.GenericRpcHandler:
        """What a grpc server is given."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Run": grpc.stream_stream_rpc_method_handler(
                    self.run,
                    request_deserializer=PhaseUp.FromString,
                    response_serializer=PhaseDown.SerializeToString,
                )
            },
        )

    async def run(self, requests: Requests[PhaseUp], context: grpc.aio.ServicerContext) -> None:
        """Carries one site's stream until the phase, the site or the connection ends."""
        pem = shown_certificate(context)
        try:
            async with self._gate.passing(
                pem, route=ROUTE, admit=lambda: self._admission.member(pem)
            ) as passing:
                first = await read_one(requests)
                if not re.fullmatch(DIGEST, first.join):
                    raise CallRefused(Refusal.MALFORMED, "expected the study of a phase first")
                phase, seat = self._hub.join(first.join, passing.record.site_id)
                try:
                    await self._carry(phase, seat, requests, context)
                finally:
                    self._hub.leave(phase, seat)
        except CallRefused as refused:
            await context.write(PhaseDown(refused=refused.refusal.value))

    async def _carry(
        self,
        phase: OpenPhase,
        seat: Seat,
        requests: Requests[PhaseUp],
        context: grpc.aio.ServicerContext,
    ) -> None:
        pem = shown_certificate(context)
        both = [
            asyncio.ensure_future(self._up(phase, seat, requests, pem)),
            asyncio.ensure_future(self._down(seat, context, pem)),
        ]
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def _up(
        self, phase: OpenPhase, seat: Seat, requests: Requests[PhaseUp], pem: bytes
    ) -> None:
        async for up in requests:
            if up.WhichOneof("said") != "answer":
                raise CallRefused(Refusal.MALFORMED, "expected an answer after joining")
            await self._gate.in_thread(self._admission.member, pem)
            envelope = _envelope(up.answer)
            newest = seat.takes(up.answer.number)
            await self._write(seat, pem, "in", REPLY, envelope)
            if newest:
                phase.report(PhaseEvent(site=seat.site, answer=up.answer))

    async def _down(self, seat: Seat, context: grpc.aio.ServicerContext, pem: bytes) -> None:
        while True:
            down = await seat.next()
            if down.WhichOneof("said") == "ended":
                await context.write(down)
                return
            # A site may be revoked, or its certificate end, in the middle of a phase.
            await self._gate.in_thread(self._admission.member, pem)
            await self._write(seat, pem, "out", STEP, from_step(down.step))
            await context.write(down)

    async def _write(
        self,
        seat: Seat,
        pem: bytes,
        direction: Literal["in", "out"],
        kind: str,
        envelope: Envelope,
    ) -> None:
        await self._gate.write(
            "edge.object",
            site=seat.site,
            certificate_sha256=certificate_sha256(pem),
            direction=direction,
            route=ROUTE,
            kind=kind,
            sha256=envelope_sha256(envelope),
            bytes=envelope_bytes(envelope),
        )


def _envelope(step: PhaseStep) -> Envelope:
    try:
        return from_step(step)
    except ProtocolError as error:
        raise CallRefused(Refusal.MALFORMED, str(error)) from error
