"""Binary classification of a patient from one table."""

import itertools
import math

import torch
from torch.nn import functional

from fedward_client.tasks.task import ExampleRecords
from fedward_common.errors import ModelRefused

_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


class TabularClassificationTask:
    """One logit per record, binary cross-entropy, scores between 0 and 1."""

    def __init__(self, *, inputs: int) -> None:
        self.inputs = inputs

    def losses(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The binary cross-entropy of each record, shape [records].

        Raises:
            ModelRefused: the model's output is not one logit for each record; [records, 1] is
                refused and not squeezed, because it would broadcast against the labels.
        """
        if outputs.shape != labels.shape:
            raise ModelRefused(
                f"output layer: expected one logit for each record, shape {list(labels.shape)}, "
                f"found {list(outputs.shape)}; end the model with squeeze(-1)"
            )
        return functional.binary_cross_entropy_with_logits(outputs, labels, reduction="none")

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """The predicted probability of the positive class of each record, in [0, 1]."""
        return torch.sigmoid(outputs)

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up records within the range of real ones, by a fixed rule, for the model check."""
        blocks = itertools.count()

        def next_records(count: int) -> tuple[torch.Tensor, torch.Tensor]:
            size = count * self.inputs
            # Fractional parts of phi n^2: spread evenly over [0, 1), and no two rows alike.
            index = torch.arange(size, dtype=torch.float64) + 1.0 + next(blocks) * size
            features = 2.0 * torch.frac(index.square() * _GOLDEN) - 1.0
            labels = torch.arange(count) % 2
            return (
                features.reshape(count, self.inputs).to(device, torch.float32),
                labels.to(device, torch.float32),
            )

        return next_records
