"""Low-rank adapters (LoRA): a frozen layer plus a narrow trained one beside it.

A lever of `[model]`, off unless a study asks for it. The adapters are layers of the usual kinds, so
that every back end has a rule for them; only they, and what the study does not freeze, are trained,
noised and summed.

Source: Hu et al. 2022.
"""

import math
from collections.abc import Iterator
from typing import Final

import torch
from torch import nn

from fedward_common.errors import ConfigError
from fedward_common.models.standardised import STANDARDISED
from fedward_common.study.low_rank import LoRa
from fedward_common.study.spec import ModelSpec

_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_KINDS: Final = frozenset({nn.Linear, *_CONVOLUTIONS, *STANDARDISED.values()})
_OTHER_SEED: Final = 2**53
"""Beyond every `initial_seed`: adapters do not start as a copy of some layer's numbers."""


class LowRank(nn.Module):
    """`base`, frozen, plus `scale` times `up` after `down`; starts as the base alone."""

    def __init__(self, base: nn.Module, *, down: nn.Module, up: nn.Module, scale: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = down, up
        self.scale = scale
        if isinstance(base, nn.Linear):
            self.in_features, self.out_features = base.in_features, base.out_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """What the adapted layer gives, in the shape of the base's output."""
        base: torch.Tensor = self.base(features)
        adapted: torch.Tensor = self.up(self.down(features))
        return base + self.scale * adapted


def adapt(model: nn.Module, spec: ModelSpec, lora: LoRa) -> None:
    """Puts an adapter on every layer of `model` that the study names.

    Raises:
        ConfigError: a name that no layer has that can be adapted, or a rank that saves nothing.
    """
    fitting = {name: layer for name, layer in model.named_modules() if _fits(name, layer)}
    chosen = {name: layer for name, layer in fitting.items() if name.startswith(lora.layers)}
    for beginning in lora.layers:
        if not any(name.startswith(beginning) for name in chosen):
            raise ConfigError(
                f"model.lora.layers: expected the beginning of a layer's name, found {beginning!r};"
                f" {spec.name} has {', '.join(fitting) or 'no layer that can be adapted'}"
            )
    if any(lora.is_base(name) for name, _ in model.named_parameters()):
        raise ConfigError("model.lora.layers: expected no layer that is itself called base")
    generator = torch.Generator(device="cpu").manual_seed(spec.initial_seed + _OTHER_SEED)
    for name in sorted(chosen):
        parent, _, own = name.rpartition(".")
        adapted = _adapted(name, chosen[name], lora=lora, generator=generator)
        setattr(model.get_submodule(parent), own, adapted)


def _fits(name: str, layer: nn.Module) -> bool:
    grouped = isinstance(layer, _CONVOLUTIONS) and layer.groups != 1
    return bool(name) and type(layer) in _KINDS and not grouped


def _adapted(name: str, layer: nn.Module, *, lora: LoRa, generator: torch.Generator) -> LowRank:
    down, up = _narrow(layer, rank=lora.rank)
    before, after = (sum(p.numel() for p in _weights(*layers)) for layers in ((layer,), (down, up)))
    if after >= before:
        raise ConfigError(
            f"model.lora.rank: expected one with fewer numbers than layer {name} has ({before}), "
            f"found {after} at rank {lora.rank}; lower it or leave the layer out"
        )
    bound = math.sqrt(3.0 / down.weight[0].numel())
    uniform = torch.rand(down.weight.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        down.weight.copy_((2.0 * uniform - 1.0) * bound)
        up.weight.zero_()
    return LowRank(layer, down=down, up=up, scale=lora.scale)


def _weights(*layers: nn.Module) -> Iterator[nn.Parameter]:
    return (layer.get_parameter("weight") for layer in layers)


_Narrow = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


def _narrow(layer: nn.Module, *, rank: int) -> tuple[_Narrow, _Narrow]:
    """Two layers without numbers yet: from the layer's input to `rank`, and on to its output."""
    made: tuple[_Narrow, _Narrow]
    if isinstance(layer, nn.Linear):
        made = (
            nn.Linear(layer.in_features, rank, bias=False, device="meta"),
            nn.Linear(rank, layer.out_features, bias=False, device="meta"),
        )
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        kind = next(kind for kind in _CONVOLUTIONS if isinstance(layer, kind))
        made = (
            kind(
                layer.in_channels,
                rank,
                layer.kernel_size,  # type: ignore[arg-type]  # as many as the kind has dimensions
                stride=layer.stride,  # type: ignore[arg-type]  # as above
                padding=layer.padding,  # type: ignore[arg-type]  # as above
                dilation=layer.dilation,  # type: ignore[arg-type]  # as above
                bias=False,
                padding_mode=layer.padding_mode,
                device="meta",
            ),
            kind(rank, layer.out_channels, 1, bias=False, device="meta"),
        )
    else:
        raise TypeError("adapter: expected a Linear or a convolution")
    for part in made:
        part.to_empty(device="cpu")
    return made
