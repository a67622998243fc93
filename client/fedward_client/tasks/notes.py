"""A binary answer from notes, and the tags of their words."""

from collections.abc import Callable

import torch

from fedward_client.tasks.task import ExampleRecords
from fedward_common.models.image_objectives import ClassesObjective, OneClassTargets
from fedward_common.models.objectives import BinaryObjective
from fedward_common.models.text_objectives import NO_TAG, TaggingObjective
from fedward_common.study.notes import MARKS, NotesData, TagLabel


class NoteAnswerTask(BinaryObjective):
    """One logit per note."""

    def __init__(self, data: NotesData) -> None:
        super().__init__()
        self.inputs, self._data = data.input_size, data

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up notes of both classes."""
        return _made_up(self._data, device, lambda count: torch.arange(count) % 2)


class NotePairsTask(ClassesObjective):
    """A logit for each relation of a marked pair, and for none."""

    def __init__(self, data: NotesData, weights: tuple[float, ...]) -> None:
        targets = OneClassTargets(data.outputs)
        super().__init__(targets, classes=data.outputs, weights=weights)
        self.inputs, self._data = data.input_size, data

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up texts of every class, most of them with both entities."""
        return _made_up(self._data, device, lambda count: torch.arange(count) % self._classes)


class NoteTagsTask(TaggingObjective):
    """A logit for each tag of each word."""

    def __init__(self, data: NotesData, label: TagLabel) -> None:
        super().__init__(label)
        self.inputs, self._data = data.input_size, data

    def examples(self, *, device: torch.device) -> ExampleRecords:
        """Made-up texts with every tag."""
        words, tags = self._data.tokeniser.max_tokens, len(self._tags)

        def labels(count: int) -> torch.Tensor:
            codes = (torch.arange(count).unsqueeze(1) + torch.arange(words)) % tags
            there = _lengths(count, words).unsqueeze(1) > torch.arange(words)
            return torch.where(there, codes.to(torch.float32), NO_TAG)

        return _made_up(self._data, device, labels)


def _made_up(
    data: NotesData, device: torch.device, labels: Callable[[int], torch.Tensor]
) -> ExampleRecords:
    """Notes of several lengths whose ids follow a fixed rule, other ones at every call."""
    tokeniser, calls = data.tokeniser, iter(range(1 << 30))

    def next_records(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        start = next(calls) * 7919
        place = torch.arange(count * tokeniser.max_tokens * tokeniser.ids) + start
        ids = 1 + (place * 104_729) % (tokeniser.size - 1)
        ids = ids.reshape(count, tokeniser.max_tokens, tokeniser.ids)
        there = _lengths(count, tokeniser.max_tokens).unsqueeze(1) > torch.arange(
            tokeniser.max_tokens
        )
        if data.names:
            ids = _with_marks(data, ids)
        features = (ids * there.unsqueeze(-1)).reshape(count, -1)
        return features.to(device, torch.float32), labels(count).to(device, torch.float32)

    return next_records


def _with_marks(data: NotesData, ids: torch.Tensor) -> torch.Tensor:
    """`ids` [records, tokens, ids] with the marks of a pair; of the second not in every record."""
    ids = ids.clone()
    words = ids.shape[1]
    for number in range(len(MARKS)):
        place = min(number * words // len(MARKS) + 1, words - 1)
        ids[number // 2 :: 3, place] = data.tokeniser.size + number
        ids[1::2, place] = data.tokeniser.size + number
    return ids


def _lengths(count: int, most: int) -> torch.Tensor:
    """How many words each made-up note has."""
    return most - (torch.arange(count) * 3) % max(1, most // 2)
