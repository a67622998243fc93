"""Weights from the wire into a model, and a model's scores from weights."""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedward_client.tasks.registry import task_of
from fedward_common.arrays import Tensors
from fedward_common.errors import ProtocolError
from fedward_common.models.registry import build_model, load_tensors
from fedward_common.study.spec import StudySpec


def load_weights(model: nn.Module, weights: Tensors) -> None:
    """Copies `weights` into `model`, names and shapes exactly those of `model_tensors`.

    Raises:
        ProtocolError: a name, a shape or a type differs, or a number is not finite.
    """
    for name, array in weights.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise ProtocolError(f"weights {name}: expected finite float32 numbers, found others")
    load_tensors(model, weights)


def record_scores(
    study: StudySpec, weights: Tensors, features: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """The score in [0, 1] of each row of `features` [records, inputs] under `weights`.

    Scores are patient data: only a charged mechanism may release something made of them (rules 7).
    The score of a record has the same bits whatever the other rows are: each is computed alone.
    In a batch, torch rounds a row by how many rows there are and where it stands; weights that put
    24 patients on the edge of a bin then moved the counts by 5 instead of 1 when one patient left.

    Raises:
        ProtocolError: `weights` are not the finite weights of the study's model.
        ConfigError: a task or model that this installation does not have.
    """
    task = task_of(study)
    model = build_model(study.model, task.inputs).eval()
    load_weights(model, weights)
    with torch.inference_mode():
        # A fresh tensor for each record: its alignment in memory does not depend on its row either.
        alone = [task.scores(model(torch.tensor(row[None]))).numpy() for row in features]
    return np.concatenate([np.zeros(0), *alone])
