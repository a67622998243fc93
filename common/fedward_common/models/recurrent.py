"""Recurrent models over the steps of a time series, of Opacus' layers."""

import math
from typing import Literal

import torch
from torch import nn

from fedward_common.errors import ConfigError
from fedward_common.models.dp_layers import dp_layer
from fedward_common.study.spec import ModelSpec


class Recurrent(nn.Module):
    """A GRU or LSTM over the steps, and one linear layer on its last state.

    Values and masks of a step stand side by side in its inputs, so that the network sees what was
    observed and what was filled in.
    """

    def __init__(
        self, cell: Literal["gru", "lstm"], *, steps: int, width: int, hidden: int, outputs: int
    ) -> None:
        super().__init__()
        self.steps, self.width = steps, width
        self.cell = dp_layer(cell)(width, hidden, batch_first=True)
        self.output = nn.Linear(hidden, outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [records] (or [records, outputs]) of `features` [records, steps * width]."""
        series = features.reshape(features.shape[0], self.steps, self.width)
        states = self.cell(series)[0]
        logits: torch.Tensor = self.output(states[:, -1])
        return logits.squeeze(-1) if self.output.out_features == 1 else logits


def gru(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `gru`. Raises ConfigError as `_recurrent`."""
    return _recurrent("gru", spec, inputs)


def lstm(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `lstm`. Raises ConfigError as `_recurrent`."""
    return _recurrent("lstm", spec, inputs)


def _recurrent(cell: Literal["gru", "lstm"], spec: ModelSpec, inputs: int) -> nn.Module:
    """A recurrent model with one hidden layer.

    Raises:
        ConfigError: not one width in `hidden`, or inputs that are no whole number of steps.
    """
    if len(spec.hidden) != 1:
        raise ConfigError(f"model.hidden: expected one width for {cell}, such as [32]")
    if spec.steps < 1 or inputs % spec.steps:
        raise ConfigError(
            f"model.steps: expected a divisor of the {inputs} inputs for {cell}, found {spec.steps}"
        )
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights; ours replace them
        model = Recurrent(
            cell,
            steps=spec.steps,
            width=inputs // spec.steps,
            hidden=spec.hidden[0],
            outputs=spec.outputs,
        )
    generator = torch.Generator(device="cpu").manual_seed(spec.initial_seed)
    bound = 1.0 / math.sqrt(spec.hidden[0])
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "bias" in name:
                parameter.zero_()
                continue
            uniform = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_((2.0 * uniform - 1.0) * bound)
    return model
