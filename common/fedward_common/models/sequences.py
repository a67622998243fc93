"""Models of sequences: convolutions along the places, and a transformer over words of letters.

Recurrent models are those of time series (`gru`, `lstm`), several letters a step.
"""

import math
from itertools import pairwise
from typing import Final

import torch
from torch import nn

from fedward_common.errors import ConfigError
from fedward_common.models.imaging import GROUPS, initialised
from fedward_common.models.text import TextTransformer, build_text_model
from fedward_common.study.spec import ModelSpec

KERNEL: Final = 7
"""Places that a filter sees: the consensus around a splice donor or acceptor is about as long."""


class Cnn1d(nn.Module):
    """Blocks of convolution, GroupNorm, ReLU and halving by means; a linear layer on every place.

    The last layer knows where a motif stands, unlike a mean over the places. GroupNorm, because it
    normalises each record by itself.
    """

    def __init__(
        self, *, channels: int, length: int, widths: tuple[int, ...], outputs: int
    ) -> None:
        super().__init__()
        self.channels, self.length, self.outputs = channels, length, outputs
        blocks: list[nn.Module] = []
        for inner, outer in pairwise((channels, *widths)):
            blocks += [
                nn.Conv1d(inner, outer, kernel_size=KERNEL, padding=KERNEL // 2),
                nn.GroupNorm(math.gcd(GROUPS, outer), outer),
                nn.ReLU(),
                nn.AvgPool1d(2),
            ]
        self.blocks = nn.Sequential(*blocks)
        self.output = nn.Linear(widths[-1] * (length >> len(widths)), outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [records] (or [records, outputs]) of `features` [records, length * channels]."""
        places = features.reshape(-1, self.length, self.channels).transpose(1, 2)
        maps: torch.Tensor = self.blocks(places)
        logits: torch.Tensor = self.output(maps.flatten(1))
        return logits.squeeze(-1) if self.outputs == 1 else logits


def cnn1d(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `cnn1d`: `shape` = [numbers of a place, places], `hidden` = filters of the blocks.

    Raises:
        ConfigError: sizes that the model does not take.
    """
    if len(spec.shape) != 2 or math.prod(spec.shape) != inputs:
        raise ConfigError(
            f"model.shape: expected [numbers of a place, places] with a product of {inputs} for "
            f"cnn1d, found {list(spec.shape)}"
        )
    channels, length = spec.shape
    if not spec.hidden or length >> len(spec.hidden) < 1:
        raise ConfigError(
            "model.hidden: expected widths such as [32, 32] for cnn1d, no more than the places can "
            "be halved"
        )

    def make() -> nn.Module:
        return Cnn1d(channels=channels, length=length, widths=spec.hidden, outputs=spec.outputs)

    return initialised(make, spec)


def sequence_transformer(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `sequence-transformer`: `text-transformer` with one answer for all tokens.

    Raises:
        ConfigError: as `text-transformer`.
    """
    return build_text_model(spec, inputs, TextTransformer, pooled=True)
