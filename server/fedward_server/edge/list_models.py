"""`ListModels`: the signed models of the studies that name this site with its own keys."""

from dataclasses import dataclass

from fedward_common.channel import channel_pb2 as wire
from fedward_server.models import ModelShelf
from fedward_server.ports import SiteRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelList:
    """Answers `ListModels`."""

    shelf: ModelShelf

    def answer(self, record: SiteRecord, _request: wire.ListModelsRequest) -> wire.ListModelsReply:
        """One entry per run whose model its study's lead has signed."""
        return wire.ListModelsReply(
            models=[
                wire.ModelEntry(
                    run=package.run,
                    study=package.study.digest,
                    study_id=package.study.id,
                    model_sha256=package.model_sha256,
                    files=dict(package.sizes),
                )
                for package in self.shelf.packages(record)
            ]
        )
