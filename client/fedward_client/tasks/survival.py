"""The time until an event."""

import torch

from fedward_client.tasks.made_up import made_up
from fedward_client.tasks.task import ExampleRecords
from fedward_common.models.objectives import SurvivalObjective
from fedward_common.study.survival import Survival


class SurvivalTask(SurvivalObjective):
    """Outputs [records, intervals]; labels are days, negative without an event so far."""

    def __init__(self, spec: Survival, *, inputs: int) -> None:
        super().__init__(spec)
        self.inputs = inputs
        self._last = spec.cuts[-1]

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up records with events and censored follow-up in every interval."""
        return made_up(self.inputs, device=device, labels=self.days)

    def days(self, count: int) -> torch.Tensor:
        """Made-up labels: every second one an event."""
        days = torch.linspace(0.1, 1.0, count) * self._last
        return torch.where(torch.arange(count) % 2 == 0, days, -days)
