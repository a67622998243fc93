"""What a site does with noisy gradients: post-processing by the study's optimiser."""

from collections.abc import Sequence

import torch
from torch import nn

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

    def step(self, gradient: torch.Tensor, *, rate: float | None = None) -> None:
        """One step along `gradient` [parameters], float64, flat in the parameters' order.

        `rate`: the learning rate, where it is not the study's whole one.
        """
        if rate is not None:
            for group in self._optimizer.param_groups:
                group["lr"] = rate
        parts = torch.split(gradient, [parameter.numel() for parameter in self._parameters])
        origins = zip(self._start, self._correction, strict=True)
        for parameter, (origin, fixed), part in zip(self._parameters, origins, parts, strict=True):
            noisy = part.view_as(parameter).to(parameter.dtype)
            drift = self._mu * (parameter.detach() - origin)
            parameter.grad = noisy + drift + fixed.to(noisy)
        self._optimizer.step()


def _optimizer(training: TrainingSpec, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if training.optimizer == "adam":
        return torch.optim.AdamW(
            parameters,
            lr=training.learning_rate,
            betas=ADAM_BETAS,
            eps=ADAM_EPSILON,
            weight_decay=training.weight_decay,
        )
    return torch.optim.SGD(
        parameters,
        lr=training.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )
