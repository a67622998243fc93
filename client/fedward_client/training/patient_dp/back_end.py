"""What a back end is: something that turns a chunk of patients into their mean gradients."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import nn

from fedward_client.tasks.task import LossFunction
from fedward_common.errors import ModelRefused

BackEndName = Literal["auto", "bookkeeping", "opacus", "loop"]
"""`auto` takes `bookkeeping` or `loop` (see `choice`); both give a patient's gradient the same bits
whoever else is drawn. A site that trusts its coordinator may name `opacus`.
"""


_LARGE = 16_384
"""Weights of a convolution of one place from which on oneDNN is faster; 64 x 128 was slower."""

Precision = Literal["float32", "bfloat16"]
"""In what a model computes forwards and backwards. Weights, gradients of weights and everything
from the norm on are float32 and wider either way: in bfloat16, a clipped norm was 1.0055 C."""

Factors = Callable[[torch.Tensor], torch.Tensor]
"""Norms of patients, float64 [patients] -> what each is multiplied by; 0 where not finite."""


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


@runtime_checkable
class SummingBackEnd(BackEnd, Protocol):
    """A back end that can clip and sum by itself, without a row for each patient in memory.

    Further guarantees (tests/privacy/test_networks.py, test_neighbours.py):
        each patient's part in the sum has at most the norm times the factor of that norm;
        a patient whose norm is not finite adds exactly nothing.
    """

    def add_clipped(self, total: torch.Tensor, chunk: Chunk, factors: Factors) -> int:
        """Adds factor times mean gradient of each patient to `total`; how many patients it were.

        `total` is float64 [parameters], on the device of the model.
        """
        ...


def add_clipped(back_end: BackEnd, total: torch.Tensor, chunk: Chunk, factors: Factors) -> int:
    """The same by any `back_end`, from its rows where it cannot sum by itself.

    Raises:
        RuntimeError: the back end's rows are not one number for each parameter.
    """
    if isinstance(back_end, SummingBackEnd):
        return back_end.add_clipped(total, chunk, factors)
    patients = 0
    for rows in back_end.patient_gradients(chunk):
        if rows.shape[1:] != total.shape:
            raise RuntimeError("back end: expected one number for each parameter")
        wide = rows.to(torch.float64)
        total += weighted_sum(wide, factors(torch.linalg.vector_norm(wide, dim=1)))
        patients += rows.shape[0]
    return patients


def weighted_sum(wide: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The sum of `scales` [rows] times the rows of `wide`; a row of scale 0 adds nothing at all."""
    counted = scales != 0
    if not bool(counted.all()):
        # Chosen away, not multiplied: zero times NaN is NaN.
        wide = torch.where(counted.unsqueeze(1), wide, torch.zeros_like(wide))
    return scales @ wide


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name, in the order of the flat gradient."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def record_losses(
    model: nn.Module,
    *,
    loss: LossFunction,
    features: torch.Tensor,
    labels: torch.Tensor,
    precision: Precision = "float32",
) -> torch.Tensor:
    """One loss for each record, shape [records], of `precision` up to the model's outputs.

    Raises:
        ModelRefused: the loss has another shape. A loss of [records, 1] is not a detail: with a
            per-record factor it broadcasts to [records, records], and one record then moved the
            sum by 715 times the clip norm (measured with Opacus 1.6.0, ghost mode, 512 records).
    """
    if precision == "float32":
        outputs = model(features)
    else:
        with torch.autocast(device_type=features.device.type, dtype=torch.bfloat16):
            outputs = model(features)
        outputs = outputs.float()
    losses = loss(outputs, labels)
    if losses.shape != labels.shape[:1]:
        raise ModelRefused(
            f"loss: expected one number for each record, shape {list(labels.shape[:1])}, found "
            f"{list(losses.shape)}; return the losses unreduced"
        )
    return losses


def prefer_onednn(model: nn.Module) -> None:
    """Has `model` compute large convolutions of one place by oneDNN, on the CPU; same results.

    On one thread and below 16 records torch (2.13.0) takes a kernel of its own for those, up to
    four times slower forward and back (4 records, AMD Zen 5), unless they are dilated: which means
    nothing where the kernel has one place. Small ones are faster as they are. The worker lets
    oneDNN keep that many more kernels.
    """
    for layer in model.modules():
        if (
            isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
            and layer.weight.device.type == "cpu"
            and {*layer.kernel_size, *layer.dilation} == {1}
            and layer.weight.numel() >= _LARGE
        ):
            layer.dilation = (2,) * len(layer.kernel_size)
