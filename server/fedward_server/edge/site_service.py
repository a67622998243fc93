"""What a member site asks of its coordinator besides Flower: grpc's side of `FedwardSite`.

Each operation has a module of its own; here they get their caller, proven on every call before
anything of it is read, and the limits that `Forward` has too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc

from fedward_common.channel import channel_pb2 as wire
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.errors import FedwardError
from fedward_server.edge.admission import Admission, certificate_sha256
from fedward_server.edge.fetch_model import ModelPieces
from fedward_server.edge.gate import Gate
from fedward_server.edge.hello import Greeting
from fedward_server.edge.list_models import ModelList
from fedward_server.edge.listening import (
    Operation,
    Requests,
    operations,
    read_one,
    shown_certificate,
)
from fedward_server.edge.renew import Renewal
from fedward_server.ports import SiteRecord

Request = TypeVar("Request")
Reply = TypeVar("Reply")

SERVICE = "FedwardSite"


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteDesks:
    """Who answers what."""

    greeting: Greeting
    renewal: Renewal
    models: ModelList
    pieces: ModelPieces


class SiteService:
    """`FedwardSite` for active sites of the roster; a refusal is a word in `error_code`."""

    def __init__(self, *, admission: Admission, gate: Gate, desks: SiteDesks) -> None:
        self._admission = admission
        self._gate = gate
        self._desks = desks

    def handler(self) -> grpc.GenericRpcHandler:
        """What a grpc server is given."""
        return operations(
            SERVICE,
            {
                "Hello": Operation(wire.HelloRequest, wire.HelloReply, self.hello),
                "Renew": Operation(wire.RenewRequest, wire.RenewReply, self.renew),
                "ListModels": Operation(
                    wire.ListModelsRequest, wire.ListModelsReply, self.list_models
                ),
                "FetchModel": Operation(
                    wire.FetchModelRequest, wire.FetchModelReply, self.fetch_model
                ),
            },
        )

    async def hello(
        self, requests: Requests[wire.HelloRequest], context: grpc.aio.ServicerContext
    ) -> wire.HelloReply:
        """The coordinator's versions and clock, and who was revoked."""
        return await self._answer(context, "hello", self._desks.greeting.answer, requests)

    async def renew(
        self, requests: Requests[wire.RenewRequest], context: grpc.aio.ServicerContext
    ) -> wire.RenewReply:
        """A new certificate for a new key."""
        return await self._answer(context, "renew", self._desks.renewal.answer, requests)

    async def list_models(
        self, requests: Requests[wire.ListModelsRequest], context: grpc.aio.ServicerContext
    ) -> wire.ListModelsReply:
        """The finished models of the caller's studies."""
        return await self._answer(context, "list-models", self._desks.models.answer, requests)

    async def fetch_model(
        self, requests: Requests[wire.FetchModelRequest], context: grpc.aio.ServicerContext
    ) -> wire.FetchModelReply:
        """One piece of a file; the last one is an `edge.object` of the coordinator's log."""
        pem = shown_certificate(context)
        async with self._gate.passing(
            pem, route="fetch-model", admit=lambda: self._admission.member(pem)
        ) as passing:
            request = await read_one(requests)
            site = passing.record.site_id
            reply, passed = await self._gate.in_thread(
                self._desks.pieces.answer, passing.record, request
            )
            if passed is not None:
                await self._gate.write(
                    "edge.object",
                    site=site,
                    certificate_sha256=certificate_sha256(pem),
                    direction="out",
                    route="fetch-model",
                    kind=passed.kind,
                    sha256=passed.sha256,
                    bytes=passed.size_bytes,
                    run=request.run,
                )
            return reply

    async def _answer(
        self,
        context: grpc.aio.ServicerContext,
        route: str,
        desk: Callable[[SiteRecord, Request], Reply],
        requests: Requests[Request],
    ) -> Reply:
        """What `desk` answers the caller, in the edge's disk thread.

        Raises:
            CallRefused: the caller may not ask, or the desk refused; it is in the log.
        """
        pem = shown_certificate(context)
        async with self._gate.passing(
            pem, route=route, admit=lambda: self._admission.member(pem)
        ) as passing:
            request = await read_one(requests)
            try:
                return await self._gate.in_thread(desk, passing.record, request)
            except CallRefused:
                raise
            except FedwardError as error:
                raise CallRefused(
                    Refusal.UPSTREAM, f"expected an answer, found {type(error).__name__}: {error}"
                ) from error
