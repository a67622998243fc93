"""The back end `loop`: plain autograd, one patient after another."""

from collections.abc import Iterator

import torch
from torch import nn

from fedward_client.tasks.task import LossFunction
from fedward_client.training.patient_dp.back_end import (
    Chunk,
    record_losses,
    trainable_parameters,
)
from fedward_common.errors import ModelRefused

_BLOCK_ELEMENTS = 1 << 20
"""Gradients are handed on in blocks of about 8 MiB, so that large models stay small in memory."""


class LoopBackEnd:
    """Any model that autograd can differentiate, in the memory of one patient.

    It keeps no state and writes no `.grad`: nothing can survive an interrupted call. No two
    patients ever meet in one tensor, so that not even rounding depends on who else is drawn.
    """

    def __init__(self, model: nn.Module, *, loss: LossFunction) -> None:
        self._model = model
        self._loss = loss
        self._parameters = trainable_parameters(model)
        width = sum(p.numel() for p in self._parameters.values())
        self._rows_per_block = max(1, _BLOCK_ELEMENTS // max(1, width))

    def patient_gradients(self, chunk: Chunk) -> Iterator[torch.Tensor]:
        """Blocks [patients, parameters] that together hold one row for each patient in order."""
        sizes: list[int] = chunk.sizes.tolist()
        pairs = zip(
            torch.split(chunk.features, sizes), torch.split(chunk.labels, sizes), strict=True
        )
        rows: list[torch.Tensor] = []
        for features, labels in pairs:
            rows.append(self._gradient(features, labels))
            if len(rows) == self._rows_per_block:
                yield torch.stack(rows)
                rows = []
        if rows:
            yield torch.stack(rows)

    def _gradient(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        # A copy is aligned alike wherever the patient stands in the chunk; kernels may round by it.
        features, labels = features.clone(), labels.clone()
        losses = record_losses(self._model, loss=self._loss, features=features, labels=labels)
        # The gradient of the mean is the mean of the gradients, in one backward pass.
        gradients = torch.autograd.grad(
            losses.mean(), list(self._parameters.values()), allow_unused=True
        )
        for name, gradient in zip(self._parameters, gradients, strict=True):
            if gradient is None:
                raise ModelRefused(f"parameter {name}: expected a gradient, found none")
        return torch.cat([gradient.flatten() for gradient in gradients])
