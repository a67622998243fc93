"""Removing one patient, when the coordinator chose the weights to make rounding matter.

In a batch, torch rounds a row by the number of rows and its place among them (CPU: a matrix-vector
kernel for the last rows, another path for 16 rows). Weights that put many equal patients exactly on
an edge turn that last bit into a jump of every one of them.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedward_client.tasks.tabular_classification import TabularClassificationTask
from fedward_client.training.patient_dp.back_end import BackEndName, Chunk
from fedward_client.training.patient_dp.bookkeeping_backend import BookkeepingBackEnd, Geometry
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_client.training.weights import record_scores
from fedward_common.arrays import Tensors
from fedward_common.ids import SiteId
from fedward_common.models.registry import build_model
from fedward_common.privacy.clipping import clip_l2
from fedward_common.privacy.histogram import binned_counts
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.spec import ModelSpec
from tests.support.naive_dp import FirstInLine, NoNoise
from tests.support.studies import make_data, make_dp, make_spec

INPUTS = 30
COLUMNS = [
    {"name": f"c{i}", "type": "number", "unit": "mm", "low": -1.0, "high": 1.0}
    for i in range(INPUTS)
]
PATIENTS = 24
CLIP = 1.0


def hostile_rows(*, outputs: int, sizes: tuple[int, int]) -> Iterator[tuple[torch.Tensor, ...]]:
    """(a patient, a weight matrix, the biases that put him on the edge in one of two batches)."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        row = 2 * torch.rand(INPUTS, generator=generator) - 1
        weight = torch.zeros(outputs, INPUTS)
        weight[0] = torch.randn(INPUTS, generator=generator)
        logits = [functional.linear(row.expand(size, -1).clone(), weight)[:, 0] for size in sizes]
        yield row, weight, -torch.unique(torch.cat(logits))


def equal_patients(row: torch.Tensor, patients: int) -> PatientRecords:
    return PatientRecords(
        features=np.tile(row.numpy(), (patients, 1)),
        labels=np.ones(patients, dtype=np.float32),
        patient=np.arange(patients),
    )


def test_one_held_out_patient_moves_the_counts_by_1_under_weights_made_to_tip_all_scores() -> None:
    """Scored in one batch, 24 patients against 23 moved the counts by 5."""
    study = make_spec(data=make_data(columns=COLUMNS))

    def counts(weights: Tensors, row: torch.Tensor, patients: int) -> np.ndarray:
        records = equal_patients(row, patients)
        scores = record_scores(study, weights, records.features)
        return binned_counts(scores, records.labels, records.patient, bins=4)

    moved = []
    for row, weight, biases in hostile_rows(outputs=1, sizes=(PATIENTS, PATIENTS - 1)):
        for bias in biases:
            weights = {"linear.weight": weight.numpy(), "linear.bias": bias[None].numpy()}
            difference = counts(weights, row, PATIENTS) - counts(weights, row, PATIENTS - 1)
            moved.append(float(np.linalg.norm(difference)))

    assert max(moved) == 1.0


@pytest.mark.parametrize("backend", ["auto", "loop", "bookkeeping"])
def test_one_patient_moves_the_update_by_c_under_weights_made_to_tip_every_relu(
    backend: BackEndName,
) -> None:
    """With the back end `opacus`, 16 patients against 15 moved it by 22 C."""
    study = make_spec(
        data=make_data(columns=COLUMNS),
        model={"name": "mlp", "hidden": [2]},
        dp=make_dp(steps=1, sampling_probability=1.0, clip_norm=CLIP, max_records_per_patient=1),
        training={"learning_rate": 1.0},
        rounds=1,
        local_steps=1,
    )
    site = SiteId(study.sites[0].id)

    def update(weights: Tensors, row: torch.Tensor, patients: int) -> np.ndarray:
        trainer = LocalTrainer(
            study,
            site,
            sampling=FirstInLine(),
            noise=NoNoise(),
            flags=PerformanceFlags(backend=backend, max_records_per_chunk=16),
        )
        tensors = trainer.train(weights, equal_patients(row, patients)).tensors
        steps = [(tensors[name] - weights[name]).ravel() for name in sorted(weights)]
        return np.concatenate(steps) * study.sites[0].patients

    moved = []
    rows = hostile_rows(outputs=2, sizes=(16, 15))
    for row, weight, biases in itertools.islice(rows, 60 if backend == "loop" else 15):
        for bias in biases:
            weights = {
                "hidden.0.weight": weight,
                "hidden.0.bias": torch.stack([bias, torch.tensor(0.0)]),
                "hidden.1.weight": torch.ones(2),
                "hidden.1.bias": torch.zeros(2),
                "output.weight": torch.tensor([[50.0, 0.0]]),
                "output.bias": torch.zeros(1),
            }
            arrays = {name: tensor.numpy() for name, tensor in weights.items()}
            moved.append(float(np.linalg.norm(update(arrays, row, 16) - update(arrays, row, 15))))

    assert max(moved) <= 1.001 * CLIP  # the update is float32
    assert max(moved) > 0.9 * CLIP


@pytest.mark.parametrize("slots", [5, 16])
def test_one_patient_moves_the_bookkept_sum_by_c_to_1e_6_under_weights_made_to_tip_every_relu(
    slots: int,
) -> None:
    """The sum itself, in float64; the same step with the back end `opacus` moved it by 22 C."""
    model = build_model(ModelSpec(name="mlp", hidden=(2,)), INPUTS)
    loss = TabularClassificationTask(inputs=INPUTS).losses
    made = BookkeepingBackEnd(model, loss=loss, geometry=Geometry(slots=slots, records=1))

    def total(row: torch.Tensor, patients: int) -> torch.Tensor:
        chunk = Chunk(
            features=row.expand(patients, -1).clone(),
            labels=torch.ones(patients),
            sizes=torch.ones(patients, dtype=torch.int64),
        )
        blocks = torch.cat(list(made.patient_gradients(chunk)))
        return clip_l2(blocks, clip_norm=CLIP).sum(dim=0)

    moved = []
    for row, weight, biases in hostile_rows(outputs=2, sizes=(16, 15)):
        for bias in biases:
            weights = {
                "hidden.0.weight": weight,
                "hidden.0.bias": torch.stack([bias, torch.tensor(0.0)]),
                "hidden.1.weight": torch.ones(2),
                "hidden.1.bias": torch.zeros(2),
                "output.weight": torch.tensor([[50.0, 0.0]]),
                "output.bias": torch.zeros(1),
            }
            model.load_state_dict(weights)
            moved.append(float((total(row, 16) - total(row, 15)).norm()))

    assert max(moved) <= (1 + 1e-6) * CLIP
    assert max(moved) > 0.9 * CLIP


class SigmoidThenRelu(nn.Module):
    """A sigmoid whose last bit a ReLU turns into a jump."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(1, 1), nn.Sigmoid(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)
        )

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        return self.layers(records).squeeze(-1)


def test_a_bookkept_patient_at_the_end_of_every_batch_tips_no_other_one() -> None:
    """33 places: torch computes the 33rd number outside its vectors and rounds 3 of 100 otherwise.

    With batches of just 33 rows, one patient less moved this sum by 9 C.
    """
    slots, batches = 33, 8
    model = SigmoidThenRelu()
    loss = TabularClassificationTask(inputs=1).losses
    made = BookkeepingBackEnd(model, loss=loss, geometry=Geometry(slots=slots, records=1))

    def total(values: torch.Tensor) -> torch.Tensor:
        ones = torch.ones(len(values))
        chunk = Chunk(features=values[:, None], labels=ones, sizes=ones.to(torch.int64))
        blocks = torch.cat(list(made.patient_gradients(chunk)))
        return clip_l2(blocks, clip_norm=CLIP).sum(dim=0)

    moved = []
    for value in torch.linspace(0.1, 2.0, 100):
        edges = torch.sigmoid(value.expand(slots).clone())
        weights = [[[1.0]], [0.0], [[1.0]], [-float(edges.min())], [[50.0]], [0.0]]
        pairs = zip(model.state_dict(), weights, strict=True)
        model.load_state_dict({name: torch.tensor(weight) for name, weight in pairs})
        people = torch.full((slots * batches,), -1.0)
        people[slots - 1 :: slots] = value
        moved.append(float((total(people) - total(people[1:])).norm()))

    assert max(moved) <= (1 + 1e-6) * CLIP
