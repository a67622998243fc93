"""Learning from images: made-up records for the objectives that all sides share."""

import torch

from fedward_client.tasks.made_up import made_up
from fedward_client.tasks.task import ExampleRecords
from fedward_common.models.image_objectives import ClassesObjective, SegmentationObjective, Targets
from fedward_common.models.objectives import BinaryObjective
from fedward_common.study.imaging import ImageMasks, ImageSegmentation

_MOST = 1 << 20


class ImageAnswerTask(BinaryObjective):
    """One logit per image; no and yes may weigh differently."""

    def __init__(self, *, inputs: int, weights: tuple[float, ...]) -> None:
        super().__init__(weights)
        self.inputs = inputs

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up records of both classes."""
        return made_up(self.inputs, device=device, labels=lambda count: torch.arange(count) % 2)


class ImageClassesTask(ClassesObjective):
    """A logit for each class or label."""

    def __init__(
        self, targets: Targets, *, inputs: int, classes: int, weights: tuple[float, ...]
    ) -> None:
        super().__init__(targets, classes=classes, weights=weights)
        self.inputs = inputs
        self._codes = min(targets.largest, _MOST) + 1

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up records of every class, or of several combinations of labels."""
        return made_up(
            self.inputs, device=device, labels=lambda count: torch.arange(count) % self._codes
        )


class SegmentationTask(SegmentationObjective):
    """A logit for each structure and pixel of a patch."""

    def __init__(self, spec: ImageSegmentation, data: ImageMasks) -> None:
        super().__init__(spec, data)
        self.inputs = data.input_size
        self._numbers = len(data.structures) + 1

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up patches in which every structure has the same number of pixels."""
        one = torch.arange(self.inputs) * self._numbers // self.inputs

        def labels(count: int) -> torch.Tensor:
            return torch.stack([one.roll(7 * number) for number in range(count)])

        return made_up(self.inputs, device=device, labels=labels)
