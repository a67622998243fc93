"""What the federated model is compared with: the same model without privacy, pooled and alone.

Only the sandbox can do this: its parent owns a copy of every hospital's table. Both comparators get
what the study got, the same encoding and model, and their penalty is tuned on training patients.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize  # type: ignore[import-untyped]
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import nn

from fedward_common.arrays import Array
from fedward_common.ids import SiteId
from fedward_common.models.autoencoder import with_chance
from fedward_common.models.objectives import objective_of
from fedward_common.models.registry import build_model, model_shapes, model_tensors
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.generation import Generation
from fedward_common.study.imaging import ImageMasks, Pictures
from fedward_common.study.labelled_rows import LabelledRows
from fedward_common.study.multimodal import MultimodalData
from fedward_common.study.notes import NotesData
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_server.sandbox.made_up_rows import fit_generator

PENALTIES: Final = (1e-4, 1e-3, 1e-2, 1e-1)
"""L2 penalties to choose from, on the scale of `training.weight_decay`."""
FOLDS: Final = 5
ITERATIONS: Final = 200
EPOCHS: Final = 15
LEAST_STEPS: Final = 400
"""Of a network of time series or notes, however few records there are."""
BATCH: Final = 128
PATCH_BATCH: Final = 8
"""Patches are as large as many images."""
LEARNING_RATE: Final = 3e-3
MOST_MINIMISED: Final = 50_000
"""Numbers of a model: above it, cross-validated second-order minimisation takes minutes a site."""


def pooled_no_privacy(
    study: StudySpec, training: Mapping[SiteId, PatientRecords]
) -> dict[str, Array]:
    """The study's model trained on all hospitals' training patients in one place, no noise.

    Every patient counts once. What a federation that trusted everybody could reach.
    """
    return fit(study, pool(list(training.values())))


def each_site_alone(
    study: StudySpec, training: Mapping[SiteId, PatientRecords]
) -> dict[SiteId, dict[str, Array]]:
    """For each hospital, the study's model trained on its own training patients only, no noise."""
    return {site: fit(study, records) for site, records in training.items()}


def pool(parts: Sequence[PatientRecords]) -> PatientRecords:
    """The records of several hospitals as one table; patients stay apart."""
    starts = np.cumsum([0, *(part.patients for part in parts)])
    return PatientRecords(
        features=np.concatenate([part.features for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        patient=np.concatenate(
            [part.patient + start for part, start in zip(parts, starts, strict=False)]
        ),
    )


def fit(
    study: StudySpec, records: PatientRecords, *, penalty: float | None = None
) -> dict[str, Array]:
    """The study's model at the minimum of the mean patient loss plus penalty / 2 |weights|^2.

    Without `penalty` it is chosen by `choose_penalty`. Deterministic.
    """
    if isinstance(study.task, Generation):
        return fit_generator(study, records)
    rows = isinstance(study.data, LabelledRows) and (study.model.hidden or study.model.fusion)
    networks = Pictures | NotesData | MultimodalData
    autoencoder = study.model.name.endswith("autoencoder")
    shapes = model_shapes(study.model, records.features.shape[1])
    large = sum(map(math.prod, shapes.values())) > MOST_MINIMISED
    if isinstance(study.data, networks) or rows or study.model.steps or autoencoder or large:
        return model_tensors(descend(study, records))
    # So little arithmetic at a time that a second thread costs fifty times what it does.
    with threadpool_limits(limits=1):
        if penalty is None:
            penalty = choose_penalty(study, records)
        return model_tensors(_minimum(study, records, penalty=penalty).float())


def descend(study: StudySpec, records: PatientRecords) -> nn.Module:
    """The study's network after `EPOCHS` passes of Adam, or more where those are few steps; for
    images, time series and notes.

    With masks a pass sees as many patches of all patients as a step of the study at most does.

    Fixed numbers, nothing tuned: second-order minimisation of a network has no one minimum.
    """
    objective = objective_of(study)
    model = build_model(study.model, records.features.shape[1]).train()
    seen, batch = len(records.labels), BATCH
    if isinstance(study.data, ImageMasks) and isinstance(study.dp, DpSgd):
        seen = min(seen, records.patients * study.dp.max_records_per_patient)
        batch = PATCH_BATCH
    batches = -(-seen // batch)
    few = 0 if isinstance(study.data, Pictures) else -(-LEAST_STEPS // batches)
    epochs = max(EPOCHS, few)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=LEARNING_RATE,
        total_steps=epochs * batches,
    )
    features, labels = torch.from_numpy(records.features), torch.from_numpy(records.labels)
    _, sizes = np.unique(records.patient, return_counts=True)
    weights = torch.from_numpy((1.0 / sizes)[records.patient].astype(np.float32))
    order = torch.Generator().manual_seed(study.model.initial_seed)
    for _ in range(epochs):
        shuffled = torch.randperm(len(labels), generator=order)
        for start in range(0, seen, batch):
            rows = shuffled[start : min(start + batch, seen)]
            drawn = with_chance(features[rows], study.model, order)
            losses = objective.losses(model(drawn), labels[rows])
            optimizer.zero_grad()
            loss = (losses * weights[rows]).sum() / weights[rows].sum()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model


def choose_penalty(study: StudySpec, records: PatientRecords) -> float:
    """The penalty with the smallest cross-validated loss, every fifth patient left out in turn.

    The largest one where there are too few patients for that.
    """
    penalties = sorted({*PENALTIES, study.training.weight_decay} - {0.0})
    if records.patients < 2 * FOLDS:
        return penalties[-1]

    def loss(penalty: float) -> float:
        total = 0.0
        for fold in range(FOLDS):
            left_out = records.patient % FOLDS == fold
            model = _minimum(study, _some(records, ~left_out), penalty=penalty)
            with torch.inference_mode():
                total += float(_PatientLoss(study, _some(records, left_out))(model))
        return total

    return min(penalties, key=loss)


def _some(records: PatientRecords, chosen: np.ndarray) -> PatientRecords:
    _, patient = np.unique(records.patient[chosen], return_inverse=True)
    return PatientRecords(
        features=records.features[chosen],
        labels=records.labels[chosen],
        patient=patient.astype(np.int64),
    )


def _minimum(study: StudySpec, records: PatientRecords, *, penalty: float) -> nn.Module:
    # float64: with separable classes the last steps of the line search need more than float32.
    model = build_model(study.model, records.features.shape[1]).double().train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    loss_of = _PatientLoss(study, records)

    def value_and_gradient(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        vector = torch.from_numpy(flat)
        nn.utils.vector_to_parameters(vector.clone(), parameters)
        loss = loss_of(model)
        parts = torch.autograd.grad(loss, parameters)
        gradient = torch.cat([part.reshape(-1) for part in parts]) + penalty * vector
        return float(loss.detach()) + 0.5 * penalty * float(vector @ vector), gradient.numpy()

    start = nn.utils.parameters_to_vector(parameters).detach().numpy().copy()
    found = minimize(
        value_and_gradient,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": ITERATIONS, "maxcor": 20, "ftol": 1e-14, "gtol": 1e-7},
    )
    nn.utils.vector_to_parameters(torch.from_numpy(found.x), parameters)
    return model.eval()


class _PatientLoss:
    """The mean over patients of the mean loss of their records, as in the study's training."""

    def __init__(self, study: StudySpec, records: PatientRecords) -> None:
        _, position, size = np.unique(records.patient, return_inverse=True, return_counts=True)
        self._weights = torch.from_numpy((1.0 / size)[position] / len(size))
        self._features = torch.from_numpy(records.features).double()
        self._labels = torch.from_numpy(records.labels).double()
        self._objective = objective_of(study)

    def __call__(self, model: nn.Module) -> torch.Tensor:
        """The loss of `model` on the records."""
        losses = self._objective.losses(model(self._features), self._labels)
        return (self._weights * losses).sum()
