"""What a site does with noisy gradients: post-processing by the study's optimiser."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from fedward_common.errors import ConfigError
from fedward_common.study.kept import is_kept
from fedward_common.study.spec import FedBN, FedProx, StudySpec, TrainingSpec

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8


def freeze(model: nn.Module, training: TrainingSpec) -> None:
    """Leaves the parameters that the study froze out of training.

    Raises:
        ConfigError: a prefix that no parameter has, or nothing is left to train.
    """
    for prefix in training.frozen:
        named = [p for name, p in model.named_parameters() if name.startswith(prefix)]
        if not named:
            raise ConfigError(
                f"training.frozen: expected the beginning of a parameter's name, found {prefix!r}; "
                f"the model has {', '.join(name for name, _ in model.named_parameters())}"
            )
        for parameter in named:
            parameter.requires_grad_(False)
    # The bases of low-rank adapters are frozen where the model is built.
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError("training.frozen: expected something left to train, found nothing")


NORMALISATION = (
    *(nn.GroupNorm, nn.LayerNorm, nn.RMSNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
"""Layers that look at one record alone."""


def check_kept(model: nn.Module, study: StudySpec) -> None:
    """Returns when what the study keeps at the sites is the normalisation layers, all of them.

    Raises:
        ConfigError: it keeps something else, or leaves one out.
    """
    if not isinstance(study.aggregation, FedBN):
        return
    found = {
        f"{prefix}.{name}"
        for prefix, layer in model.named_modules()
        if isinstance(layer, NORMALISATION)
        for name, _ in layer.named_parameters()
    }
    kept = {name for name, _ in model.named_parameters() if is_kept(study, name)}
    if not found or kept != found:
        raise ConfigError(
            "aggregation.kept: expected the model's normalisation layers and nothing else, "
            f"{sorted(found) or 'of which it has none'}, found {sorted(kept)}"
        )


class LocalDescent:
    """Moves the parameters along noisy gradients, round by round.

    The optimiser starts anew in each round: a site keeps nothing between rounds. Momentum, decay,
    Adam's moments and the proximal term are functions of noisy gradients and public numbers only.
    """

    def __init__(
        self,
        study: StudySpec,
        parameters: Sequence[nn.Parameter],
        *,
        correction: Sequence[torch.Tensor] = (),
    ) -> None:
        """A descent that adds `correction`, one tensor a parameter or none, to every gradient."""
        aggregation = study.aggregation
        self._mu = aggregation.mu if isinstance(aggregation, FedProx) else 0.0
        self._parameters = list(parameters)
        self._correction = list(correction) or [torch.zeros(())] * len(self._parameters)
        self._start = [parameter.detach().clone() for parameter in parameters]
        self._optimizer = _optimizer(study.training, self._parameters)
        self._rate = study.training.learning_rate

    def step(self, gradient: torch.Tensor, *, rate: float | None = None) -> None:
        """One step along `gradient` [parameters], float64, flat in the parameters' order.

        `rate`: the learning rate, where it is not the study's whole one.
        """
        parts = torch.split(gradient, [parameter.numel() for parameter in self._parameters])
        origins = zip(self._start, self._correction, strict=True)
        moves: list[torch.Tensor] = []
        for parameter, (origin, fixed), part in zip(self._parameters, origins, parts, strict=True):
            noisy = part.view_as(parameter).to(parameter.dtype)
            drift = self._mu * (parameter.detach() - origin)
            moves.append(noisy + drift + fixed.to(noisy))
        self._optimizer.step(moves, rate=self._rate if rate is None else rate)


class _Optimizer(Protocol):
    """What moves the parameters that it was made with."""

    def step(self, gradients: list[torch.Tensor], *, rate: float) -> None:
        """One step along `gradients`, one for each parameter."""
        ...


def _optimizer(training: TrainingSpec, parameters: list[nn.Parameter]) -> _Optimizer:
    return (_AdamW if training.optimizer == "adam" else _Sgd)(training, parameters)


# torch.optim's own arithmetic by its functions: its classes import torch's compiler when they are
# made, two seconds of every process that trains, and nothing here is ever compiled.
class _Sgd:
    """`torch.optim.SGD`."""

    def __init__(self, training: TrainingSpec, parameters: list[nn.Parameter]) -> None:
        self._training, self._parameters = training, parameters
        self._momenta: list[torch.Tensor | None] = [None] * len(parameters)

    @torch.no_grad()
    def step(self, gradients: list[torch.Tensor], *, rate: float) -> None:
        """One step along `gradients`, one for each parameter."""
        sgd(
            list(self._parameters),
            gradients,
            self._momenta,
            weight_decay=self._training.weight_decay,
            momentum=self._training.momentum,
            lr=rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


class _AdamW:
    """`torch.optim.AdamW`."""

    def __init__(self, training: TrainingSpec, parameters: list[nn.Parameter]) -> None:
        self._training, self._parameters = training, parameters
        self._first = [torch.zeros_like(parameter) for parameter in parameters]
        self._second = [torch.zeros_like(parameter) for parameter in parameters]
        self._steps = [torch.zeros(()) for _ in parameters]

    @torch.no_grad()
    def step(self, gradients: list[torch.Tensor], *, rate: float) -> None:
        """One step along `gradients`, one for each parameter."""
        adamw(
            list(self._parameters),
            gradients,
            self._first,
            self._second,
            [],
            self._steps,
            amsgrad=False,
            beta1=ADAM_BETAS[0],
            beta2=ADAM_BETAS[1],
            lr=rate,
            weight_decay=self._training.weight_decay,
            eps=ADAM_EPSILON,
            maximize=False,
        )
