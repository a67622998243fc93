"""The back end `bookkeeping`: all patients of a chunk in one backward pass to layer outputs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedward_client.tasks.task import LossFunction
from fedward_client.training.patient_dp.back_end import (
    Chunk,
    Factors,
    prefer_onednn,
    record_losses,
    trainable_parameters,
    weighted_sum,
)
from fedward_client.training.patient_dp.layer_gradients import (
    Gradient,
    LayerRule,
    Product,
    recurrent_cell,
    rule_of,
)
from fedward_common.errors import ModelRefused
from fedward_common.models.dp_layers import observed, whole_series_layers

_BLOCK_ELEMENTS = 1 << 16
"""Clipping widens to float64 and takes several passes: small blocks stay in the cache."""
_ROUNDING_SHARE = 2.0**-21
"""Every norm counts for this much more, so that one patient moves the sum by at most C although the
sum over all patients rounds. Of m patients drawn, removing one changes the rounding of the float64
sum by at most 2 u (rows + 2) m 1000 C (`Product.squared_norms`; u = 2^-53): within this share up to
8,000 patients drawn at 256 rows, and beyond in proportion (80,000: 1.000005 C)."""
WHOLE_ROWS = 32
"""Rows of a batch come in multiples of this. Torch computes the last numbers of a tensor, those
that fill no whole vectors (of 32 numbers with AVX-512), one by one, and rounds them otherwise: 3 of
100 sigmoids, 16 of 100 GELUs (torch 2.13.0 CPU). A patient there would depend on who stands before.
"""
_DROPOUT = (nn.modules.dropout._DropoutNd, nn.RReLU)
_TIME_FIRST = frozenset({"DPMultiheadAttention"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """The shape of every batch: so many places for patients, so many records in each.

    Both come from the plan and the site's settings and never from who was drawn, so that torch
    takes the same kernels on the same shapes whoever is there.
    """

    slots: int
    records: int

    def __post_init__(self) -> None:
        if self.slots < 1 or self.records < 1:
            raise ValueError("geometry: expected at least one place and one record")

    @property
    def used(self) -> int:
        """The rows of all places."""
        return self.slots * self.records

    @property
    def rows(self) -> int:
        """The rows of a batch: those of all places, filled up to whole vectors."""
        return -(-self.used // WHOLE_ROWS) * WHOLE_ROWS


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """A full batch of `Geometry.rows` rows, and each row's part in its patient's mean."""

    features: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Call:
    """One call of a layer: what went in and what came out."""

    layer: nn.Module
    inputs: torch.Tensor
    output: torch.Tensor


class BookkeepingBackEnd:
    """Models of the layers that `layer_gradients` knows; memory for one gradient per place.

    Every batch has the same geometry: unused places hold zeros and a patient with fewer records
    repeats the first one at weight zero. Together with a `slot_check` that passed, a patient's
    gradient has the same bits in every place and whoever stands in the others. It writes no
    `.grad` and takes its hooks off after each batch: nothing survives an interrupted call.

    Raises:
        ModelRefused: the model has a layer that this back end cannot do exactly; names it.

    Source: Bu et al. 2023, lifted from records to patients.
    """

    def __init__(self, model: nn.Module, *, loss: LossFunction, geometry: Geometry) -> None:
        prefer_onednn(model)
        self._model = model
        self._loss = loss
        self.geometry = geometry
        self._parameters = trainable_parameters(model)
        self._rules = _rules(model)
        self._recurrent = whole_series_layers(model)

    def patient_gradients(self, chunk: Chunk) -> Iterator[torch.Tensor]:
        """Blocks [patients, parameters] that together hold one row for each patient in order."""
        for count, batch in self._batches(chunk):
            rows = self.gradients(batch)[:count]
            yield from torch.split(rows, max(1, _BLOCK_ELEMENTS // rows.shape[1]))

    def add_clipped(self, total: torch.Tensor, chunk: Chunk, factors: Factors) -> int:
        """Adds factor times mean gradient of each patient to `total`; how many patients it were.

        The gradient of a Linear's weight is not computed for each patient where its norm is found
        faster from its factors (`Product`). Norms and sums are in float64.
        """
        sizes = [p.numel() for p in self._parameters.values()]
        with _one_thread(), torch.no_grad():
            for count, batch in self._batches(chunk):
                parts = [_wide(part) for part in self._parts(batch).values()]
                scales = factors(_norms(parts))
                scales[count:] = 0.0  # places without a patient
                for into, part in zip(torch.split(total, sizes), parts, strict=True):
                    _add_weighted(into, part, scales)
        return len(chunk.sizes)

    def evidence(self, batch: Batch) -> torch.Tensor:
        """Everything of each place that reaches a sum, [slots, numbers], float64.

        Numbers widened from float32 keep their bits apart: two rows are equal exactly when each
        place's inputs, gradients and norm are.
        """
        with _one_thread(), torch.no_grad():
            found = list(self._parts(batch).values())
            parts = [_wide(part) for part in found]
            kept = [_norms(parts).unsqueeze(1)]
            # `patient_gradients` multiplies out what `add_clipped` does not.
            kept += [p.rows().double().flatten(1) for p in found if isinstance(p, Product)]
            for part in parts:
                both = [part.back, part.inputs] if isinstance(part, Product) else [part]
                kept += [numbers.flatten(1) for numbers in both]
            return torch.cat(kept, dim=1)

    def _batches(self, chunk: Chunk) -> Iterator[tuple[int, Batch]]:
        """The chunk in full batches, each with the number of its places that hold a patient."""
        sizes, slots = chunk.sizes, self.geometry.slots
        starts = torch.cumsum(sizes, 0) - sizes
        for first in range(0, len(sizes), slots):
            some = slice(first, first + slots)
            yield (
                len(sizes[some]),
                self.batch(chunk, sizes=sizes[some], starts=starts[some]),
            )

    def batch(self, chunk: Chunk, *, sizes: torch.Tensor, starts: torch.Tensor) -> Batch:
        """The patients with `sizes` records from `starts` on in the first places of a batch."""
        records = self.geometry.records
        if int(sizes.min()) < 1 or int(sizes.max()) > records:
            raise RuntimeError(f"back end: expected 1 to {records} records for each patient")
        place = torch.arange(records)
        real = place < sizes.unsqueeze(1)
        rows = starts.unsqueeze(1) + torch.where(real, place, 0)
        weights = torch.zeros(self.geometry.rows, dtype=torch.float64)
        parts = 1.0 / sizes.double().unsqueeze(1)
        weights[: real.numel()] = torch.where(real, parts, 0.0).flatten()
        device = chunk.features.device
        index = rows.flatten().to(device)
        return Batch(
            features=self._filled(chunk.features, index),
            labels=self._filled(chunk.labels, index),
            weights=weights.to(device),
        )

    def _filled(self, values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """The rows of `index`, then zeros up to the fixed number of rows; always a fresh buffer."""
        batch = values.new_zeros((self.geometry.rows, *values.shape[1:]))
        torch.index_select(values, 0, index, out=batch[: len(index)])
        return batch

    def gradients(self, batch: Batch) -> torch.Tensor:
        """The mean gradient of every place, [slots, parameters]; an empty place has any."""
        with _one_thread(), torch.no_grad():
            parts = self._parts(batch).values()
            return torch.cat([_rows(part) for part in parts], dim=1)

    def _parts(self, batch: Batch) -> dict[str, Gradient]:
        """Every trainable parameter's mean gradient in every place, in the parameters' order."""
        with torch.enable_grad(), _kept_calls(self._rules, self._recurrent) as calls:
            losses = record_losses(
                self._model, loss=self._loss, features=batch.features, labels=batch.labels
            )
            # Not by `grad_outputs`: to compare shapes torch imports symbolic ones, and sympy.
            whole = (losses * batch.weights.to(losses.dtype)).sum()
        backs = torch.autograd.grad(whole, [call.output for call in calls], allow_unused=True)
        found: dict[nn.Parameter, Gradient] = {}
        for layer, inputs, back in _stacked(calls, backs, geometry=self.geometry):
            parts = self._rules[layer](layer, inputs, back, self.geometry.slots)
            for name, part in parts.items():
                parameter = layer.get_parameter(name)
                known = found.get(parameter)
                found[parameter] = part if known is None else _rows(known) + _rows(part)
        for name, parameter in self._parameters.items():
            if parameter not in found:
                raise ModelRefused(
                    f"parameter {name}: expected a gradient through its layer, found none; "
                    f"choose backend = 'loop' in site.toml"
                )
        return {name: found[p] for name, p in self._parameters.items()}


def _rows(part: Gradient) -> torch.Tensor:
    """The gradients themselves, [slots, numbers]."""
    return (part.rows() if isinstance(part, Product) else part).flatten(1)


def _wide(part: Gradient) -> Gradient:
    return part.wide() if isinstance(part, Product) else part.flatten(1)


def _norms(parts: list[Gradient]) -> torch.Tensor:
    """At least the norm of each place over all parameters, float64 [slots]."""
    total = torch.zeros((), dtype=torch.float64)
    for part in parts:
        # One after another: a sum over a stack has another order at the end of its vectors.
        total = total + (
            part.squared_norms() if isinstance(part, Product) else _squared_lengths(part)
        )
    return total.sqrt() * (1.0 + _ROUNDING_SHARE)


def _squared_lengths(rows: torch.Tensor) -> torch.Tensor:
    """The squared norm of each row, float64 [slots], widened block by block."""
    total = torch.zeros((), dtype=torch.float64)
    for block in _blocks(rows):
        total = total + torch.linalg.vector_norm(block, dim=1, dtype=torch.float64).square()
    return total


def _blocks(rows: torch.Tensor) -> Sequence[torch.Tensor]:
    """Columns of [slots, numbers] that stay in the cache when they are widened."""
    columns = max(1, _BLOCK_ELEMENTS // rows.shape[0])
    return [rows] if rows.shape[1] <= columns else torch.split(rows, columns, dim=1)


def _add_weighted(into: torch.Tensor, part: Gradient, scales: torch.Tensor) -> None:
    if isinstance(part, Product):
        part.add_weighted(into, scales)
        return
    start = 0
    for block in _blocks(part):
        end = start + block.shape[1]
        into[start:end].add_(weighted_sum(block.double(), scales))
        start = end


def _rules(model: nn.Module) -> dict[nn.Module, LayerRule]:
    if any(p.device.type != "cpu" for p in model.parameters()):
        raise ModelRefused(
            "back end 'bookkeeping': expected device = 'cpu', where rounding was looked into, "
            "found another; choose backend = 'loop' in site.toml"
        )
    constants = [name for name, _ in model.named_buffers() if name in model.state_dict()]
    if constants:
        raise _refusal(
            constants[0],
            "buffer",
            "it comes anew with each round's weights, and only its first value was tried",
        )
    rules: dict[nn.Module, LayerRule] = {}
    cells = {cell for layer in whole_series_layers(model) for cell in layer.cells}
    inside = {inner for cell in cells for inner in cell.children()}
    left: list[tuple[str, str, set[nn.Parameter]]] = []
    for name, layer in model.named_modules():
        kind = type(layer).__name__
        if kind in _TIME_FIRST or (isinstance(layer, _DROPOUT) and getattr(layer, "p", 1) > 0):
            raise _refusal(name, kind, "its records cannot be told apart by their place")
        if layer in inside:
            continue
        own = {p for p in layer.parameters(recurse=layer in cells) if p.requires_grad}
        rule = recurrent_cell if layer in cells else rule_of(layer)
        if rule is None:
            left.append((name, kind, own))
        elif own:
            if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
                raise _refusal(name, kind, "it has a hook or another forward of its own")
            rules[layer] = rule
    # An LSTM repeats the parameters of its cells under other names; those have a rule already.
    covered = {p for layer in rules for p in layer.parameters()}
    for name, kind, own in left:
        if own - covered:
            raise _refusal(name, kind, "it has parameters that this back end has no rule for")
    return rules


def _refusal(name: str, kind: str, why: str) -> ModelRefused:
    return ModelRefused(
        f"layer {name or 'model'} ({kind}): expected a layer that back end 'bookkeeping' can do "
        f"exactly, but {why}; choose backend = 'loop' in site.toml"
    )


@contextmanager
def _kept_calls(
    rules: dict[nn.Module, LayerRule], recurrent: Sequence[Any]
) -> Iterator[list[_Call]]:
    """The calls of all layers with a rule inside the block; the hooks end with it."""
    calls: list[_Call] = []

    def keep(layer: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        if len(inputs) != 1 or not isinstance(inputs[0], torch.Tensor):
            raise ModelRefused(f"{type(layer).__name__}: expected one tensor as its input")
        if not isinstance(output, torch.Tensor):
            raise ModelRefused(f"{type(layer).__name__}: expected one tensor as its output")
        calls.append(_Call(layer=layer, inputs=inputs[0].detach(), output=output))

    def keep_cell(cell: nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> None:
        if cell in rules:  # not where all of it is frozen
            calls.append(_Call(layer=cell, inputs=inputs, output=output))

    # With hooks on its cells a recurrent layer would take them step by step.
    hooked = [layer for layer, rule in rules.items() if rule is not recurrent_cell]
    handles = [layer.register_forward_hook(keep) for layer in hooked]
    try:
        with observed(recurrent, keep_cell):
            yield calls
    finally:
        for handle in handles:
            handle.remove()


def _stacked(
    calls: list[_Call], backs: tuple[torch.Tensor | None, ...], *, geometry: Geometry
) -> Iterator[tuple[nn.Module, torch.Tensor, torch.Tensor]]:
    """(layer, input, gradient of the output) of each call, without the rows that only fill up; time
    steps of one layer as one call.
    """
    rows, used = geometry.rows, geometry.used
    by_layer: dict[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for call, back in zip(calls, backs, strict=True):
        if call.inputs.shape[0] != rows or call.output.shape[0] != rows:
            raise ModelRefused(
                f"{type(call.layer).__name__}: expected records in the first dimension of its "
                f"input and output; choose backend = 'loop' in site.toml"
            )
        if back is not None:
            by_layer.setdefault(call.layer, []).append((call.inputs[:used], back[:used]))
    for layer, pairs in by_layer.items():
        same = {inputs.shape for inputs, _ in pairs}
        if len(pairs) > 1 and isinstance(layer, nn.Linear) and len(same) == 1:
            inputs, outs = zip(*pairs, strict=True)
            yield layer, torch.stack(inputs, dim=1), torch.stack(outs, dim=1)
        else:
            for inputs_once, back_once in pairs:
                yield layer, inputs_once, back_once


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread of torch inside the block: how work is dealt to threads decides rounding too."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
