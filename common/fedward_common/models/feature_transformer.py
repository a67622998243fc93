"""A transformer over the features of a table: every input is a token (FT-Transformer).

An input's token is its value times the input's own vector, plus another one: of the 0 and 1 of a
category that is the embedding of its code. The vectors stand in embedding layers, which have
per-record gradients on every back end, where bare parameters have none.

Source: Gorishniy et al. 2021, "Revisiting deep learning models for tabular data".
"""

import math

import torch
from torch import nn

from fedward_common.errors import ConfigError
from fedward_common.models.dp_layers import dp_layer
from fedward_common.study.spec import ModelSpec

MOST_INPUTS = 512
"""Attention grows with the square of the inputs."""


class FeatureTransformer(nn.Module):
    """One block of attention over the inputs, a feed-forward part, and the mean of the tokens."""

    def __init__(self, *, inputs: int, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.direction = nn.Embedding(inputs, width)
        self.place = nn.Embedding(inputs, width)
        self.before = nn.LayerNorm(width)
        self.attention = dp_layer("multihead-attention")(width, _heads(width), batch_first=True)
        self.between = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.after = nn.LayerNorm(width)
        self.output = nn.Linear(width, outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [records] (or [records, outputs]) of `features` [records, inputs]."""
        numbers = torch.arange(self.inputs, device=features.device).expand(len(features), -1)
        tokens = self.direction(numbers) * features.unsqueeze(-1) + self.place(numbers)
        normed = self.before(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        tokens = tokens + self.narrow(torch.relu(self.wide(self.between(tokens))))
        logits: torch.Tensor = self.output(self.after(tokens).mean(dim=1))
        return logits.squeeze(-1) if self.output.out_features == 1 else logits


def ft_transformer(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `ft-transformer`: `hidden` = [width of a token, width inside].

    Raises:
        ConfigError: not two widths, or more inputs than attention is meant for.
    """
    if len(spec.hidden) != 2:
        raise ConfigError("model.hidden: expected two widths for ft-transformer, such as [16, 32]")
    if inputs > MOST_INPUTS:
        raise ConfigError(
            f"model ft-transformer: expected at most {MOST_INPUTS} inputs, found {inputs}"
        )
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights; ours replace them
        model = FeatureTransformer(
            inputs=inputs, width=spec.hidden[0], hidden=spec.hidden[1], outputs=spec.outputs
        )
    generator = torch.Generator(device="cpu").manual_seed(spec.initial_seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() < 2:
                if "bias" in name:
                    parameter.zero_()
                continue  # scales of LayerNorm stay 1
            bound = 1.0 / math.sqrt(parameter.shape[-1])
            uniform = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_((2.0 * uniform - 1.0) * bound)
    return model


def _heads(width: int) -> int:
    return 4 if width % 4 == 0 else 1
