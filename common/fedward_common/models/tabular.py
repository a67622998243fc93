"""Models for one table: logistic regression and a small multi-layer perceptron."""

import math
from itertools import pairwise

import torch
from torch import nn

from fedward_common.errors import ConfigError
from fedward_common.study.spec import ModelSpec


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

    LayerNorm, because it normalises each record by itself: BatchNorm would mix patients.
    """

    def __init__(
        self, inputs: int, *, hidden: tuple[int, ...], initial_seed: int, outputs: int = 1
    ) -> None:
        super().__init__()
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
        """Logits [records] (or [records, outputs]) of `features` [records, inputs]."""
        logits: torch.Tensor = self.output(self.hidden(features))
        return logits.squeeze(-1) if self.output.out_features == 1 else logits


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
    return Mlp(inputs, hidden=spec.hidden, initial_seed=spec.initial_seed, outputs=outputs)


def empty_linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A layer without numbers yet: by way of `meta`, torch's global generator is left alone."""
    return nn.Linear(inputs, outputs, bias=bias, device="meta").to_empty(device="cpu")


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
