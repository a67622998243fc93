"""The back end `loop`: plain autograd, one patient after another."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from fedward_client.tasks.task import LossFunction
from fedward_client.training.patient_dp.back_end import (
    Chunk,
    Factors,
    Precision,
    prefer_onednn,
    record_losses,
    trainable_parameters,
)
from fedward_common.errors import ModelRefused

_BLOCK_ELEMENTS = 1 << 20
"""Gradients are handed on in blocks of about 8 MiB, so that large models stay small in memory."""
_PIECE_ELEMENTS = 1 << 16


class LoopBackEnd:
    """Any model that autograd can differentiate, in the memory of one patient.

    It keeps no state and writes no `.grad`: nothing can survive an interrupted call. No two
    patients ever meet in one tensor, so that not even rounding depends on who else is drawn.

    With `most_records` no pass holds more records than that: the mean gradient of a patient with
    more is added up from passes over them in order (gradient accumulation), and clipped whole.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: LossFunction,
        precision: Precision = "float32",
        most_records: int | None = None,
    ) -> None:
        if most_records is not None and most_records < 1:
            raise ValueError(f"records of a pass: expected at least 1, found {most_records}")
        prefer_onednn(model)
        self._model = model
        self._most_records = most_records
        self._precision: Precision = precision
        self._loss = loss
        self._parameters = trainable_parameters(model)
        width = sum(p.numel() for p in self._parameters.values())
        self._rows_per_block = max(1, _BLOCK_ELEMENTS // max(1, width))

    def patient_gradients(self, chunk: Chunk) -> Iterator[torch.Tensor]:
        """Blocks [patients, parameters] that together hold one row for each patient in order."""
        rows: list[torch.Tensor] = []
        for features, labels in _patients(chunk):
            gradients = self._gradients(features, labels)
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
            if len(rows) == self._rows_per_block:
                yield torch.stack(rows)
                rows = []
        if rows:
            yield torch.stack(rows)

    def add_clipped(self, total: torch.Tensor, chunk: Chunk, factors: Factors) -> int:
        """Adds factor times mean gradient of each patient to `total`; how many patients it were.

        Norms and sums are in float64; no more than one patient's gradient is in memory.
        """
        for features, labels in _patients(chunk):
            gradients = [g.reshape(-1) for g in self._gradients(features, labels)]
            # One number read out, so that a patient who adds nothing is left out, not multiplied.
            scale = float(factors(_norm(gradients)))
            if scale:
                _add_scaled(total, gradients, scale)
            del gradients  # held on to, it would stand in memory beside the next patient's
        return len(chunk.sizes)

    def _gradients(self, features: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        """The gradient of the mean loss of one patient's records, for each parameter."""
        records = len(features)
        size = self._most_records or records
        if records <= size:
            # The gradient of the mean is the mean of the gradients, in one backward pass.
            return self._backward(features, labels, reduce=torch.mean)
        total: list[torch.Tensor] = []
        # How a patient is cut follows from the patient's own records alone.
        for some, of_them in zip(
            torch.split(features, size), torch.split(labels, size), strict=True
        ):
            part = self._backward(some, of_them, reduce=lambda losses: losses.sum() / records)
            # Not in place: autograd may give two parameters one and the same tensor.
            total = [a + b for a, b in zip(total, part, strict=True)] if total else part
        return total

    def _backward(
        self,
        features: torch.Tensor,
        labels: torch.Tensor,
        *,
        reduce: Callable[[torch.Tensor], torch.Tensor],
    ) -> list[torch.Tensor]:
        # A copy is aligned alike wherever the patient stands in the chunk; kernels may round by it.
        features, labels = features.clone(), labels.clone()
        losses = record_losses(
            self._model,
            loss=self._loss,
            features=features,
            labels=labels,
            precision=self._precision,
        )
        gradients = torch.autograd.grad(
            reduce(losses), list(self._parameters.values()), allow_unused=True
        )
        found = []
        for name, gradient in zip(self._parameters, gradients, strict=True):
            if gradient is None:
                raise ModelRefused(f"parameter {name}: expected a gradient, found none")
            found.append(gradient)
        return found


def _patients(chunk: Chunk) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The records and labels of one patient after another."""
    sizes: list[int] = chunk.sizes.tolist()
    return zip(torch.split(chunk.features, sizes), torch.split(chunk.labels, sizes), strict=True)


def _pieces(gradients: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """All numbers in order, in float64 and flat pieces that stay in the cache."""
    waiting: list[torch.Tensor] = []
    for piece in (piece for one in gradients for piece in torch.split(one, _PIECE_ELEMENTS)):
        # Hundreds of short vectors cost less together: every operation has its price.
        waiting.append(piece)
        if sum(len(short) for short in waiting) > _PIECE_ELEMENTS // 2:
            yield _joined(waiting).double()
            waiting = []
    if waiting:
        yield _joined(waiting).double()


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    """The norm over all of them, float64 [1]."""
    squares = [torch.dot(piece, piece) for piece in _pieces(gradients)]
    return torch.stack(squares).sum().sqrt().view(1)


def _add_scaled(total: torch.Tensor, gradients: list[torch.Tensor], scale: float) -> None:
    """Adds scale times all gradients, one after another, to `total`."""
    start = 0
    for piece in _pieces(gradients):
        end = start + len(piece)
        total[start:end].add_(piece, alpha=scale)
        start = end
