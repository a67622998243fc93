"""Made-up records within the range of real ones, by a fixed rule, for the model check."""

import itertools
import math
from collections.abc import Callable

import torch

from fedward_client.tasks.task import ExampleRecords

_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def made_up(
    inputs: int, *, device: torch.device, labels: Callable[[int], torch.Tensor]
) -> ExampleRecords:
    """Examples with features in [-1, 1) and the labels that `labels` makes for a count."""
    blocks = itertools.count()

    def next_records(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        size = count * inputs
        # Fractional parts of phi n^2: spread evenly over [0, 1), and no two rows alike.
        index = torch.arange(size, dtype=torch.float64) + 1.0 + next(blocks) * size
        features = 2.0 * torch.frac(index.square() * _GOLDEN) - 1.0
        return (
            features.reshape(count, inputs).to(device, torch.float32),
            labels(count).to(device, torch.float32),
        )

    return next_records


def with_chance(examples: ExampleRecords, sampled: int) -> ExampleRecords:
    """`examples` as the engine hands them to a model that draws a code: each record with as many
    numbers of its own beside it, by a fixed rule as well.
    """
    if not sampled:
        return examples
    chance = itertools.count(1)

    def next_records(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        features, labels = examples(count)
        place = torch.arange(count * sampled, dtype=torch.float64) + next(chance) * 7919.0
        apart = 2.0 * torch.frac(place.square() * _GOLDEN) - 1.0
        return torch.cat([features, apart.reshape(count, sampled).to(features)], dim=1), labels

    return next_records
