"""A generator of records and the discriminator that learns to tell them from real ones.

Both are one model, so that they travel together; only the discriminator's numbers are trained at a
hospital. The numbers that a record is generated from are inputs of the real record beside it and no
draw in here: a forward pass is a function of one record alone.

Sources: Goodfellow et al. 2014; of one class, Mirza and Osindero 2014, with the class as an output
of the discriminator (Miyato and Koyama 2018).
"""

from itertools import pairwise
from typing import Final

import torch
from torch import nn

from fedward_common.errors import ConfigError, ModelRefused
from fedward_common.models.adversarial_objective import told_class
from fedward_common.models.tabular import empty_linear, initialise
from fedward_common.study.spec import ModelSpec

_SHARPNESS: Final = 5.0
"""How near to one value of a category a generated record is: it must not be told by its shares."""
_CERTAIN: Final = 100.0


class Gan(nn.Module):
    """What the discriminator says of each record, and of one generated from its own numbers.

    `categories`: the inputs that belong to one category each, (first, one past the last), without
    the reference. `sampled`: numbers that a record is generated from, `latent` of them the code and
    one for each value of every category. `classes`: how many a record may be of, 1 for none: the
    generator has the class as inputs, and the discriminator says for each class how much a record
    looks like a real one of it.
    """

    def __init__(
        self,
        inputs: int,
        *,
        hidden: tuple[int, ...],
        latent: int,
        categories: tuple[tuple[int, int], ...],
        classes: int = 1,
        seed: int,
    ) -> None:
        super().__init__()
        self.inputs, self.code, self.categories = inputs, latent, categories
        self.latent = latent + sum(end - first + 1 for first, end in categories)
        self.classes = classes
        told = classes if classes > 1 else 0
        self.generator = _network((latent + told, *hidden[::-1]), inputs)
        self.discriminator = _network((inputs, *hidden), classes)
        chance = torch.Generator(device="cpu").manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialise(module, chance)
        # A hospital never trains it: it learns from the discriminator, where nobody's records are.
        self.generator.requires_grad_(False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [records, 2], above 0 for real: of `features` [records, inputs], and of a record
        generated from the `sampled` numbers that stand behind them (without any: from zeros). Of
        several classes [records, 2, classes]: of the record as one of each class, and of one that
        was generated as one of it, so that a record's own label says which of them count.
        """
        # Copied: products of rows with gaps between them round by where a row stands.
        record = features[:, : self.inputs].contiguous()
        chance = features[:, self.inputs :].contiguous()
        if not chance.shape[1]:
            chance = torch.zeros((len(record), self.latent), dtype=record.dtype).to(record)
        if self.classes == 1:
            return self.judged(torch.stack([record, self.generate(chance)], dim=1))
        each = [torch.full((len(record),), one).to(record.device) for one in range(self.classes)]
        made = [self.generate(chance, one) for one in each]
        logits = self.discriminator(torch.stack([record, *made], dim=1))
        which = torch.arange(self.classes, device=logits.device)
        own = (logits[:, 1:] * told_class(which, self.classes).to(logits)).sum(dim=2)
        return torch.stack([logits[:, 0], own], dim=1)

    def judged(self, records: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        """The discriminator's logits [...] of `records` [..., inputs], as of their `classes`."""
        logits: torch.Tensor = self.discriminator(records)
        if self.classes == 1:
            return logits.squeeze(-1)
        return (logits * self._told(classes).to(logits)).sum(dim=-1)

    def generate(self, chance: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        """Records [records, inputs] from `chance` [records, sampled]: numbers in [-1, 1], and of a
        category nearly 1 for one value. Of several classes: each of the one in `classes`.

        Raises:
            ModelRefused: no class of a model of several.
        """
        code = chance[:, : self.code]
        if self.classes > 1:
            code = torch.cat([code, self._told(classes).to(code)], dim=1)
        made: torch.Tensor = self.generator(code)
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

    def _told(self, classes: torch.Tensor | None) -> torch.Tensor:
        """1 for the class of each record, shape [records, classes]."""
        if classes is None:
            raise ModelRefused(
                f"generator: expected one of {self.classes} classes for each record, found none"
            )
        return told_class(classes, self.classes)

    def decode(self, chance: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        """As `generate`, but of a category a logit for each value but the first, sure of one."""
        made = self.generate(chance, classes)
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
    `shape` = [numbers of the code]; `categories` as the data have them; `outputs` = classes.

    Raises:
        ConfigError: no width, not one size of the code, or categories beyond the inputs.
    """
    if not spec.hidden or len(spec.shape) != 1 or (spec.outputs > 1 and spec.categories):
        raise ConfigError(
            "model: expected hidden = [widths of the discriminator], shape = [numbers of the code] "
            "and no classes beside categories for gan, found hidden "
            f"{list(spec.hidden)}, shape {list(spec.shape)} and outputs {spec.outputs}"
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
        classes=spec.outputs,
        seed=spec.initial_seed,
    )
