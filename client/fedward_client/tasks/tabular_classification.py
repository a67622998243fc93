"""Binary classification of a patient, from one row or a time series."""

import torch
from torch.nn import functional

from fedward_client.tasks.made_up import made_up
from fedward_client.tasks.task import ExampleRecords, Labels
from fedward_common.errors import ModelRefused


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

    def classes(self, labels: Labels) -> Labels:
        """The labels as they are."""
        return labels

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up records of both classes."""
        return made_up(self.inputs, device=device, labels=lambda count: torch.arange(count) % 2)
