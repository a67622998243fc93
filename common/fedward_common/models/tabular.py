"""Models for one table: logistic regression and a small multi-layer perceptron."""

import math
from itertools import pairwise
from statistics import NormalDist
from typing import Final

import torch
from torch import nn

from fedward_common.errors import ConfigError
from fedward_common.study.spec import ModelSpec

BLOCK: Final = 3
"""Linear, LayerNorm and ReLU of a hidden layer."""


class LogisticRegression(nn.Module):
    """One number (or `outputs`) per record, linear in the inputs; starts at zero."""

    def __init__(self, inputs: int, *, outputs: int = 1) -> None:
        super().__init__()
        self.linear = empty_linear(inputs, outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [records] (or [records, outputs]) of `features` [records, inputs]."""
        logits: torch.Tensor = self.linear(features)
        return logits.squeeze(-1) if self.linear.out_features == 1 else logits


class Mlp(nn.Module):
    """One logit per record through hidden layers of Linear, LayerNorm and ReLU.

    LayerNorm, because it normalises each record by itself: BatchNorm would mix patients. `dropout`
    leaves out hidden units by normal numbers that a record brings along, one for each unit: no draw
    is made in here, so that a record is computed alike whoever is beside it.

    Source: Srivastava et al. 2014 (dropout), with the scaling at training time.
    """

    def __init__(
        self,
        inputs: int,
        *,
        hidden: tuple[int, ...],
        initial_seed: int,
        outputs: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.inputs, self.widths, self.dropout = inputs, hidden, dropout
        self.least = NormalDist().inv_cdf(dropout) if dropout else 0.0
        blocks: list[nn.Module] = []
        for width_in, width_out in pairwise((inputs, *hidden)):
            blocks += [empty_linear(width_in, width_out), nn.LayerNorm(width_out), nn.ReLU()]
        self.hidden = nn.Sequential(*blocks)
        self.output = empty_linear(hidden[-1], outputs)
        generator = torch.Generator(device="cpu").manual_seed(initial_seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialise(module, generator)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [records] (or [records, outputs]) of `features` [records, inputs].

        With `dropout` a normal number for each hidden unit may stand behind them: a unit whose
        number is under the quantile of `dropout` is left out.
        """
        dropped = self.dropout and features.shape[1] > self.inputs
        states = self._left_out(features) if dropped else self.hidden(features)
        logits: torch.Tensor = self.output(states)
        return logits.squeeze(-1) if self.output.out_features == 1 else logits

    def _left_out(self, features: torch.Tensor) -> torch.Tensor:
        # Copied: products of rows with gaps between them round by where a row stands.
        states = features[:, : self.inputs].contiguous()
        chance = torch.split(features[:, self.inputs :], list(self.widths), dim=1)
        starts = range(0, len(self.hidden), BLOCK)
        for start, numbers in zip(starts, chance, strict=True):
            kept = (numbers > self.least).to(states.dtype) / (1.0 - self.dropout)
            states = self.hidden[start : start + BLOCK](states) * kept
        return states


def logistic_regression(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `logistic-regression`. Raises ConfigError when the study gives it hidden layers."""
    if spec.hidden:
        raise ConfigError(
            f"model.hidden: expected no hidden layer for logistic-regression, "
            f"found {list(spec.hidden)}; remove it or choose mlp"
        )
    return LogisticRegression(inputs, outputs=spec.outputs)


def mlp(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `mlp`. Raises ConfigError when the study gives it no hidden layer."""
    if not spec.hidden:
        raise ConfigError(
            "model.hidden: expected at least one width for mlp, such as [16], found none"
        )
    return build_tabular(spec, inputs, outputs=spec.outputs)


def build_tabular(spec: ModelSpec, inputs: int, *, outputs: int) -> nn.Module:
    """A linear model without `hidden`, otherwise an MLP, with `outputs` numbers for each record."""
    if not spec.hidden:
        return LogisticRegression(inputs, outputs=outputs)
    return Mlp(
        inputs,
        hidden=spec.hidden,
        initial_seed=spec.initial_seed,
        outputs=outputs,
        dropout=spec.dropout,
    )


def empty_linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A layer without numbers yet: by way of `meta`, torch's global generator is left alone.

    `to_empty` would do the same, and import a third of a second of symbolic algebra for it.
    """
    layer = nn.Linear(inputs, outputs, bias=bias, device="meta")
    layer.weight = nn.Parameter(torch.empty(outputs, inputs))
    if bias:
        layer.bias = nn.Parameter(torch.empty(outputs))
    return layer


def initialise(linear: nn.Linear, generator: torch.Generator) -> None:
    """Weights uniform within 1 / sqrt(inputs), biases zero, bit-identical on every machine.

    Each weight is an exact float64 in [-1, 1), one float64 product and one rounding to float32;
    torch's own initialisers leave room for fused or vectorised variants per processor.
    """
    bound = 1.0 / math.sqrt(linear.in_features)
    uniform = torch.rand(linear.weight.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_((2.0 * uniform - 1.0) * bound)
        linear.bias.zero_()
