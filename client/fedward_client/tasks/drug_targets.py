"""The affinity of a molecule to a protein."""

import torch

from fedward_client.tasks.multimodal import joined
from fedward_client.tasks.task import ExampleRecords
from fedward_common.models.objectives import ValueObjective
from fedward_common.study.drug_target import DrugTargetData


class DrugTargetTask(ValueObjective):
    """One number per pair on the scale of the label, [-1, 1]; half the squared error."""

    def __init__(self, data: DrugTargetData) -> None:
        self.inputs, self._data = data.input_size, data

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up pairs with labels over the whole range."""
        return joined(self._data, device, lambda count: torch.linspace(-1.0, 1.0, count))
