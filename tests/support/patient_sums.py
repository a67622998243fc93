"""Clipped sums of patients' gradients by any back end without noise, and by plain autograd.

The expected sums are in float64, one record at a time (rules 24).
"""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedward_client.training.patient_dp.back_end import BackEnd, trainable_parameters
from fedward_client.training.patient_dp.bookkeeping_backend import BookkeepingBackEnd, Geometry
from fedward_client.training.patient_dp.engine import PatientDpEngine
from fedward_client.training.patient_dp.loop_backend import LoopBackEnd
from fedward_client.training.patient_dp.opacus_backend import OpacusBackEnd
from fedward_client.training.patient_dp.plan import PatientDpPlan, PatientTensors
from tests.support.naive_dp import FirstInLine, NoNoise

CLIP = 0.5
Patient = tuple[torch.Tensor, torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def losses(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(outputs, labels, reduction="none")


def make(kind: str, model: nn.Module, loss: Loss = losses) -> BackEnd:
    """A back end by its name."""
    if kind == "bookkeeping":
        return BookkeepingBackEnd(model, loss=loss, geometry=Geometry(slots=4, records=4))
    return (OpacusBackEnd if kind == "opacus" else LoopBackEnd)(model, loss=loss)


def clipped_sum(
    model: nn.Module,
    kind: str,
    patients: list[Patient],
    *,
    chunk: int = 16,
    loss: Loss = losses,
) -> torch.Tensor:
    """The sum over patients of their clipped gradients, without noise."""
    plan = PatientDpPlan(
        noise_multiplier=1.0,
        clip_norm=CLIP,
        sampling_probability=1.0,
        max_records_per_patient=4,
        public_patients=1,
    )
    engine = PatientDpEngine(
        make(kind, model, loss),
        plan,
        parameters=sum(p.numel() for p in trainable_parameters(model).values()),
        sampling=FirstInLine(),
        noise=NoNoise(),
        max_records_per_chunk=chunk,
    )
    starts = np.cumsum([0, *(len(labels) for _, labels in patients)])
    return engine.step(
        PatientTensors(
            features=torch.cat([x for x, _ in patients]),
            labels=torch.cat([y for _, y in patients]),
            starts=starts.astype(np.int64),
        )
    )


def naive_sum(model: nn.Module, patients: list[Patient], *, loss: Loss = losses) -> torch.Tensor:
    """The same by plain autograd in float64."""
    wide = copy.deepcopy(model).double()
    parameters = [p for p in wide.parameters() if p.requires_grad]
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for features, labels in patients:
        mean = torch.zeros_like(total)
        for record, label in zip(features, labels, strict=True):
            found = loss(wide(record[None].double()), label[None].double())[0]
            parts = torch.autograd.grad(found, parameters)
            mean += torch.cat([part.flatten() for part in parts]) / len(labels)
        total += mean * min(1.0, CLIP / float(mean.norm()))
    return total
