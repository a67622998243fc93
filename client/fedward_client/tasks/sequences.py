"""Classes from sequences: made-up records for the objectives that all sides share."""

from collections.abc import Callable

import torch

from fedward_client.tasks.made_up import made_up
from fedward_client.tasks.task import ExampleRecords, Task
from fedward_common.models.image_objectives import ClassesObjective, OneClassTargets
from fedward_common.models.objectives import BinaryObjective
from fedward_common.study.sequence import Letters, SequenceClassification, SequenceData


def sequence_task(spec: SequenceClassification, data: SequenceData) -> Task:
    """The task of a study of sequences."""
    if data.outputs == 1:
        return SequenceAnswerTask(data, spec.class_weights)
    return SequenceClassesTask(data, spec.class_weights)


class SequenceAnswerTask(BinaryObjective):
    """One logit per sequence; no and yes may weigh differently."""

    def __init__(self, data: SequenceData, weights: tuple[float, ...]) -> None:
        super().__init__(weights)
        self.inputs, self._data = data.input_size, data

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up sequences of both classes."""
        return made_up_letters(self._data, device, lambda count: torch.arange(count) % 2)


class SequenceClassesTask(ClassesObjective):
    """A logit for each class."""

    def __init__(self, data: SequenceData, weights: tuple[float, ...]) -> None:
        super().__init__(OneClassTargets(data.outputs), classes=data.outputs, weights=weights)
        self.inputs, self._data = data.input_size, data

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up sequences of every class."""
        classes = self._data.outputs
        return made_up_letters(self._data, device, lambda count: torch.arange(count) % classes)


def made_up_letters(
    data: Letters, device: torch.device, labels: Callable[[int], torch.Tensor]
) -> ExampleRecords:
    """Sequences by a fixed rule, other ones at every call; of words their numbers."""
    if not data.tokens:
        return made_up(data.input_size, device=device, labels=labels)
    calls = iter(range(1 << 30))

    def next_records(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        place = torch.arange(count * data.tokens) + next(calls) * 7919
        ids = 1 + (place * 104_729) % (data.token_size - 1)
        features = ids.reshape(count, data.tokens)
        return features.to(device, torch.float32), labels(count).to(device, torch.float32)

    return next_records
