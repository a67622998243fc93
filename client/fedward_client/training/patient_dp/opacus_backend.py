"""The back end `opacus`: per-record gradients of Opacus' hooks, averaged over each patient.

Only `GradSampleModule` is used. The engine, the clipping, the sampling and the noise of Opacus are
not: they are per record, keep state across steps and take their noise from torch's generator.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from fedward_client.tasks.task import LossFunction
from fedward_client.training.patient_dp.back_end import (
    Chunk,
    record_losses,
    trainable_parameters,
)
from fedward_common.errors import ModelRefused
from fedward_common.models.dp_layers import as_opacus, load_opacus


class OpacusBackEnd:
    """Models whose layers Opacus 1.6 can sample: all records of a chunk in one backward pass.

    It owns the hooks it puts on `model`; `close` takes them off again.

    Not guaranteed: that a patient's gradient has the same bits whoever else is in the chunk. Torch
    rounds a row of a batch by the number of rows and its place among them. With honest weights that
    is 1e-7 of C; weights made on purpose, with many equal patients on the edge of a ReLU, moved the
    sum by 22 C when one of 16 patients left (torch 2.13.0 CPU). So `auto` never takes this back
    end; name it only where the coordinator is trusted not to send such weights.
    """

    def __init__(self, model: nn.Module, *, loss: LossFunction) -> None:
        load_opacus()
        from opacus.grad_sample import GradSampleModule  # noqa: PLC0415 - costs a second

        self._model = model
        self._loss = loss
        self._parameters = trainable_parameters(model)
        with ExitStack() as undo:
            undo.callback(as_opacus(model))
            try:
                self._hooked: Any = GradSampleModule(model, loss_reduction="sum", strict=True)
            except NotImplementedError as error:
                raise ModelRefused(
                    f"{type(model).__name__}: expected layers that Opacus supports, found one it "
                    f"does not; choose backend = 'loop' in site.toml. Opacus says: {error}"
                ) from error
            self._undo = undo.pop_all()

    def patient_gradients(self, chunk: Chunk) -> Iterator[torch.Tensor]:
        """One block [patients, parameters] of float64 means."""
        self._forget()
        try:
            losses = record_losses(
                self._hooked, loss=self._loss, features=chunk.features, labels=chunk.labels
            )
            losses.sum().backward()  # type: ignore[no-untyped-call]  # torch has no annotation
            yield self._means(chunk.sizes)
        finally:
            self._forget()

    def close(self) -> None:
        """Takes the hooks and everything Opacus stored off the model."""
        with self._undo:
            self._forget()
            self._hooked.to_standard_module()

    def _means(self, sizes: torch.Tensor) -> torch.Tensor:
        patients, records = len(sizes), int(sizes.sum())
        blocks = []
        for name, parameter in self._parameters.items():
            sample = getattr(parameter, "grad_sample", None)
            if not isinstance(sample, torch.Tensor) or sample.shape[0] != records:
                raise ModelRefused(
                    f"parameter {name}: expected one gradient for each record from Opacus, found "
                    f"none; is it used outside its layer? Choose backend = 'loop' in site.toml"
                )
            owner = torch.repeat_interleave(torch.arange(patients), sizes).to(sample.device)
            total = torch.zeros(
                (patients, parameter.numel()), dtype=torch.float64, device=sample.device
            )
            # index_add and not a product with an averaging matrix: there, zero times the NaN of
            # one patient would spoil every other patient's mean.
            total.index_add_(0, owner, sample.reshape(records, -1).to(torch.float64))
            blocks.append(total)
        return torch.cat(blocks, dim=1) / sizes.to(blocks[0].device).unsqueeze(1)

    def _forget(self) -> None:
        """Clears all that Opacus keeps between a forward and a backward pass.

        A call that was interrupted in between (a deadline, a lost connection) leaves activations,
        counters and half-summed gradients on layers and parameters; merged into the next call
        they would count one patient twice.
        """
        for module in self._model.modules():
            for left_over in ("activations", "max_batch_len"):
                if left_over in vars(module):
                    delattr(module, left_over)
        for parameter in self._model.parameters():
            parameter.grad = None
            vars(parameter).pop("_current_grad_sample", None)
            if parameter.requires_grad:
                vars(parameter).update(grad_sample=None, _forward_counter=0)
