"""Telling generated records from real ones: made-up records for the shared objective."""

import torch

from fedward_client.tasks.made_up import made_up
from fedward_client.tasks.task import ExampleRecords
from fedward_common.models.adversarial_objective import AdversarialObjective
from fedward_common.study.inputs import input_size
from fedward_common.study.spec import StudySpec


class GenerationTask(AdversarialObjective):
    """The loss of what a discriminator says of a record and of a generated one."""

    def __init__(self, study: StudySpec) -> None:
        super().__init__(study.model.outputs)
        self.inputs = input_size(study.data)

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up records."""
        return made_up(self.inputs, device=device, labels=torch.zeros)
