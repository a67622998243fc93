"""A number about a patient from one row."""

import torch

from fedward_client.tasks.made_up import made_up
from fedward_client.tasks.task import ExampleRecords
from fedward_common.models.objectives import ValueObjective


class TabularRegressionTask(ValueObjective):
    """One number per record on the scale of the label, [-1, 1]; half the squared error."""

    def __init__(self, *, inputs: int) -> None:
        self.inputs = inputs

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up records with labels over the whole range."""
        return made_up(
            self.inputs, device=device, labels=lambda count: torch.linspace(-1.0, 1.0, count)
        )
