"""One step of the pooled data a round, without noise: what distributed mode does, for figures."""

from collections.abc import Mapping

import torch

from fedward_client.tasks.registry import task_of
from fedward_common.arrays import Tensors
from fedward_common.ids import SiteId
from fedward_common.models.registry import build_model, model_tensors
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.inputs import input_size
from fedward_common.study.spec import StudySpec

RATE = 0.02
ROUNDS = 300
C = 0.1
"""The strength of the penalty as scikit-learn counts it: the best of {0.02, 0.1, 0.3, 1} in 5-fold
cross-validation on PhysioNet's set A, taken for every study; nothing is tuned on the others."""


def pooled_steps(study: StudySpec, training: Mapping[SiteId, PatientRecords]) -> Tensors:
    """The model after `ROUNDS` steps of Adam at the coordinator, each on the sum of the sites'
    full gradients; |weights|^2 / (2 C) is added to the sum of the losses.

    No site's model drifts from the others': every round is one step on everybody's patients.
    """
    task, model = task_of(study), build_model(study.model, input_size(study.data))
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, ROUNDS)
    patients = sum(records.patients for records in training.values())
    tables = [
        (torch.from_numpy(records.features), torch.from_numpy(records.labels))
        for records in training.values()
    ]
    for _ in range(ROUNDS):
        optimiser.zero_grad()
        for features, labels in tables:  # gradients add up, as sums over sites do
            (task.losses(model(features), labels).sum() / patients).backward()
        size = sum((p.square().sum() for p in model.parameters()), torch.zeros(()))
        (size / (2.0 * C * patients)).backward()
        optimiser.step()
        schedule.step()
    return model_tensors(model)
