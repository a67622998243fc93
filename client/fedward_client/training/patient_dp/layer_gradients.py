"""Per-patient parameter gradients of one layer, from what went in and what came back.

Each rule takes the layer's input and the gradient of its output for `slots` patients of equally
many records, and gives one gradient for each trainable parameter, [slots, *parameter.shape].
Only layers of exactly these types are known: a subclass may compute something else.

Source: Bu et al. 2023 (book-keeping), here with the patient in the place of the record.
"""

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional

from fedward_common.errors import ModelRefused

Gradients = dict[str, torch.Tensor]
LayerRule = Callable[[nn.Module, torch.Tensor, torch.Tensor, int], Gradients]
"""(layer, input, gradient of the output, slots) -> parameter name -> [slots, *shape]."""


def _linear(layer: nn.Module, inputs: torch.Tensor, back: torch.Tensor, slots: int) -> Gradients:
    x = inputs.reshape(slots, -1, inputs.shape[-1])
    g = back.reshape(slots, -1, back.shape[-1])
    # One product per patient: the same kernel on the same shape, whoever the others are.
    return _kept(layer, weight=lambda: torch.bmm(g.transpose(1, 2), x), bias=lambda: g.sum(dim=1))


def _convolution(
    layer: nn.Module, inputs: torch.Tensor, back: torch.Tensor, slots: int
) -> Gradients:
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) or isinstance(layer.padding, str):
        raise ModelRefused("convolution: expected padding as numbers for back end bookkeeping")
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
    layer: nn.Module, *, weight: Callable[[], torch.Tensor], bias: Callable[[], torch.Tensor]
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
