"""Per-patient parameter gradients of one layer, from what went in and what came back.

Each rule takes the layer's input and the gradient of its output for `slots` patients of equally
many records, and gives one gradient for each trainable parameter: [slots, *parameter.shape], or a
`Product` that holds the same without computing it. Only layers of exactly these types are known: a
subclass may compute something else.

Source: Bu et al. 2023 (book-keeping), here with the patient in the place of the record.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from fedward_common.errors import ModelRefused
from fedward_common.models.standardised import STANDARDISED, through_standardisation

_MOST_ROUNDED = 9216
"""Squared positions, inputs and outputs together: so many roundings of a norm from pairs."""
_FEW_POSITIONS = 16
"""So few pairs cost less than one product a patient, however small the layer is."""
_ROUNDING = 4e-12
_LEAST_SHARE = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Product:
    """Gradients [slots, out, in] of a weight as their two factors, never multiplied out.

    Patient p's gradient is the sum over its positions of back x input. A position of a Linear is a
    record or a time; of a convolution a place of its output, and its input what the kernel sees.
    """

    back: torch.Tensor
    """[slots, *positions, out], float32 or float64."""
    inputs: torch.Tensor
    """[slots, *positions, in]."""

    def rows(self) -> torch.Tensor:
        """The gradients themselves, [slots, out, in]."""
        # One product per patient, on copies: equal shapes at equal alignments. A product over the
        # batch rounds by the place (MLP 5-65-16: one patient moved a sum of whole numbers by 3 C).
        pairs = zip(self.back, self.inputs, strict=True)
        return torch.stack([_copied(back).t() @ _copied(inputs) for back, inputs in pairs])

    def wide(self) -> "Product":
        """The same in float64, in which a product of two float32 numbers is exact; [slots,
        positions, ...].
        """
        back, inputs = (part.double().flatten(1, -2) for part in (self.back, self.inputs))
        return Product(back=back, inputs=inputs)

    def squared_norms(self) -> torch.Tensor:
        """At least each patient's squared norm, [slots]; call it on `wide()`.

        The squared norm is the sum over pairs of positions of <input, input> <back, back>. Where
        positions cancel, that sum is small beside its terms and rounding could hide what is left
        (in float32 it did: 1000 C passed, privacy paper 1.2, failure 4). With A the sum over
        positions of |back| |input|, float64 rounds it by at most u (positions^2 + in + out) A^2
        with u = 2^-53, which is 1.1e-12 A^2 within the sizes that `short` allows, so that adding
        4e-12 A^2 is enough. It is also never taken below 1e-6 A^2: then factor * A <= 1000 C, and
        so the rounding of the sum over patients has a bound.
        """
        inputs = torch.bmm(self.inputs, self.inputs.transpose(1, 2))
        back = torch.bmm(self.back, self.back.transpose(1, 2))
        pairs = inputs * back
        found = pairs.sum(dim=(1, 2))
        most = pairs.diagonal(dim1=1, dim2=2).sqrt().sum(dim=1).square()
        return torch.maximum(found + _ROUNDING * most, _LEAST_SHARE * most)

    def add_weighted(self, into: torch.Tensor, scales: torch.Tensor) -> None:
        """Adds the sum over patients of scale times gradient to `into` [out * in]; on `wide()`.

        A patient of scale 0 adds nothing at all, whatever its numbers are.
        """
        counted, scales = (scales != 0).view(-1, 1, 1), scales.view(-1, 1, 1)
        back, inputs = self.back, self.inputs
        if not bool(counted.all()):
            back = torch.where(counted, back, torch.zeros_like(back))
            inputs = torch.where(counted, inputs, torch.zeros_like(inputs))
        into.view(back.shape[2], inputs.shape[2]).addmm_(
            (back * scales).flatten(0, 1).t(), inputs.flatten(0, 1)
        )


def _copied(values: torch.Tensor) -> torch.Tensor:
    """A copy of [*positions, width] as [positions, width]."""
    return values.clone(memory_format=torch.contiguous_format).flatten(0, -2)


Gradient = torch.Tensor | Product
Gradients = dict[str, Gradient]
LayerRule = Callable[[nn.Module, torch.Tensor, torch.Tensor, int], Gradients]
"""(layer, input, gradient of the output, slots) -> parameter name -> gradients."""


def short(positions: int, *, inputs: int, outputs: int) -> bool:
    """Whether the norm of a weight's gradient is found faster from pairs of positions, and safely.

    Depends on sizes only, never on who is there.
    """
    pairs = positions * positions
    faster = 4 * pairs <= inputs * outputs or positions <= _FEW_POSITIONS
    return faster and pairs + inputs + outputs <= _MOST_ROUNDED


def _linear(layer: nn.Module, inputs: torch.Tensor, back: torch.Tensor, slots: int) -> Gradients:
    x = inputs.reshape(slots, -1, inputs.shape[-1])
    g = back.reshape(slots, -1, back.shape[-1])
    product = Product(back=g, inputs=x)
    brief = short(x.shape[1], inputs=x.shape[2], outputs=g.shape[2])
    return _kept(
        layer,
        weight=lambda: product if brief else product.rows(),
        bias=lambda: g.sum(dim=1),
    )


def recurrent_cell(
    layer: nn.Module, inputs: torch.Tensor, back: torch.Tensor, slots: int
) -> Gradients:
    """Both linear layers `ih` and `hh` of a cell, over all its steps.

    For what `inputs` and `back` hold see `fedward_common.models.whole_series.Observer`.
    """
    x = inputs.view(slots, -1, *inputs.shape[1:])
    g = back.view(slots, -1, *back.shape[1:])
    parameters = dict(layer.named_parameters(remove_duplicate=False))  # or tied ones are missed
    if not parameters.keys() <= {"ih.weight", "hh.weight", "ih.bias", "hh.bias"}:
        raise ModelRefused("recurrent cell: expected only weights and biases of two linear layers")
    outputs, width = parameters["ih.weight"].shape
    hidden = parameters["hh.weight"].shape[1]
    ins = {"ih": x[..., :width], "hh": x[..., width:]}
    positions = g.shape[1] * g.shape[2]
    if all(short(positions, inputs=n, outputs=outputs) for n in (width, hidden)):
        outs = _by_layer(g, outputs=outputs, hidden=hidden)
        found: Gradients = {
            f"{name}.weight": Product(back=outs[name], inputs=ins[name]) for name in ins
        }
        found |= {f"{name}.bias": outs[name].sum(dim=(1, 2)) for name in ins}
    else:
        rows: dict[str, list[torch.Tensor]] = {}
        for one, *own in zip(g, *ins.values(), strict=True):
            # One patient after another, as in `Product.rows`, with one copy for both layers.
            outs = _by_layer(_copied(one), outputs=outputs, hidden=hidden)
            for name, part in zip(ins, own, strict=True):
                rows.setdefault(f"{name}.weight", []).append(outs[name].t() @ _copied(part))
                rows.setdefault(f"{name}.bias", []).append(outs[name].sum(dim=0))
        found = {name: torch.stack(of_all) for name, of_all in rows.items()}
    return {name: found[name] for name, p in parameters.items() if p.requires_grad}


def _by_layer(gates: torch.Tensor, *, outputs: int, hidden: int) -> dict[str, torch.Tensor]:
    """The gradient of each linear layer's output, from that of the gates [..., 4 * hidden]."""
    if outputs == gates.shape[-1]:
        return {"ih": gates, "hh": gates}
    cell, both, _ = torch.split(gates, [hidden, 2 * hidden, hidden], dim=-1)
    return {"ih": torch.cat([both, cell], dim=-1), "hh": gates[..., hidden:].contiguous()}


_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def _convolution(
    layer: nn.Module, inputs: torch.Tensor, back: torch.Tensor, slots: int
) -> Gradients:
    """As factors where the norm is found faster from those, otherwise by `_dense_convolution`."""
    plain = _plain(layer)
    channels, seen = plain.out_channels, plain.weight[0].numel()
    positions = back.shape[0] // slots * math.prod(back.shape[2:])
    dilated = {
        step for step, size in zip(plain.dilation, plain.kernel_size, strict=True) if size > 1
    }
    apart = plain.groups > 1 or bool(dilated - {1})
    if apart or not short(positions, inputs=seen, outputs=channels):
        return _dense_convolution(layer, inputs, back, slots)
    g = back.flatten(2).transpose(1, 2).reshape(slots, positions, channels)
    return _kept(
        layer,
        weight=lambda: Product(back=g, inputs=_patches(plain, inputs, slots)),
        bias=lambda: g.sum(dim=1),
    )


def _plain(layer: nn.Module) -> _Convolution:
    if not isinstance(layer, _Convolution) or isinstance(layer.padding, str):
        raise ModelRefused("convolution: expected padding as numbers for back end bookkeeping")
    return layer


def _patches(layer: _Convolution, inputs: torch.Tensor, slots: int) -> torch.Tensor:
    """What the kernel sees at each place, [slots, records * places, channels * kernel]."""
    sides = len(layer.kernel_size)
    around = [int(side) for side in layer.padding[::-1] for _ in range(2)]
    seen = functional.pad(inputs, around)
    for side, (size, stride) in enumerate(zip(layer.kernel_size, layer.stride, strict=True)):
        seen = seen.unfold(2 + side, size, stride)
    places, kernel = range(2, 2 + sides), range(2 + sides, 2 + 2 * sides)
    return seen.permute(0, *places, 1, *kernel).reshape(slots, -1, layer.weight[0].numel())


def _dense_convolution(
    layer: nn.Module, inputs: torch.Tensor, back: torch.Tensor, slots: int
) -> Gradients:
    """The gradients themselves, one patient after another."""
    layer = _plain(layer)
    x = inputs.reshape(slots, -1, *inputs.shape[1:])
    g = back.reshape(slots, -1, *back.shape[1:])
    channels = layer.out_channels
    transposed, output_padding = False, [0] * len(layer.stride)

    def weight() -> torch.Tensor:
        # A copy stands at the same alignment for every patient, whatever the size of a record is.
        parts = [
            torch.ops.aten.convolution_backward(
                g[slot].clone(),
                x[slot].clone(),
                layer.weight.detach(),
                [channels],
                layer.stride,
                layer.padding,
                layer.dilation,
                transposed,
                output_padding,
                layer.groups,
                [False, True, False],
            )[1]
            for slot in range(slots)
        ]
        return torch.stack(parts)

    def bias() -> torch.Tensor:
        return g.transpose(1, 2).reshape(slots, channels, -1).sum(dim=2)

    return _kept(layer, weight=weight, bias=bias)


def _standardised(
    layer: nn.Module, inputs: torch.Tensor, back: torch.Tensor, slots: int
) -> Gradients:
    """The rule of a convolution, then through the standardisation of its weight, by patient."""
    found = _dense_convolution(layer, inputs, back, slots)
    rows = found.get("weight")
    if isinstance(rows, torch.Tensor):
        weight = layer.get_parameter("weight").detach()
        through = [through_standardisation(weight, row.clone()) for row in rows]
        found["weight"] = torch.stack(through)
    return found


def _embedding(layer: nn.Module, inputs: torch.Tensor, back: torch.Tensor, slots: int) -> Gradients:
    if not isinstance(layer, nn.Embedding):
        raise TypeError("rule of Embedding on another layer")
    if layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse:
        raise ModelRefused(
            "Embedding: expected max_norm, scale_grad_by_freq and sparse off for bookkeeping"
        )
    words, width = layer.num_embeddings, layer.embedding_dim
    tokens = inputs.reshape(slots, -1)
    first = torch.arange(slots, device=tokens.device).unsqueeze(1) * words
    table = torch.zeros((slots * words, width), dtype=back.dtype, device=back.device)
    table.index_add_(0, (tokens + first).flatten(), back.reshape(-1, width))
    table = table.view(slots, words, width)
    if layer.padding_idx is not None:
        table[:, layer.padding_idx] = 0.0
    return _kept(layer, weight=lambda: table, bias=lambda: table)


def _layer_norm(
    layer: nn.Module, inputs: torch.Tensor, back: torch.Tensor, slots: int
) -> Gradients:
    if not isinstance(layer, nn.LayerNorm):
        raise TypeError("rule of LayerNorm on another layer")
    unit = functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    shape = (slots, -1, *layer.normalized_shape)
    return _kept(
        layer,
        weight=lambda: (unit * back).reshape(shape).sum(dim=1),
        bias=lambda: back.reshape(shape).sum(dim=1),
    )


def _channel_norm(
    layer: nn.Module, inputs: torch.Tensor, back: torch.Tensor, slots: int
) -> Gradients:
    if isinstance(layer, nn.GroupNorm):
        unit = functional.group_norm(inputs, layer.num_groups, eps=layer.eps)
    elif isinstance(layer, nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d):
        if layer.track_running_stats:
            raise ModelRefused("InstanceNorm: expected track_running_stats = False")
        unit = functional.instance_norm(inputs, eps=layer.eps)
    else:
        raise TypeError("rule of a channel norm on another layer")

    def per_channel(values: torch.Tensor) -> torch.Tensor:
        by_patient = values.reshape(slots, -1, *values.shape[1:]).transpose(1, 2)
        return by_patient.reshape(slots, values.shape[1], -1).sum(dim=2)

    return _kept(layer, weight=lambda: per_channel(unit * back), bias=lambda: per_channel(back))


def _kept(
    layer: nn.Module, *, weight: Callable[[], Gradient], bias: Callable[[], Gradient]
) -> Gradients:
    """The gradients of those of the two parameters that the layer has and that are trained."""
    made = {"weight": weight, "bias": bias}
    own = dict(layer.named_parameters(recurse=False))
    if not own.keys() <= made.keys():
        raise ModelRefused(f"{type(layer).__name__}: expected no parameter but weight and bias")
    return {name: made[name]() for name, p in own.items() if p.requires_grad}


RULES: Mapping[type[nn.Module], LayerRule] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    **dict.fromkeys(STANDARDISED.values(), _standardised),
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _channel_norm,
    nn.InstanceNorm1d: _channel_norm,
    nn.InstanceNorm2d: _channel_norm,
    nn.InstanceNorm3d: _channel_norm,
}


def rule_of(layer: nn.Module) -> LayerRule | None:
    """The rule for `layer`, or None when there is none for exactly its type.

    The Linear inside DPLSTM and DPGRU is Opacus' own class of the same arithmetic.
    """
    kind = type(layer)
    if kind.__name__ == "RNNLinear" and kind.__module__ == "opacus.layers.dp_rnn":
        return _linear
    return RULES.get(kind)
