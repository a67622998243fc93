"""A convolution over the loci of a panel, in its order along the genome."""

import math
from itertools import pairwise
from typing import Final

import torch
from torch import nn

from fedward_common.errors import ConfigError
from fedward_common.study.spec import ModelSpec

KERNEL: Final = 5
GROUPS: Final = 8


class LocusCnn(nn.Module):
    """Blocks of 1-D convolution, GroupNorm, ReLU and halving by means; then one linear layer.

    What is left of the loci goes into the last layer place by place, together with the inputs that
    are no genotypes: a genotype means something only where it is. GroupNorm, because it normalises
    each record by itself: BatchNorm would mix patients.
    """

    def __init__(
        self, *, shape: tuple[int, int], beside: int, widths: tuple[int, ...], outputs: int
    ) -> None:
        super().__init__()
        self.channels, self.loci = shape
        blocks: list[nn.Module] = []
        left = self.loci
        for inner, outer in pairwise((self.channels, *widths)):
            blocks += [
                nn.Conv1d(inner, outer, kernel_size=KERNEL, padding=KERNEL // 2),
                nn.GroupNorm(math.gcd(GROUPS, outer), outer),
                nn.ReLU(),
                nn.AvgPool1d(2),
            ]
            left //= 2
        self.blocks = nn.Sequential(*blocks)
        self.output = nn.Linear(widths[-1] * left + beside, outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [records] (or [records, outputs]) of `features` [records, inputs]."""
        own = self.loci * self.channels
        maps = features[:, :own].reshape(-1, self.loci, self.channels).transpose(1, 2)
        flat = self.blocks(maps).flatten(1)
        logits: torch.Tensor = self.output(torch.cat([flat, features[:, own:]], dim=1))
        return logits.squeeze(-1) if self.output.out_features == 1 else logits


def locus_cnn(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `locus-cnn`: `shape` = [numbers of a locus, loci], `hidden` = widths of the blocks.

    Raises:
        ConfigError: no width, another shape, or fewer loci than halvings leave something of.
    """
    if not spec.hidden:
        raise ConfigError("model.hidden: expected at least one width for locus-cnn, such as [8]")
    if len(spec.shape) != 2 or spec.shape[0] * spec.shape[1] > inputs:
        raise ConfigError(
            f"model.shape: expected [numbers of a locus, loci] of the {inputs} inputs, found "
            f"{list(spec.shape)}"
        )
    if spec.shape[1] < 2 ** len(spec.hidden):
        raise ConfigError(
            f"model.hidden: expected fewer blocks for {spec.shape[1]} loci: each halves them"
        )
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights; ours replace them
        model = LocusCnn(
            shape=(spec.shape[0], spec.shape[1]),
            beside=inputs - spec.shape[0] * spec.shape[1],
            widths=spec.hidden,
            outputs=spec.outputs,
        )
    generator = torch.Generator(device="cpu").manual_seed(spec.initial_seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() < 2:
                if "bias" in name:
                    parameter.zero_()
                continue  # scales of GroupNorm stay 1
            bound = 1.0 / math.sqrt(math.prod(parameter.shape[1:]))
            uniform = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_((2.0 * uniform - 1.0) * bound)
    return model
