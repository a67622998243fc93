"""Binary classification of a patient, from one row or a time series."""

import torch

from fedward_client.tasks.made_up import made_up
from fedward_client.tasks.task import ExampleRecords
from fedward_common.models.objectives import BinaryObjective


class TabularClassificationTask(BinaryObjective):
    """One logit per record, binary cross-entropy, scores between 0 and 1."""

    def __init__(self, *, inputs: int) -> None:
        super().__init__()
        self.inputs = inputs

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up records of both classes."""
        return made_up(self.inputs, device=device, labels=lambda count: torch.arange(count) % 2)
