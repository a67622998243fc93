"""Properties of molecules: made-up records for the objectives that all sides share."""

from collections.abc import Callable

import torch

from fedward_client.tasks.made_up import made_up
from fedward_client.tasks.task import ExampleRecords, Task
from fedward_common.models.answer_objectives import AnswersObjective
from fedward_common.models.objectives import BinaryObjective, ValueObjective
from fedward_common.study.labelled_rows import SeveralAnswers
from fedward_common.study.molecule import MoleculeData, MoleculeProperty
from fedward_common.study.tabular import NumberLabel


def molecule_task(spec: MoleculeProperty, data: MoleculeData) -> Task:
    """The task of a study of molecules."""
    if isinstance(data.label, SeveralAnswers):
        return AnswersTask(data, spec.class_weights)
    if isinstance(data.label, NumberLabel):
        return NumberTask(data)
    return AnswerTask(data, spec.class_weights)


class AnswerTask(BinaryObjective):
    """One logit per molecule; no and yes may weigh differently."""

    def __init__(self, data: MoleculeData, weights: tuple[float, ...]) -> None:
        super().__init__(weights)
        self.inputs, self._data = data.input_size, data

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up molecules of both classes."""
        return _made_up(self._data, device, lambda count: torch.arange(count) % 2)


class AnswersTask(AnswersObjective):
    """A logit for each answer."""

    def __init__(self, data: MoleculeData, weights: tuple[float, ...]) -> None:
        super().__init__(data.outputs, weights)
        self.inputs, self._data = data.input_size, data

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up molecules with yes, no and nothing measured."""
        answers = self._data.outputs

        def labels(count: int) -> torch.Tensor:
            place = torch.arange(count).unsqueeze(1) + torch.arange(answers)
            return place % 3 - 1

        return _made_up(self._data, device, labels)


class NumberTask(ValueObjective):
    """One number per molecule on the scale of the label, [-1, 1]."""

    def __init__(self, data: MoleculeData) -> None:
        self.inputs, self._data = data.input_size, data

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up molecules with labels over the whole range."""
        return _made_up(self._data, device, lambda count: torch.linspace(-1.0, 1.0, count))


def _made_up(
    data: MoleculeData, device: torch.device, labels: Callable[[int], torch.Tensor]
) -> ExampleRecords:
    return made_up(data.input_size, device=device, labels=labels)
