"""Which slot checks have passed since the worker started, so that each is run once and not a round.

A check depends on the study's model and loss, on the geometry, the machine and the code, and on no
weights and no patient. The worker forks every task from one warm process; what a task has found is
shared with the later ones through memory that this process made before it forked. It is gone when
the worker ends: nothing is believed from a disk, another machine or another start.
"""

import mmap
from functools import cache
from typing import Final

from torch import nn

from fedward_client.tasks.task import ExampleRecords, LossFunction
from fedward_client.training.patient_dp.bookkeeping_backend import BookkeepingBackEnd, Geometry
from fedward_client.training.patient_dp.slot_check import check_slots
from fedward_common.canonical import canonical_json, sha256_hex
from fedward_common.ids import Digest

_SIZE: Final = 32
_MOST: Final = 512
"""So many checks are kept; what comes later is checked each time."""


class PassedChecks:
    """A set of digests in memory that processes forked later share; no digest is ever taken out.

    Written without a lock: of two tasks at the same moment one may lose its entry, or both leave a
    mixture that is the digest of nothing. Then a check is run once more.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SIZE * _MOST)
        self._shared = True

    def __contains__(self, key: Digest) -> bool:
        return bytes.fromhex(key) in self._entries()

    def add(self, key: Digest) -> None:
        """Remembers that the check of `key` has passed, where there is room."""
        entries = self._entries()
        if bytes.fromhex(key) not in entries and bytes(_SIZE) in entries:
            first = entries.index(bytes(_SIZE)) * _SIZE
            self._memory[first : first + _SIZE] = bytes.fromhex(key)

    def separate(self) -> None:
        """From here on this process has a copy of its own: a plugin must not vouch for others.

        Call it before foreign code is loaded.
        """
        if self._shared:
            own = mmap.mmap(-1, _SIZE * _MOST, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            own[:] = self._memory[:]
            self._memory.close()
            self._memory, self._shared = own, False

    def _entries(self) -> list[bytes]:
        held = self._memory[:]
        return [held[start : start + _SIZE] for start in range(0, len(held), _SIZE)]


@cache
def passed_checks() -> PassedChecks:
    """The set of this process and of all that are forked from it after the first call."""
    return PassedChecks()


def check_slots_once(
    back_end: BookkeepingBackEnd,
    model: nn.Module,
    *,
    loss: LossFunction,
    examples: ExampleRecords,
    study: Digest,
) -> None:
    """Returns when `check_slots` passes, or has passed for the same study since the worker started.

    Raises:
        ModelRefused: as `check_slots`; a refusal is not remembered.
    """
    key = check_key(study, model, loss=loss, geometry=back_end.geometry)
    passed = passed_checks()
    if key not in passed:
        check_slots(back_end, model, loss=loss, examples=examples)
        passed.add(key)


def check_key(study: Digest, model: nn.Module, *, loss: LossFunction, geometry: Geometry) -> Digest:
    """What a slot check holds for: the study's digest, the layers as they were built, the shape."""
    layers = [
        [name, f"{type(layer).__module__}.{type(layer).__qualname__}", layer.extra_repr()]
        for name, layer in model.named_modules()
    ]
    numbers = [[name, list(p.shape), p.requires_grad] for name, p in model.named_parameters()]
    return Digest(
        sha256_hex(
            canonical_json(
                {
                    "study": study,
                    "layers": layers,
                    "parameters": numbers,
                    "loss": f"{loss.__module__}.{getattr(loss, '__qualname__', type(loss))}",
                    "geometry": [geometry.slots, geometry.records],
                }
            )
        )
    )
