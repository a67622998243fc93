"""What a back end is: something that turns a chunk of patients into their mean gradients."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import nn

from fedward_client.tasks.task import LossFunction
from fedward_common.errors import ModelRefused

BackEndName = Literal["auto", "bookkeeping", "opacus", "loop"]
"""`auto` takes `bookkeeping` or `loop` (see `choice`); both give a patient's gradient the same bits
whoever else is drawn. A site that trusts its coordinator may name `opacus`.
"""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Chunk:
    """The records of some whole patients: `features`, `labels` and how many each patient has."""

    features: torch.Tensor
    labels: torch.Tensor
    sizes: torch.Tensor
    """int64 [patients], on the CPU; consecutive records belong to consecutive patients."""


class BackEnd(Protocol):
    """Per-patient mean gradients of one model and one loss.

    Guarantees that every implementation gives (tests/privacy/test_patient_dp.py runs on all):
        the mean is over the patient's own records only and in the order of the chunk's patients;
        a non-finite record spoils its own patient's row and no other;
        an interrupted call leaves nothing that reaches a later one.
    """

    def patient_gradients(self, chunk: Chunk) -> Iterator[torch.Tensor]:
        """Blocks [patients, parameters] that together hold one row for each patient in order.

        Parameters are the trainable ones, flattened in the order of `trainable_parameters`.
        """
        ...


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name, in the order of the flat gradient."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def record_losses(
    model: nn.Module, *, loss: LossFunction, features: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """One loss for each record, shape [records].

    Raises:
        ModelRefused: the loss has another shape. A loss of [records, 1] is not a detail: with a
            per-record factor it broadcasts to [records, records], and one record then moved the
            sum by 715 times the clip norm (measured with Opacus 1.6.0, ghost mode, 512 records).
    """
    losses = loss(model(features), labels)
    if losses.shape != labels.shape:
        raise ModelRefused(
            f"loss: expected one number for each record, shape {list(labels.shape)}, found "
            f"{list(losses.shape)}; return the losses unreduced"
        )
    return losses
