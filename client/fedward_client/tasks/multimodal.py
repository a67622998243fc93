"""Learning from whole patients: made-up records for the objectives that all sides share."""

from collections.abc import Callable, Sequence

import torch

from fedward_client.tasks.made_up import made_up
from fedward_client.tasks.notes import NoteAnswerTask
from fedward_client.tasks.sequences import made_up_letters
from fedward_client.tasks.survival import SurvivalTask
from fedward_client.tasks.task import ExampleRecords, Task
from fedward_common.models.image_objectives import ClassesObjective, OneClassTargets
from fedward_common.models.objectives import BinaryObjective
from fedward_common.study.drug_target import DrugTargetData
from fedward_common.study.molecule import Smiles
from fedward_common.study.multimodal import Joinable, MultimodalClassification, MultimodalData
from fedward_common.study.notes import NotesData
from fedward_common.study.sequence import Letters
from fedward_common.study.survival import Survival


def multimodal_task(spec: MultimodalClassification | Survival, data: MultimodalData) -> Task:
    """One logit, a logit for each of several classes, or one for each interval of time."""
    if isinstance(spec, Survival):
        return WholeSurvivalTask(spec, data)
    if data.outputs == 1:
        return WholeAnswerTask(data, spec.class_weights)
    return WholeClassesTask(data, spec.class_weights)


class WholeAnswerTask(BinaryObjective):
    """One logit per patient; no and yes may weigh differently."""

    def __init__(self, data: MultimodalData, weights: tuple[float, ...]) -> None:
        super().__init__(weights)
        self.inputs, self._data = data.input_size, data

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up patients of both classes, any modality of whom may be missing."""
        return joined(self._data, device, lambda count: torch.arange(count) % 2)


class WholeClassesTask(ClassesObjective):
    """A logit for each class."""

    def __init__(self, data: MultimodalData, weights: tuple[float, ...]) -> None:
        super().__init__(OneClassTargets(data.outputs), classes=data.outputs, weights=weights)
        self.inputs, self._data = data.input_size, data

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up patients of every class, any modality of whom may be missing."""
        classes = self._data.outputs
        return joined(self._data, device, lambda count: torch.arange(count) % classes)


class WholeSurvivalTask(SurvivalTask):
    """Outputs [patients, intervals], as in a study of one modality."""

    def __init__(self, spec: Survival, data: MultimodalData) -> None:
        super().__init__(spec, inputs=data.input_size)
        self._data = data

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up patients with events and censored follow-up in every interval."""
        return joined(self._data, device, self.days)


def joined(
    data: MultimodalData | DrugTargetData,
    device: torch.device,
    labels: Callable[[int], torch.Tensor],
) -> ExampleRecords:
    """Records whose every part is there or missing in turn, by the bits of a count."""
    makers = [_inputs(part, torch.device("cpu")) for part in data.parts.values()]

    def next_records(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        present = _present(count, makers)
        parts = [make(count)[0] * present[:, n, None] for n, make in enumerate(makers)]
        features = torch.cat([present, *parts], dim=1)
        return features.to(device, torch.float32), labels(count).to(device, torch.float32)

    return next_records


def _present(count: int, makers: Sequence[ExampleRecords]) -> torch.Tensor:
    """Everything of the first patient, of the others what a count leaves out; float32."""
    number = torch.arange(count).unsqueeze(1)
    return ((number >> torch.arange(len(makers))) % 2 == 0).to(torch.float32)


def _inputs(part: Joinable | Smiles | Letters, device: torch.device) -> ExampleRecords:
    """Made-up inputs of one modality: numbers, but for words, which are whole."""
    if isinstance(part, NotesData):
        return NoteAnswerTask(part).examples(device=device)
    if isinstance(part, Letters):
        return made_up_letters(part, device, torch.zeros)
    return made_up(part.input_size, device=device, labels=torch.zeros)
