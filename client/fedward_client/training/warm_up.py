"""What a task would import on first use, imported before the worker forks its tasks."""

import torch

from fedward_client.training.patient_dp.passed_checks import passed_checks
from fedward_common.models.dp_layers import load_opacus
from fedward_common.models.registry import build_model
from fedward_common.study.spec import ModelSpec


def warm_up(*, opacus: bool, images: bool) -> None:
    """Loads what training needs by one step on a made-up record; keeps nothing, forks nothing.

    Opacus takes about a second, what decodes images a third; a forked task inherits both.
    """
    torch.set_num_threads(1)  # a forked child must not inherit a thread pool that is gone
    passed_checks()  # made here, it is shared by all tasks
    model = build_model(ModelSpec(name="logistic-regression"), 1)
    model(torch.ones(1, 1)).sum().backward()
    if opacus:
        load_opacus()
    if images:
        import fedward_client.data.image_files  # noqa: F401, PLC0415 - only who needs it pays
