"""A network on the graph of a molecule, each molecule by itself.

Atoms and bonds of a molecule are the inputs of one record (a row of numbers for each atom, then a
square of bonds), so that nothing of two molecules ever meets: per-record gradients are those of
Linear layers, and clipping is exact. Layers are those of Morris et al. 2019 (GraphConv): an atom's
own numbers, and the sum over its neighbours, each through its own weights.
"""

import math
from itertools import pairwise
from typing import Final

import torch
from torch import nn

from fedward_common.errors import ConfigError
from fedward_common.models.imaging import initialised
from fedward_common.study.spec import ModelSpec

ATOMS_A_UNIT: Final = 16.0
"""A sum over atoms is given in units of so many, so that it starts near 1."""


class _Convolution(nn.Module):
    """One step along the bonds: own numbers and the neighbours' sum, LayerNorm, ReLU."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.own = nn.Linear(width_in, width_out)
        self.neighbours = nn.Linear(width_in, width_out, bias=False)
        self.norm = nn.LayerNorm(width_out)

    def forward(self, nodes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        moved: torch.Tensor = self.own(nodes) + self.neighbours(torch.bmm(edges, nodes))
        return torch.relu(self.norm(moved))


class GraphNetwork(nn.Module):
    """Convolutions along bonds, then the sum over the atoms, a hidden layer and the outputs."""

    def __init__(self, *, numbers: int, atoms: int, widths: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.numbers, self.atoms, self.outputs = numbers, atoms, outputs
        self.steps = nn.ModuleList(_Convolution(a, b) for a, b in pairwise((numbers, *widths[:-1])))
        self.wide = nn.Linear(widths[-2], widths[-1])
        self.norm = nn.LayerNorm(widths[-1])
        self.output = nn.Linear(widths[-1], outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [records] (or [records, outputs]) of `features` [records, atoms * (numbers +
        atoms)].
        """
        place = self.atoms * self.numbers
        nodes = features[:, :place].reshape(-1, self.atoms, self.numbers)
        edges = features[:, place:].reshape(-1, self.atoms, self.atoms)
        there = nodes[:, :, :1]
        for step in self.steps:
            nodes = step(nodes, edges) * there
        whole = nodes.sum(dim=1) / ATOMS_A_UNIT
        logits: torch.Tensor = self.output(torch.relu(self.norm(self.wide(whole))))
        return logits.squeeze(-1) if self.outputs == 1 else logits


def graph_network(spec: ModelSpec, inputs: int) -> nn.Module:
    """The model `graph-network`: `hidden` = widths of the steps and of the last hidden layer,
    `shape` = [numbers of an atom, atoms].

    Raises:
        ConfigError: sizes that the model does not take.
    """
    if len(spec.hidden) < 2:
        raise ConfigError(
            "model.hidden: expected widths of the steps and of a last hidden layer for "
            "graph-network, such as [64, 64, 128]"
        )
    if len(spec.shape) != 2 or math.prod(spec.shape) + spec.shape[1] ** 2 != inputs:
        raise ConfigError(
            "model.shape: expected [numbers of an atom, atoms] of the study's graphs for "
            f"graph-network, found {list(spec.shape)}"
        )
    numbers, atoms = spec.shape

    def make() -> nn.Module:
        return GraphNetwork(numbers=numbers, atoms=atoms, widths=spec.hidden, outputs=spec.outputs)

    return initialised(make, spec)
