"""Which back end runs: by name, or by `auto` from a short measured table of 2026-11-20."""

import torch
from torch import nn

from fedward_client.tasks.task import ExampleRecords, LossFunction
from fedward_client.training.patient_dp.back_end import (
    BackEnd,
    BackEndName,
    Precision,
    trainable_parameters,
)
from fedward_client.training.patient_dp.bookkeeping_backend import BookkeepingBackEnd, Geometry
from fedward_client.training.patient_dp.loop_backend import LoopBackEnd
from fedward_client.training.patient_dp.model_check import checked_back_end
from fedward_client.training.patient_dp.opacus_backend import OpacusBackEnd
from fedward_client.training.patient_dp.replicated_backend import ReplicatedBackEnd
from fedward_client.training.patient_dp.slot_check import check_slots
from fedward_common.errors import ConfigError, ModelRefused

_LARGEST_FOR_BOOKKEEPING = {"dense": 20_000, "recurrent": 30_000, "convolution": 0}
"""The most trainable numbers for which `auto` tries bookkeeping first; none beyond the measured.

Measured 2026-11-20 (torch 2.13.0 CPU, one thread of a busy machine, 4 records a patient), CPU-ms
of a step, loop / bookkeeping: MLP of 13.5 thousand at 128 patients 73 / 16, LSTM of 25 thousand at
16 patients 228 / 33, CNN of 27 thousand at 32 patients 95 / 83. The last is too close to choose by.
"""

_SMALLEST_FOR_BOOKKEEPING = 4_000
"""Below it a step of the loop takes some ten milliseconds: less than the slot check, which every
round pays and the loop does not need."""

_MOST_PLACES = 64
"""The slot check runs every round and its cost grows with the places: 0.06 CPU-s at 16, 0.26 at 256
(an MLP of 545)."""


def choose_back_end(
    name: BackEndName,
    model: nn.Module,
    *,
    loss: LossFunction,
    examples: ExampleRecords,
    most_records: int,
    max_records_per_chunk: int,
    precision: Precision = "float32",
    replicas: int = 1,
) -> BackEnd:
    """The back end `name` on `model`, checked on made-up patients; `auto` falls back to `loop`.

    `most_records` is what one patient brings at most, by the plan. What is chosen depends on the
    model, the plan and the machine, never on the site's patients. `auto` never takes `opacus`.
    With bfloat16 or several replicas it takes `loop`.

    Raises:
        ModelRefused: the named back end, or `loop` under `auto`, cannot keep patients apart.
        ConfigError: another back end than `loop` with bfloat16 or replicas, or too few devices.
    """

    def bookkeeping() -> BackEnd:
        places = max(1, min(_MOST_PLACES, max_records_per_chunk // most_records))
        made = BookkeepingBackEnd(
            model, loss=loss, geometry=Geometry(slots=places, records=most_records)
        )
        check_slots(made, model, loss=loss, examples=examples)
        return made

    def loop() -> BackEnd:
        if replicas == 1:
            return LoopBackEnd(model, loss=loss, precision=precision)
        return ReplicatedBackEnd(
            model,
            make=lambda replica: LoopBackEnd(replica, loss=loss, precision=precision),
            devices=_devices(model, replicas),
            examples=examples,
        )

    makers = {
        "bookkeeping": bookkeeping,
        "loop": loop,
        "opacus": lambda: OpacusBackEnd(model, loss=loss),
    }
    only_loop = precision != "float32" or replicas > 1
    if only_loop and name not in ("auto", "loop"):
        raise ConfigError(
            f"backend: expected 'loop' or 'auto' with bfloat16 or replicas, found {name!r}"
        )
    if name == "auto":
        if not only_loop and _bookkeeping_is_faster(
            model, places=max_records_per_chunk // most_records
        ):
            try:
                return checked_back_end(
                    bookkeeping, model, loss=loss, examples=examples, most_records=most_records
                )
            except ModelRefused:
                pass  # the loop below takes any model that autograd can differentiate
        name = "loop"
    return checked_back_end(
        makers[name],
        model,
        loss=loss,
        examples=examples,
        most_records=most_records,
        precision=precision,
    )


def _devices(model: nn.Module, replicas: int) -> list[torch.device]:
    """The devices of the replicas: GPUs in order, or the CPU again and again."""
    first = next(model.parameters()).device
    if first.type != "cuda":
        return [first] * replicas
    found = torch.cuda.device_count()
    if found < replicas:
        raise ConfigError(
            f"replicas: expected at most the {found} GPUs that are here, found {replicas}"
        )
    return [first, *(torch.device("cuda", n) for n in range(found) if n != (first.index or 0))][
        :replicas
    ]


def _bookkeeping_is_faster(model: nn.Module, *, places: int) -> bool:
    size = sum(p.numel() for p in trainable_parameters(model).values())
    kinds = {type(layer).__name__ for layer in model.modules()}
    if any(kind.startswith("Conv") for kind in kinds):
        group = "convolution"
    elif "RNNLinear" in kinds:
        group = "recurrent"
    else:
        group = "dense"
    return places >= 8 and _SMALLEST_FOR_BOOKKEEPING <= size <= _LARGEST_FOR_BOOKKEEPING[group]
