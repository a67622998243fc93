"""What a kind of learning task has to say: the port that training is written against."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedward_common.models.objectives import Labels, Objective
from fedward_common.study.evaluation import EvaluationRelease

Places = npt.NDArray[np.int64]

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


@runtime_checkable
class CountedTask(Task, Protocol):
    """A task whose evaluation marks more than one cell for a record (see `EvaluationRelease`)."""

    def predict(self, model: nn.Module, features: torch.Tensor) -> torch.Tensor:
        """The model's outputs for one record, `features` [1, ...]."""
        ...

    def places(self, outputs: torch.Tensor, labels: Labels, release: EvaluationRelease) -> Places:
        """Where one record is counted, [marks]; NOWHERE for a mark that cannot be made.

        Raises:
            ConfigError: the release is not one for this task.
        """
        ...
