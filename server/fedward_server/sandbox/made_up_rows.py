"""Generators in the sandbox: without privacy, and how well what they make passes for real."""

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from fedward_common.arrays import Array, Tensors
from fedward_common.errors import ConfigError
from fedward_common.models.autoencoder import with_chance
from fedward_common.models.gan import Gan
from fedward_common.models.generator_descent import GeneratorDescent, drawn_classes
from fedward_common.models.objectives import objective_of
from fedward_common.models.registry import build_model, load_tensors, model_tensors
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.generation import Generation
from fedward_common.study.inputs import input_size, inputs_of
from fedward_common.study.spec import StudySpec
from fedward_server.sandbox.measures import SMALLEST_CLASS

SEED: Final = 20261127
HALVES: Final = 2
MOST_PRODUCTS: Final = 64
STEPS: Final = 1000
BATCH: Final = 128
RATE: Final = 0.1
FITTED: Final = 2000

Floats = npt.NDArray[np.float64]


def fit_generator(study: StudySpec, records: PatientRecords) -> dict[str, Array]:
    """The study's model after `STEPS` steps of the discriminator on all records in one place, each
    followed by the coordinator's own of the generator; no noise.

    Fixed numbers, nothing tuned. Descent without momentum: with it the two chase each other.
    """
    model = build_model(study.model, records.features.shape[1]).train()
    objective, generator = objective_of(study), GeneratorDescent(study)
    _, sizes = np.unique(records.patient, return_counts=True)
    chances = torch.from_numpy((1.0 / sizes)[records.patient])
    features, labels = torch.from_numpy(records.features), torch.from_numpy(records.labels)
    order = torch.Generator().manual_seed(study.model.initial_seed)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=RATE)
    for _ in range(STEPS):
        rows = torch.multinomial(chances, BATCH, replacement=True, generator=order)
        judged = model(with_chance(features[rows], study.model, order))
        optimizer.zero_grad()
        loss = objective.losses(judged, labels[rows]).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        load_tensors(model, generator.after_round(model_tensors(model)))
    return model_tensors(model)


def told_apart(study: StudySpec, tensors: Tensors, records: PatientRecords) -> dict[str, float]:
    """`told_apart`: the AUC of a logistic regression, on inputs and (of up to 64) their squares and
    products, that tells held-out records from as many generated ones; 0.5 where they pass.

    Each half is judged by a regression fitted on the other (Lopez-Paz and Oquab 2017).
    """
    real = records.features.astype(np.float64)
    made, _ = _generated(study, tensors, len(real))
    for first, end in inputs_of(study.data).categories:
        made[:, first:end] = np.round(made[:, first:end])
    both = _products(np.concatenate([real, made.astype(np.float64)]))
    truth = np.repeat([1, 0], len(real))
    # Shuffled: rows in an order of their own must not make the halves unlike.
    half = np.random.default_rng(SEED).permutation(np.arange(len(both)) % HALVES)
    scores = np.zeros(len(both))
    for one in range(HALVES):
        fitted = LogisticRegression(max_iter=2000).fit(both[half != one], truth[half != one])
        scores[half == one] = fitted.decision_function(both[half == one])
    parts = [float(roc_auc_score(truth[half == one], scores[half == one])) for one in range(HALVES)]
    return {"told_apart": float(np.mean(parts))}


def tested_on_real(study: StudySpec, tensors: Tensors, records: PatientRecords) -> dict[str, float]:
    """`synthetic_trained_auc`: of a logistic regression on held-out records that was fitted on
    `FITTED` generated ones, one class against the rest, mean over the classes; train on synthetic,
    test on real (Esteban et al. 2017). Nothing where generated records have no class.
    """
    made, classes = _generated(study, tensors, FITTED)
    if classes is None:
        return {}
    aucs = []
    for one in range(study.model.outputs):
        truth, learned = records.labels == one, classes == one
        if min(truth.sum(), (~truth).sum(), learned.sum(), (~learned).sum()) < SMALLEST_CLASS:
            continue
        fitted = LogisticRegression(max_iter=2000).fit(made, learned)
        aucs.append(float(roc_auc_score(truth, fitted.decision_function(records.features))))
    return {"synthetic_trained_auc": float(np.mean(aucs))} if aucs else {}


def _generated(
    study: StudySpec, tensors: Tensors, count: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64] | None]:
    """`count` records from fixed numbers, and their classes where they have some."""
    model = build_model(study.model, input_size(study.data)).eval()
    if not isinstance(model, Gan) or not isinstance(study.task, Generation):
        raise ConfigError(f"model.name: expected gan of generation, found {study.model.name!r}")
    load_tensors(model, tensors)
    numbers = torch.Generator(device="cpu").manual_seed(SEED)
    chance = torch.randn((count, model.latent), generator=numbers)
    classes = drawn_classes(study.task, count, numbers)
    with torch.inference_mode():
        made: npt.NDArray[np.float32] = model.generate(chance, classes).numpy()
    return made, None if classes is None else classes.numpy()


def _products(inputs: Floats) -> Floats:
    """Each input, and each product of two where there are few."""
    if inputs.shape[1] > MOST_PRODUCTS:
        return inputs
    first, second = np.triu_indices(inputs.shape[1])
    return np.concatenate([inputs, inputs[:, first] * inputs[:, second]], axis=1)
