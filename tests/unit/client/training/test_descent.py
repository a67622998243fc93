"""The site's optimisers are torch's, bit for bit, and load no compiler."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fedward_client.training.descent import ADAM_BETAS, ADAM_EPSILON, LocalDescent
from tests.support.studies import make_spec

RATE = 0.05
WITHOUT_COMPILER = """
import sys
import torch
from fedward_client.training.descent import LocalDescent
from fedward_client.training.patient_dp.slot_check import _Recorded
from tests.support.studies import make_spec

for name in ("sgd", "adam"):
    study = make_spec(training={"learning_rate": 0.1, "optimizer": name})
    descent = LocalDescent(study, [torch.nn.Parameter(torch.ones(3))])
    descent.step(torch.ones(3, dtype=torch.float64))
with _Recorded() as recorded:
    torch.ones(3).sum()
sys.exit("torch._dynamo" in sys.modules or "sum" not in recorded.names)
"""


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 3), (7,))]


@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01},
        {"optimizer": "adam"},
        {"optimizer": "adam", "weight_decay": 0.01},
    ],
)
def test_steps_are_those_of_torch_s_optimisers_bit_for_bit(training: dict[str, float]) -> None:
    ours, torchs = parameters(), parameters()
    decay, momentum = training.get("weight_decay", 0.0), training.get("momentum", 0.0)
    reference: torch.optim.Optimizer = torch.optim.SGD(
        torchs, lr=RATE, momentum=momentum, weight_decay=decay
    )
    if training["optimizer"] == "adam":
        reference = torch.optim.AdamW(
            torchs, lr=RATE, betas=ADAM_BETAS, eps=ADAM_EPSILON, weight_decay=decay
        )
    descent = LocalDescent(make_spec(training={"learning_rate": RATE} | training), ours)
    generator = torch.Generator().manual_seed(2)

    for number in range(10):
        rate = RATE / (1 + number)
        gradient = torch.randn(22, generator=generator, dtype=torch.float64)
        descent.step(gradient, rate=rate)
        for parameter, part in zip(torchs, torch.split(gradient, [15, 7]), strict=True):
            parameter.grad = part.view_as(parameter).float()
        reference.param_groups[0]["lr"] = rate
        reference.step()

    for one, other in zip(ours, torchs, strict=True):
        assert torch.equal(one, other)


def test_a_step_and_the_slot_check_load_no_compiler() -> None:
    """Two seconds of every process that trains; nothing here is ever compiled."""
    root = Path(__file__).parents[4]
    subprocess.run([sys.executable, "-c", WITHOUT_COMPILER], check=True, cwd=root)
