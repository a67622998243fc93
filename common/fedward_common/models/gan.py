"""A generator of records and the discriminator that learns to tell them from real ones.

Both are one model, so that they travel together; only the discriminator's numbers are trained at a
hospital. The numbers that a record is generated from are inputs of the real record beside it and no
draw in here: a forward pass is a function of one record alone.

Source: Goodfellow et al. 2014.
"""

from itertools import pairwise
from typing import Final

import torch
from torch import nn

from fedward_common.errors import ConfigError
from fedward_common.models.tabular import empty_linear, initialise
from fedward_common.study.spec import ModelSpec

_SHARPNESS: Final = 5.0
"""How near to one value of a category a generated record is: it must not be told by its shares."""
_CERTAIN: Final = 100.0


class Gan(nn.Module):
    """What the discriminator says of each record, and of one generated from its own numbers.

    `categories`: the inputs that belong to one category each, (first, one past the last), without
    the reference. `sampled`: numbers that a record is generated from, `latent` of them the code and
    one for each value of every category.
    """

    def __init__(
        self,
        inputs: int,
        *,
        hidden: tuple[int, ...],
        latent: int,
        categories: tuple[tuple[int, int], ...],
        seed: int,
    ) -> None:
        super().__init__()
        self.inputs, self.code, self.categories = inputs, latent, categories
        self.latent = latent + sum(end - first + 1 for first, end in categories)
        self.generator = _network((latent, *hidden[::-1]), inputs)
        self.discriminator = _network((inputs, *hidden), 1)
        chance = torch.Generator(device="cpu").manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialise(module, chance)
        # A hospital never trains it: it learns from the discriminator, where nobody's records are.
        self.generator.requires_grad_(False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [records, 2], above 0 for real: of `features` [records, inputs], and of a record
        generated from the `sampled` numbers that stand behind them (without any: from zeros).
        """
        # Copied: products of rows with gaps between them round by where a row stands.
        record = features[:, : self.inputs].contiguous()
        chance = features[:, self.inputs :].contiguous()
        if not chance.shape[1]:
            chance = torch.zeros((len(record), self.latent), dtype=record.dtype).to(record)
        pairs = torch.stack([record, self.generate(chance)], dim=1)
        return self.judged(pairs)

    def judged(self, records: torch.Tensor) -> torch.Tensor:
        """The discriminator's logits [...] of `records` [..., inputs]."""
        logits: torch.Tensor = self.discriminator(records)
        return logits.squeeze(-1)

    def generate(self, chance: torch.Tensor) -> torch.Tensor:
        """Records [records, inputs] from `chance` [records, sampled]: numbers in [-1, 1], and of a
        category nearly 1 for one value.
        """
        made: torch.Tensor = self.generator(chance[:, : self.code])
        parts = []
        place, drawn = 0, self.code
        for first, end in self.categories:
            parts.append(torch.tanh(made[:, place:first]))
            values = torch.cat([torch.zeros_like(made[:, :1]), made[:, first:end]], dim=1)
            apart = chance[:, drawn : drawn + values.shape[1]]
            parts.append(torch.softmax(_SHARPNESS * (values + apart), dim=1)[:, 1:])
            place, drawn = end, drawn + values.shape[1]
        parts.append(torch.tanh(made[:, place:]))
        return torch.cat(parts, dim=1)

    def decode(self, chance: torch.Tensor) -> torch.Tensor:
        """As `generate`, but of a category a logit for each value but the first, sure of one."""
        made = self.generate(chance)
        for first, end in self.categories:
            made[:, first:end] = _CERTAIN * (made[:, first:end] - 0.5)
        return made


def _network(widths: tuple[int, ...], outputs: int) -> nn.Sequential:
    blocks: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        blocks += [empty_linear(width_in, width_out), nn.LayerNorm(width_out), nn.ReLU()]
    return nn.Sequential(*blocks, empty_linear(widths[-1], outputs))


def gan(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `gan`: `hidden` the discriminator's widths, and backwards the generator's;
    `shape` = [numbers of the code]; `categories` as the data have them.

    Raises:
        ConfigError: no width, not one size of the code, or categories beyond the inputs.
    """
    if not spec.hidden or len(spec.shape) != 1 or spec.outputs != 1:
        raise ConfigError(
            "model: expected hidden = [widths of the discriminator], shape = [numbers of the code] "
            f"and no outputs for gan, found hidden {list(spec.hidden)}, shape {list(spec.shape)} "
            f"and outputs {spec.outputs}"
        )
    ends = [0, *(place for pair in spec.categories for place in pair), inputs]
    if any(one > other for one, other in pairwise(ends)):
        raise ConfigError(
            f"model.categories: expected places among the {inputs} inputs in their order, found "
            f"{[list(pair) for pair in spec.categories]}"
        )
    return Gan(
        inputs,
        hidden=spec.hidden,
        latent=spec.shape[0],
        categories=spec.categories,
        seed=spec.initial_seed,
    )
