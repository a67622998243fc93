"""A record's own inputs, made again: made-up records for the objective that all sides share."""

import torch

from fedward_client.tasks.made_up import made_up
from fedward_client.tasks.task import ExampleRecords
from fedward_common.models.reconstruction_objective import ReconstructionObjective
from fedward_common.study.inputs import input_size
from fedward_common.study.spec import StudySpec


class ReconstructionTask(ReconstructionObjective):
    """The loss of what an autoencoder makes of a record."""

    def __init__(self, study: StudySpec) -> None:
        super().__init__(study)
        self.inputs = input_size(study.data)

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up records."""
        return made_up(self.inputs, device=device, labels=torch.zeros)
