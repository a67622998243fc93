"""What a kind of learning task has to say: the port that training is written against."""

from collections.abc import Callable
from typing import Protocol

import torch

from fedward_common.models.objectives import Objective

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(model outputs, labels [records]) -> one loss for each record, shape [records]."""

ExampleRecords = Callable[[int], tuple[torch.Tensor, torch.Tensor]]
"""count -> made-up features [count, ...] and labels [count], other numbers on every call.

They follow a fixed rule without randomness, so that a model passes its check always or never.
"""


class Task(Objective, Protocol):
    """The part of a study that decides the loss, the meaning of outputs and the input size."""

    inputs: int

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up records for the model check."""
        ...
