"""The arms of the utility benchmark are the mechanisms that they say they are."""

import math

import numpy as np
import pytest
import torch

from benchmarks.arms import (
    CLIP,
    Budget,
    LogisticGradients,
    Patients,
    Setting,
    _noise_multiplier,
    pooled,
    train,
)
from benchmarks.utility import (
    Case,
    by_hospital,
    deal,
    interval,
    measured,
    split_hospitals,
    table,
)
from benchmarks.utility_study_run import train_by_study_run
from fedward_client.tasks.tabular_classification import TabularClassificationTask
from fedward_client.training.patient_dp.back_end import Chunk
from fedward_client.training.patient_dp.loop_backend import LoopBackEnd
from fedward_common.models.registry import build_model
from fedward_common.study.spec import ModelSpec

BUDGET = Budget(epsilon=1.0, delta=1e-3)


class NoNoise:
    """Everybody takes part and nothing is added: what is left are the gradients."""

    def uniform(self, count: int) -> np.ndarray:
        return np.zeros(count)

    def normal(self, count: int) -> np.ndarray:
        return np.zeros(count)


def people(count: int, *, seed: int = 0) -> Patients:
    generator = np.random.default_rng(seed)
    features = generator.uniform(-1, 1, size=(count, 3))
    return Patients(features=features, labels=(features[:, 0] > 0).astype(float))


def test_the_written_out_gradient_is_that_of_the_loop() -> None:
    patients = people(7)
    model = build_model(ModelSpec(name="logistic-regression"), 3).double()
    weights = torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64)
    model.load_state_dict({"linear.weight": weights, "linear.bias": torch.tensor([0.1])})
    written = LogisticGradients(3)
    written.weights = torch.cat([weights[0], torch.tensor([0.1], dtype=torch.float32).double()])
    chunk = Chunk(
        features=torch.from_numpy(patients.features),
        labels=torch.from_numpy(patients.labels),
        sizes=torch.ones(7, dtype=torch.int64),
    )

    (rows,) = written.patient_gradients(chunk)

    (oracle,) = LoopBackEnd(
        model, loss=TabularClassificationTask(inputs=3).losses
    ).patient_gradients(chunk)
    torch.testing.assert_close(rows, oracle)


@pytest.mark.parametrize("arm", ["distributed", "local"])
def test_without_noise_every_arm_is_central_training(arm: str) -> None:
    """One local step a round and equal hospitals: the arms differ in where the noise is only."""
    sites = [people(8, seed=seed) for seed in range(3)]
    setting = Setting(steps=6, rate=1.0)

    found = train(arm, sites, setting=setting, budget=BUDGET, source=NoNoise())  # type: ignore[arg-type]
    central = train("central", sites, setting=setting, budget=BUDGET, source=NoNoise())

    np.testing.assert_allclose(found, central, atol=1e-5)


def test_noise_is_that_of_the_plan() -> None:
    """On one step from zero, the noise of each arm against sigma C; false alarm below 1e-6."""
    sites = [people(8, seed=seed) for seed in range(4)]
    setting = Setting(steps=1, rate=CLIP)
    sigma = _noise_multiplier(BUDGET.epsilon, BUDGET.delta, 1.0, 1)
    plain = train("central", sites, setting=setting, budget=BUDGET, source=NoNoise())
    scale = sigma * CLIP / len(pooled(sites))
    expected = {"central": 1.0, "distributed": math.sqrt(4 / 2), "local": math.sqrt(4)}

    for arm, factor in expected.items():
        runs = [train(arm, sites, setting=setting, budget=BUDGET) - plain for _ in range(80)]  # type: ignore[arg-type]
        spread = float(np.std(runs)) / (scale * factor)
        assert abs(spread - 1) < 5 / math.sqrt(2 * 80 * 4)


def test_splits_share_no_patient_and_deal_everybody() -> None:
    patients = people(60)
    training, held_out = deal(patients, 4, 1)
    hospitals = split_hospitals([people(40), people(30, seed=1)], 0)

    rows = np.concatenate([pooled(training).features, pooled(held_out).features])
    assert len(np.unique(rows, axis=0)) == 60
    assert [len(site) for site in hospitals[0]] == [26, 19]


def test_a_row_of_the_table() -> None:
    case = Case(name="made-up", sites=3, budget=BUDGET)
    patients = people(90)

    row = measured(case, lambda number: deal(patients, 3, number), splits=2, draws=1, validations=1)

    assert row["excess_noise"] == pytest.approx(math.sqrt(3 / 2))
    assert "| made-up, 3 sites, epsilon 1 | auc |" in table([row])
    assert interval([1.0, 3.0])["low"] == pytest.approx(2 - 12.7062)


def test_the_arm_through_study_run_and_guards_is_the_mechanism_of_the_arm() -> None:
    """With as little noise as a plan may have, both are the plain model to within that noise."""
    sites = [people(40, seed=seed) for seed in range(3)]
    setting, budget = Setting(steps=2, rate=1.0), Budget(epsilon=15.0, delta=1e-4)
    sigma = budget.noise_multiplier(setting)

    found = train_by_study_run(sites, setting=setting, budget=budget)

    plain = train("central", sites, setting=setting, budget=budget, source=NoNoise())
    # Three sites' shares of noise, of which two count; at most that of both steps adds up.
    noise = sigma * math.sqrt(3 / 2) * math.sqrt(setting.steps) / len(pooled(sites))
    np.testing.assert_allclose(found, plain, atol=6 * noise)
    assert noise < 0.01


def test_the_hospital_is_a_category_of_every_patient() -> None:
    found = by_hospital([people(2), people(3, seed=1), people(1, seed=2)])

    assert [site.features.shape for site in found] == [(2, 5), (3, 5), (1, 5)]
    assert found[0].features[:, 3:].tolist() == [[0.0, 0.0]] * 2
    assert found[1].features[:, 3:].tolist() == [[1.0, 0.0]] * 3
    assert found[2].features[:, 3:].tolist() == [[0.0, 1.0]]
