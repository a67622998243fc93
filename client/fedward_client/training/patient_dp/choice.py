"""Which back end runs: by name, or by `auto` from a short measured table of 2026-11-28."""

import math
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import nn

from fedward_client.tasks.task import ExampleRecords, LossFunction
from fedward_client.training.patient_dp.back_end import (
    BackEnd,
    BackEndName,
    Precision,
    trainable_parameters,
)
from fedward_client.training.patient_dp.bookkeeping_backend import (
    WHOLE_ROWS,
    BookkeepingBackEnd,
    Geometry,
)
from fedward_client.training.patient_dp.loop_backend import LoopBackEnd
from fedward_client.training.patient_dp.model_check import checked_back_end
from fedward_client.training.patient_dp.opacus_backend import OpacusBackEnd
from fedward_client.training.patient_dp.passed_checks import check_slots_once
from fedward_client.training.patient_dp.replicated_backend import ReplicatedBackEnd
from fedward_client.training.patient_dp.slot_check import check_slots
from fedward_common.errors import ConfigError, ModelRefused
from fedward_common.ids import Digest


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    """For which models of a group `bookkeeping` was measured faster than `loop`, and by how much.

    The slot check runs once a study and start of the worker, and its cost grows with the places of
    a batch; it has to be earned back by the patients of the study.
    """

    smallest: int
    largest: int
    """Trainable numbers; `auto` takes `loop` outside what was measured."""
    places: int
    """Of a batch, at least: patients of few records have as many as fill its rows."""
    least_patients: int
    """Patients drawn in a study, on average and over all its steps, that earn the check back."""


_SMALL: Final = 4_000
"""Dense models below have a row of their own: their slot check costs next to nothing."""

_TABLE: Final = {
    "small": _Measured(smallest=1, largest=_SMALL, places=64, least_patients=500),
    "dense": _Measured(smallest=_SMALL, largest=800_000, places=64, least_patients=2_000),
    "recurrent": _Measured(smallest=1_500, largest=100_000, places=16, least_patients=1_000),
    "convolution": _Measured(smallest=4_000, largest=30_000, places=8, least_patients=1_500),
}
"""Measured 2026-11-26 (torch 2.13.0 CPU, one thread of a busy AMD Zen 5 machine, 4 records a
patient), CPU ms of a step, loop / bookkeeping: MLP of 13.5 thousand at 128 patients 90 / 4.0, of
32, 132 and 788 thousand at 64 patients 74 / 3.8, 70 / 11 and 300 / 35; transformer of 66 thousand
at 32 patients 116 / 35; CNN of 27 thousand at 32 patients 113 / 74. The other way round at 4
patients: ResNet18 654 / 893, DenseNet121 894 / 1476, 3-D U-Net 170 / 315. The slot check took 0.7
CPU-s (MLP, 64 places), 5 (transformer, 64), 0.8 (CNN, 8).

Measured 2026-11-27 at 64 patients of 1 and 4 records: linear models of 11 to 230 numbers 14 to 20 /
0.5 to 1.5, MLPs of 225 to 2,181 numbers 25 to 52 / 0.9 to 3.0; slot check 0.05 to 0.23 CPU-s, a
refusal (some linear models of five classes) 0.02.

Measured 2026-11-27 since convolutions are kept as factors, 32 patients: CNN of 27 thousand of 4
records 77 / 54 in 8 places, of 2 records 65 / 31 in 16 (45 in 8), of 1 record 62 / 22 in 32 (52 in
8). The slot check of the CNN takes 0.8 CPU-s, and 1.8 where it is the first thing that a process
does. ResNet18 at 4 patients 446 / 435, but its slot check 36 CPU-s and more than a gigabyte;
DenseNet121 761 / 1044.

Measured 2026-11-28 since recurrent layers take all steps at once (48 of them; 16 patients of 4
records, and 32 of 1): LSTM of 25 thousand 32 / 8.5 and 53 / 6.2, GRU of 19 thousand 28 / 7.8 and 47
/ 5.9, bidirectional LSTM of 50 thousand 62 / 17 and 99 / 12, LSTM of 99 thousand 55 / 25 and 66 /
25, GRU of 75 thousand 43 / 20 and 56 / 18; of 24 and 100 steps an LSTM of 1,681 numbers 17 / 2.1
and 45 / 5.0. The slot check took 0.1 to 2.1 CPU-s, which 90 to 650 patients of 4 records and up to
1,630 of one earn back; at 396 thousand numbers 5.1 and 7.9 (4,850 patients).
"""

_LEAST_PLACES = 8
_MOST_PLACES = 64
"""Of a back end that is named and not chosen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What a plan and a site ask of a back end; nothing in it depends on the site's patients.

    `most_records` is what one patient brings at most and `patients_drawn` how many are drawn in all
    rounds on average, both by the plan. With the digest of `study`, a slot check that has passed
    for it since the worker started is not run again.
    """

    most_records: int
    max_records_per_chunk: int
    patients_drawn: float = math.inf
    study: Digest | None = None


def choose_back_end(
    name: BackEndName,
    model: nn.Module,
    *,
    loss: LossFunction,
    examples: ExampleRecords,
    load: Load,
    precision: Precision = "float32",
    replicas: int = 1,
) -> BackEnd:
    """The back end `name` on `model`, checked on made-up patients; `auto` falls back to `loop`.

    What is chosen depends on the model, the load and the machine, never on the site's patients.
    `auto` never takes `opacus`; with bfloat16 or replicas it takes `loop`.

    Raises:
        ModelRefused: the named back end, or `loop` under `auto`, cannot keep patients apart.
        ConfigError: another back end than `loop` with bfloat16 or replicas, or too few devices.
    """
    group = _group(model)
    fitting = load.max_records_per_chunk // load.most_records

    def bookkeeping() -> BackEnd:
        filling = WHOLE_ROWS // load.most_records
        most = max(_TABLE[group].places, filling) if name == "auto" else _MOST_PLACES
        return _bookkeeping(
            model, loss=loss, examples=examples, load=load, places=max(1, min(most, fitting))
        )

    def looping(one: nn.Module) -> LoopBackEnd:
        return LoopBackEnd(
            one, loss=loss, precision=precision, most_records=load.max_records_per_chunk
        )

    def loop() -> BackEnd:
        if replicas == 1:
            return looping(model)
        devices = _devices(model, replicas)
        return ReplicatedBackEnd(model, make=looping, devices=devices, examples=examples)

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
    if name == "auto" and (
        not only_loop
        and fitting >= _LEAST_PLACES
        and _is_faster(_TABLE[group], model, patients_drawn=load.patients_drawn)
    ):
        try:
            return checked_back_end(
                bookkeeping, model, loss=loss, examples=examples, most_records=load.most_records
            )
        except ModelRefused:
            pass  # the loop below takes any model that autograd can differentiate
    return checked_back_end(
        makers["loop" if name == "auto" else name],
        model,
        loss=loss,
        examples=examples,
        most_records=load.most_records,
        precision=precision,
        pass_records=load.max_records_per_chunk,
    )


def _bookkeeping(
    model: nn.Module, *, loss: LossFunction, examples: ExampleRecords, load: Load, places: int
) -> BookkeepingBackEnd:
    """The back end with that many patients in a batch, proven to round each one alike."""
    made = BookkeepingBackEnd(
        model, loss=loss, geometry=Geometry(slots=places, records=load.most_records)
    )
    if load.study is None:
        check_slots(made, model, loss=loss, examples=examples)
    else:
        check_slots_once(made, model, loss=loss, examples=examples, study=load.study)
    return made


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


def _group(model: nn.Module) -> Literal["small", "dense", "recurrent", "convolution"]:
    kinds = {type(layer).__name__ for layer in model.modules()}
    if any("Conv" in kind for kind in kinds):
        return "convolution"
    if "RNNLinear" in kinds:
        return "recurrent"
    return "small" if _size(model) < _SMALL else "dense"


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in trainable_parameters(model).values())


def _is_faster(row: _Measured, model: nn.Module, *, patients_drawn: float) -> bool:
    fits = row.smallest <= _size(model) <= row.largest
    return fits and patients_drawn >= row.least_patients
