"""Which phases are open at this site. Memory only: after a restart every phase is over.

A phase lets nothing out that a message would not: each step in it is admitted, charged, sealed and
released like any instruction. What is kept here is only whether the gateway may open a stream.
"""

from collections import OrderedDict
from typing import Final

from fedward_common.wire import Instruction

MAX_PHASES: Final = 64


class Phases:
    """The open phase of each study, by the instruction that opened it last."""

    def __init__(self) -> None:
        self._by_study: OrderedDict[str, frozenset[str]] = OrderedDict()

    def open(self, instruction: Instruction, object_ids: frozenset[str]) -> None:
        """A phase begins; `object_ids` carry the answer that will end it."""
        self._by_study[instruction.study] = object_ids
        self._by_study.move_to_end(instruction.study)
        while len(self._by_study) > MAX_PHASES:
            self._by_study.popitem(last=False)

    def is_open(self, study: str) -> bool:
        """Whether a phase of the study began here and its answer did not leave yet."""
        return study in self._by_study

    def released(self, object_ids: frozenset[str]) -> None:
        """An answer left: the phase that it ends is over."""
        for study, ending in list(self._by_study.items()):
            if ending == object_ids:
                del self._by_study[study]
