"""GRU-D: a GRU that knows how long ago each variable was observed.

Che et al. 2018, "Recurrent neural networks for multivariate time series with missing values",
section "GRU-D". Two things are as a federation needs them: where the paper has a variable's
empirical mean stands the study's public fill value (rules 6), and the time since the last
observation is counted in steps of the grid, as a part of the whole grid.

Parameters stand in linear and embedding layers only, which have per-record gradients on every back
end; bare parameters have none.
"""

import math

import torch
from torch import nn

from fedward_common.errors import ConfigError
from fedward_common.study.spec import ModelSpec


class GruD(nn.Module):
    """A GRU over the steps of a grid with decay of its inputs and of its state.

    The inputs of a step are the static ones, then a value and a mask (1: observed) for each of
    `variables`. A step without a value holds the study's fill value.
    """

    def __init__(
        self, *, steps: int, width: int, variables: int, hidden: int, outputs: int
    ) -> None:
        super().__init__()
        self.steps, self.width, self.variables, self.hidden = steps, width, variables, hidden
        self.input_decay = nn.Embedding(variables, 2)
        self.state_decay = nn.Linear(variables, hidden)
        self.inputs = nn.Linear(width, 3 * hidden)
        self.gates = nn.Linear(hidden, 2 * hidden, bias=False)
        self.candidate = nn.Linear(hidden, hidden, bias=False)
        self.output = nn.Linear(hidden, outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [records] (or [records, outputs]) of `features` [records, steps * width]."""
        series = features.reshape(features.shape[0], self.steps, self.width)
        before = self.width - 2 * self.variables
        static, pairs = series[:, :, :before], series[:, :, before:]
        values, mask = pairs[:, :, 0::2], (pairs[:, :, 1::2] > 0.5).to(features.dtype)
        last, since = _last_and_since(values, mask)
        numbers = torch.arange(self.variables, device=features.device)
        slope, offset = self.input_decay(numbers.expand(len(features), -1)).unbind(dim=-1)
        kept = torch.exp(-torch.relu(slope.unsqueeze(1) * since + offset.unsqueeze(1)))
        # Unobserved, `values` is the fill value, to which the last observation decays.
        filled = mask * values + (1.0 - mask) * (kept * last + (1.0 - kept) * values)
        seen = self.inputs(torch.cat([static, filled, mask], dim=2))
        fading = torch.exp(-torch.relu(self.state_decay(since)))
        state = features.new_zeros((len(features), self.hidden))
        for step in range(self.steps):
            state = self._next(fading[:, step] * state, seen[:, step])
        logits: torch.Tensor = self.output(state)
        return logits.squeeze(-1) if self.output.out_features == 1 else logits

    def _next(self, state: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """The state after a step: Che et al. 2018, equations of the GRU with the mask in them."""
        gates, proposal = seen[:, : 2 * self.hidden], seen[:, 2 * self.hidden :]
        update, reset = torch.sigmoid(gates + self.gates(state)).chunk(2, dim=1)
        proposed = torch.tanh(proposal + self.candidate(reset * state))
        following: torch.Tensor = (1.0 - update) * state + update * proposed
        return following


def _last_and_since(values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors as `values` [records, steps, variables]: the last observed value up to each step,
    the fill value before the first, and the part of the grid since the step it was observed in.

    Source: Che et al. 2018, equation of delta; a step of the first kind has 0.
    """
    steps = values.shape[1]
    last, since = [values[:, 0]], [torch.zeros_like(values[:, 0])]
    for step in range(1, steps):
        unseen_before = 1.0 - mask[:, step - 1]
        since.append(1.0 / steps + unseen_before * since[-1])
        seen = mask[:, step]
        last.append(seen * values[:, step] + (1.0 - seen) * last[-1])
    return torch.stack(last, dim=1), torch.stack(since, dim=1)


def gru_d(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `gru-d`: `hidden` = [width of the state], `shape` = [variables].

    Decays start above zero, so that none of them begins where it has no gradient: an input is at
    1/e after the whole grid, a state fades by the mean over the variables.

    Raises:
        ConfigError: not one width or not one number of variables, or inputs that are no whole
            number of steps with a value and a mask for each variable.
    """
    if len(spec.hidden) != 1:
        raise ConfigError("model.hidden: expected one width for gru-d, such as [32]")
    if spec.steps < 1 or inputs % spec.steps:
        raise ConfigError(
            f"model.steps: expected a divisor of the {inputs} inputs for gru-d, found {spec.steps}"
        )
    width, most = inputs // spec.steps, inputs // spec.steps // 2
    if len(spec.shape) != 1 or spec.shape[0] > most:
        raise ConfigError(
            f"model.shape: expected [variables], each with a value and a mask, at most {most} in "
            f"the {width} inputs of a step, found {list(spec.shape)}"
        )
    variables, hidden = spec.shape[0], spec.hidden[0]
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights; ours replace them
        model = GruD(
            steps=spec.steps,
            width=width,
            variables=variables,
            hidden=hidden,
            outputs=spec.outputs,
        )
    generator = torch.Generator(device="cpu").manual_seed(spec.initial_seed)
    bound = 1.0 / math.sqrt(hidden)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "bias" in name:
                parameter.zero_()
                continue
            uniform = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            if name == "input_decay.weight":
                parameter.copy_(torch.tensor([1.0, 0.0]).expand_as(parameter))
            elif name == "state_decay.weight":
                parameter.copy_(uniform / variables)
            else:
                parameter.copy_((2.0 * uniform - 1.0) * bound)
    return model
