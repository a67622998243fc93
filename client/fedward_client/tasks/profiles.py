"""Classes from profiles: made-up records for the objectives that all sides share."""

import torch

from fedward_client.tasks.made_up import made_up
from fedward_client.tasks.task import ExampleRecords, Task
from fedward_common.models.image_objectives import ClassesObjective, OneClassTargets
from fedward_common.models.objectives import BinaryObjective
from fedward_common.study.profiles import ExpressionClassification, ProfileData


def profile_task(spec: ExpressionClassification, data: ProfileData) -> Task:
    """The task of a study of classes from profiles."""
    if data.outputs == 1:
        return ProfileAnswerTask(data, spec.class_weights)
    return ProfileClassesTask(data, spec.class_weights)


class ProfileAnswerTask(BinaryObjective):
    """One logit per profile; no and yes may weigh differently."""

    def __init__(self, data: ProfileData, weights: tuple[float, ...]) -> None:
        super().__init__(weights)
        self.inputs = data.input_size

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up profiles of both classes."""
        return made_up(self.inputs, device=device, labels=lambda count: torch.arange(count) % 2)


class ProfileClassesTask(ClassesObjective):
    """A logit for each class."""

    def __init__(self, data: ProfileData, weights: tuple[float, ...]) -> None:
        super().__init__(OneClassTargets(data.outputs), classes=data.outputs, weights=weights)
        self.inputs, self._classes_here = data.input_size, data.outputs

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up profiles of every class."""
        classes = self._classes_here
        return made_up(
            self.inputs, device=device, labels=lambda count: torch.arange(count) % classes
        )
