"""`FetchModel`: one piece of a file of a model package, at most 1 MiB."""

from dataclasses import dataclass

from fedward_common.channel import channel_pb2 as wire
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_server.edge.objects import PassedObject
from fedward_server.models import ModelShelf
from fedward_server.ports import SiteRecord

KIND = "model"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelPieces:
    """Answers `FetchModel`."""

    shelf: ModelShelf

    def answer(
        self, record: SiteRecord, request: wire.FetchModelRequest
    ) -> tuple[wire.FetchModelReply, PassedObject | None]:
        """The piece from `offset`; with the last one also the file as an object for the log.

        Raises:
            CallRefused: MODEL, this site has no such model or file; MALFORMED, an offset beyond the
                file's end; UPSTREAM, the file cannot be read.
        """
        package = self.shelf.find(record, request.run)
        if package is None or request.file not in package.sizes:
            raise CallRefused(Refusal.MODEL, f"expected a model of a study of {record.site_id}")
        size = package.sizes[request.file]
        if request.offset > size:
            raise CallRefused(Refusal.MALFORMED, "expected an offset within the file")
        try:
            content = self.shelf.read(package, request.file, offset=request.offset)
        except OSError as error:
            raise CallRefused(Refusal.UPSTREAM, "expected a readable model package") from error
        reply = wire.FetchModelReply(content=content, size=size)
        if request.offset + len(content) < size:
            return reply, None
        sha256 = package.sha256[request.file]
        return reply, PassedObject(kind=KIND, sha256=sha256, size_bytes=size)
