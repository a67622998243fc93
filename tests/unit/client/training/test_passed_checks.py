"""A slot check that passed is shared with later tasks of the worker, and with nobody else."""

import os
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fedward_client.training.patient_dp import passed_checks as module
from fedward_client.training.patient_dp.bookkeeping_backend import BookkeepingBackEnd, Geometry
from fedward_client.training.patient_dp.passed_checks import (
    PassedChecks,
    check_key,
    check_slots_once,
)
from fedward_common.errors import ModelRefused
from fedward_common.ids import Digest

A, B = Digest("a" * 64), Digest("b" * 64)
GEOMETRY = Geometry(slots=3, records=2)


def losses(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (outputs.squeeze(-1) - labels) ** 2


def examples(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 4), torch.zeros(count)


def in_a_child(work: Callable[[], bool]) -> bool:
    """What `work` says in a process that was forked from this one."""
    child = os.fork()
    if child == 0:
        os._exit(0 if work() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_one_task_found_the_next_one_knows() -> None:
    passed = PassedChecks()

    assert in_a_child(lambda: passed.add(A) is None and A in passed)

    assert A in passed
    assert in_a_child(lambda: A in passed and B not in passed)


def test_a_task_that_is_separate_vouches_for_nobody_else() -> None:
    passed = PassedChecks()
    passed.add(A)

    def plugin() -> bool:
        passed.separate()
        passed.separate()
        passed.add(B)
        return A in passed and B in passed

    assert in_a_child(plugin)
    assert B not in passed


def test_when_there_is_no_room_nothing_is_forgotten_and_nothing_believed() -> None:
    passed = PassedChecks()
    many = [Digest(f"{number:064x}") for number in range(1, 600)]

    for key in many:
        passed.add(key)

    assert many[0] in passed
    assert many[511] in passed
    assert many[512] not in passed


@pytest.mark.parametrize("what", ["study", "layer", "frozen", "loss", "geometry"])
def test_whatever_a_check_depends_on_is_in_its_key(what: str) -> None:
    def other(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return losses(outputs, labels)

    model = nn.Sequential(nn.Linear(4, 1))
    changed = (
        nn.Sequential(nn.Linear(4, 1), nn.ReLU())
        if what == "layer"
        else nn.Sequential(nn.Linear(4, 1))
    )
    if what == "frozen":
        changed[0].weight.requires_grad_(False)

    key = check_key(A, model, loss=losses, geometry=GEOMETRY)
    again = check_key(A, nn.Sequential(nn.Linear(4, 1)), loss=losses, geometry=GEOMETRY)
    found = check_key(
        B if what == "study" else A,
        changed,
        loss=other if what == "loss" else losses,
        geometry=Geometry(slots=4, records=2) if what == "geometry" else GEOMETRY,
    )

    assert key == again != found


def test_a_check_that_passed_is_run_once_and_a_refusal_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passed, runs = PassedChecks(), []
    monkeypatch.setattr(module, "passed_checks", lambda: passed)

    class Counted(BookkeepingBackEnd):
        def evidence(self, batch: object) -> torch.Tensor:
            runs.append(1)
            found = super().evidence(batch)
            if broken:
                found[1] = found[1] * (1 + 2**-23)
            return found

    def check() -> int:
        runs.clear()
        model = nn.Sequential(nn.Linear(4, 1))
        made = Counted(model, loss=losses, geometry=GEOMETRY)
        check_slots_once(made, model, loss=losses, examples=examples, study=A)
        return len(runs)

    broken = True
    for _ in range(2):
        with pytest.raises(ModelRefused, match="other bits"):
            check()
    broken = False

    assert check() > 0
    assert check() == 0
