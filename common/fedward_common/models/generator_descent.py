"""How the generator of a generative adversarial network moves: post-processing only.

The discriminator that comes out of a round is private: its gradients were clipped per patient and
noised before anything left a hospital. The generator moves by what that discriminator says of
records that the generator itself made up, from public numbers; no patient has a part in it, so that
generator, and whatever is drawn from it, cost nothing beyond the rounds (post-processing; the next
round is adaptive composition, which the accountants cover).
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from fedward_common.arrays import Array, Tensors
from fedward_common.canonical import sha256_hex
from fedward_common.errors import ConfigError
from fedward_common.models.adversarial_objective import generator_loss
from fedward_common.models.gan import Gan
from fedward_common.models.pooled_descent import PooledDescent, Wide
from fedward_common.models.registry import build_model, load_tensors
from fedward_common.study.generation import GENERATOR, Generation
from fedward_common.study.inputs import input_size
from fedward_common.study.spec import StudySpec, TrainingSpec

BETAS: Final = (0.5, 0.999)
"""Less memory than Adam has by itself: with it the two chase each other (Radford et al. 2016)."""


class GeneratorDescent:
    """The steps of a study's generator, each against the discriminator beside it.

    The numbers that records are generated from follow from the study and the step, so that a run
    that goes on after a crash comes to the same bytes, and anybody can repeat it.
    """

    def __init__(self, study: StudySpec) -> None:
        model = build_model(study.model, input_size(study.data))
        if not isinstance(study.task, Generation) or not isinstance(model, Gan):
            raise ConfigError(
                f"model.name: expected gan of the task generation, found {study.model.name!r}"
            )
        self._study, self._task, self._model = study.digest, study.task, model
        training = TrainingSpec(learning_rate=study.task.generator_rate, optimizer="adam")
        self._descent = PooledDescent(training, betas=BETAS)

    def after_round(self, model: Tensors) -> dict[str, Array]:
        """The model with its generator moved; the discriminator as it is."""
        following = dict(model)
        for _ in range(self._task.generator_steps):
            gradient, rate = self._gradient(following), self._task.generator_rate
            following = self._descent.step(following, gradient, rate=rate)
        return following

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        """What it remembers of the steps before."""
        return self._descent.state()

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Goes on where `state` was taken."""
        self._descent.restore(state)

    def _gradient(self, weights: Tensors) -> dict[str, Wide]:
        """Of the generator's loss against the discriminator in `weights`, by the tensors' names."""
        load_tensors(self._model, weights)
        parameters = {n: p for n, p in self._model.named_parameters() if n.startswith(GENERATOR)}
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        step = int(self._descent.state()["steps"][0])
        seed = int(sha256_hex(f"{self._study}/{step}".encode())[:15], 16)
        numbers = torch.Generator(device="cpu").manual_seed(seed)
        chance = torch.randn((self._task.generator_batch, self._model.latent), generator=numbers)
        classes = drawn_classes(self._task, len(chance), numbers)
        made = self._model.generate(chance, classes)
        loss = generator_loss(self._model.judged(made, classes))
        found = torch.autograd.grad(loss, list(parameters.values()))
        return {
            name: part.numpy().astype(np.float64)
            for name, part in zip(parameters, found, strict=True)
        }


def drawn_classes(
    task: Generation, count: int, numbers: torch.Generator | None = None
) -> torch.Tensor | None:
    """`count` classes by the study's public shares; None where it has none."""
    if not task.class_shares:
        return None
    shares = torch.tensor(task.class_shares, dtype=torch.float64)
    return torch.multinomial(shares, count, replacement=True, generator=numbers)


def generator_of(study: StudySpec) -> GeneratorDescent | None:
    """The descent of the study's generator; None where it has none."""
    return GeneratorDescent(study) if isinstance(study.task, Generation) else None
