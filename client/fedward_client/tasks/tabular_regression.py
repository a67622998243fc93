"""A number about a patient from one row."""

import numpy as np
import torch

from fedward_client.tasks.made_up import made_up
from fedward_client.tasks.task import ExampleRecords, Labels
from fedward_common.errors import ModelRefused


class TabularRegressionTask:
    """One number per record on the scale of the label, [-1, 1]; half the squared error."""

    def __init__(self, *, inputs: int) -> None:
        self.inputs = inputs

    def losses(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Half the squared error of each record, shape [records].

        Raises:
            ModelRefused: the model's output is not one number for each record.
        """
        if outputs.shape != labels.shape:
            raise ModelRefused(
                f"output layer: expected one number for each record, shape {list(labels.shape)}, "
                f"found {list(outputs.shape)}; end the model with squeeze(-1)"
            )
        return 0.5 * (outputs - labels).square()

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """The prediction as a part of the label's range, in [0, 1]."""
        return ((outputs + 1.0) / 2.0).clamp(0.0, 1.0)

    def classes(self, labels: Labels) -> Labels:
        """No class for anybody."""
        return np.full_like(labels, np.nan)

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up records with labels over the whole range."""
        return made_up(
            self.inputs, device=device, labels=lambda count: torch.linspace(-1.0, 1.0, count)
        )
