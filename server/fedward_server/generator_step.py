"""The coordinator's part of a generative adversarial network (see `generator_descent`)."""

from collections.abc import Mapping
from typing import Final

from fedward_common.arrays import Array, Tensors
from fedward_common.models.generator_descent import GeneratorDescent
from fedward_common.models.pooled_descent import Wide
from fedward_common.study.generation import GENERATOR
from fedward_server.optimiser_port import ServerOptimiser

_OWN: Final = "generator/"


class GeneratorStep:
    """The study's server optimiser for the discriminator, then the generator's steps.

    What sites send for the generator is not looked at: only this moves it.
    """

    def __init__(self, generator: GeneratorDescent, discriminator: ServerOptimiser) -> None:
        self._generator, self._discriminator = generator, discriminator

    def step(self, current: Tensors, mean: Tensors, *, share: float = 1.0) -> dict[str, Array]:
        """The next discriminator, and the generator after its steps against it."""
        following = self._discriminator.step(current, mean, share=share)
        own = {name: value for name, value in current.items() if name.startswith(GENERATOR)}
        return self._generator.after_round({**following, **own})

    def shared(self) -> dict[str, Array]:
        """What goes to the sites beside the model."""
        return self._discriminator.shared()

    def state(self) -> Mapping[str, Wide]:
        """Both optimisers'."""
        own = {f"{_OWN}{name}": value for name, value in self._generator.state().items()}
        return {**self._discriminator.state(), **own}

    def restore(self, state: Mapping[str, Wide]) -> None:
        """Both go on where `state` was taken."""
        own = {n.removeprefix(_OWN): v for n, v in state.items() if n.startswith(_OWN)}
        self._discriminator.restore({n: v for n, v in state.items() if not n.startswith(_OWN)})
        self._generator.restore(own)
