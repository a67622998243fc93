"""Weight standardisation: convolutions whose filters are centred and of length one.

A lever of `[model]`, off unless a study asks for it. It goes with GroupNorm, acts on weights alone
and so mixes no records.
"""

from typing import Final

import torch
from torch import nn

from fedward_common.errors import ConfigError

EPSILON: Final = 1e-4
"""Added to a filter's squared length, so that a constant filter stays finite."""


def standardised(weight: torch.Tensor) -> torch.Tensor:
    """`weight` [filters, ...] with each filter minus its mean, divided by its length.

    Source: Qiao et al. 2019; the scale is that of Brock et al. 2021 (variance one at the output).
    """
    centred, length = _centred(weight)
    return (centred / length).view_as(weight)


def through_standardisation(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient with respect to `weight`, from one with respect to `standardised(weight)`."""
    centred, length = _centred(weight)
    unit, back = centred / length, gradient.flatten(1)
    back = (back - unit * (unit * back).sum(dim=1, keepdim=True)) / length
    return (back - back.mean(dim=1, keepdim=True)).view_as(weight)


def _centred(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    flat = weight.flatten(1)
    centred = flat - flat.mean(dim=1, keepdim=True)
    return centred, (centred.square().sum(dim=1, keepdim=True) + EPSILON).sqrt()


class StandardisedConv1d(nn.Conv1d):
    """A Conv1d with standardised filters."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """What `nn.Conv1d` gives with the standardised weight."""
        output: torch.Tensor = self._conv_forward(input, standardised(self.weight), self.bias)
        return output


class StandardisedConv2d(nn.Conv2d):
    """A Conv2d with standardised filters."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """What `nn.Conv2d` gives with the standardised weight."""
        output: torch.Tensor = self._conv_forward(input, standardised(self.weight), self.bias)
        return output


class StandardisedConv3d(nn.Conv3d):
    """A Conv3d with standardised filters."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """What `nn.Conv3d` gives with the standardised weight."""
        output: torch.Tensor = self._conv_forward(input, standardised(self.weight), self.bias)
        return output


STANDARDISED: Final[dict[type[nn.Module], type[nn.Conv1d | nn.Conv2d | nn.Conv3d]]] = {
    nn.Conv1d: StandardisedConv1d,
    nn.Conv2d: StandardisedConv2d,
    nn.Conv3d: StandardisedConv3d,
}


def standardise(model: nn.Module) -> None:
    """Puts the standardised kind in the place of every convolution of `model`; weights stay.

    Filters of a single number are left as they are: centred, they would be zero.

    Raises:
        ConfigError: the model has no convolution.
    """
    found = False
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            kind = STANDARDISED.get(type(layer))
            if kind is None or not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                continue
            found = True
            if layer.weight[0].numel() > 1:
                setattr(parent, name, _replaced(layer, kind))
    if not found:
        raise ConfigError(
            "model.weight_standardisation: expected a model with convolutions, found none; leave "
            "it out"
        )


def _replaced(
    layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, kind: type[nn.Conv1d | nn.Conv2d | nn.Conv3d]
) -> nn.Module:
    made = kind(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]  # as many numbers as the kind has dimensions
        stride=layer.stride,  # type: ignore[arg-type]  # as above
        padding=layer.padding,  # type: ignore[arg-type]  # as above
        dilation=layer.dilation,  # type: ignore[arg-type]  # as above
        groups=layer.groups,
        bias=layer.bias is not None,
        padding_mode=layer.padding_mode,
        device="meta",
    )
    made.weight, made.bias = layer.weight, layer.bias
    return made
