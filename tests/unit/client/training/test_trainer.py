"""LocalTrainer: what it does to weights, what it reports, what it refuses."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from fedward_client.tasks.tabular_classification import TabularClassificationTask
from fedward_client.training.patient_dp.plan import PatientDpPlan, PatientTensors
from fedward_client.training.trainer import ExecutedPlan, LocalTrainer, PerformanceFlags
from fedward_client.training.weights import record_scores
from fedward_common.arrays import Array
from fedward_common.errors import ConfigError, DataError, ModelRefused, ProtocolError
from fedward_common.ids import SiteId
from fedward_common.models import registry as model_registry
from fedward_common.models.registry import initial_tensors, register_model
from fedward_common.privacy.randomness import Csprng
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.spec import DpSgd, ModelSpec, StudySite, StudySpec, TrainingSpec
from fedward_common.study.tabular import (
    HashSplit,
    LabelRule,
    NumberColumn,
    TabularClassification,
    TabularData,
)
from tests.support import naive_dp
from tests.support.naive_dp import FirstInLine, NoNoise, Repeatable

SITE = SiteId("north")
INPUTS = 4
CLIP = 0.3
both_back_ends = pytest.mark.parametrize("backend", ["opacus", "loop"])


def make_study(**changes: Any) -> StudySpec:
    steps = changes.pop("local_steps", 3)
    dp = {"epsilon": 1.0, "delta": 1e-4, "noise_multiplier": 1.5, "clip_norm": CLIP}
    dp |= {"sampling_probability": 1.0, "steps": steps, "max_records_per_patient": 8}
    values: dict[str, Any] = {
        "id": "trial",
        "title": "A study for tests",
        "task": TabularClassification(),
        "model": ModelSpec(name="mlp", hidden=(5,), initial_seed=1),
        "data": TabularData(
            patient_key="patient",
            columns=tuple(
                NumberColumn(name=f"x{i}", unit="mg", low=0.0, high=1.0) for i in range(INPUTS)
            ),
            label=LabelRule(column="y", low=0, high=1, positive_from=1),
            split=HashSplit(salt="s", held_out=0.2),
        ),
        "training": TrainingSpec(learning_rate=0.5),
        "aggregation": {"name": "fedavg"},
        "rounds": 1,
        "local_steps": steps,
        "quorum": 1,
        "deadline_seconds": 60.0,
        "sites": (StudySite(id=SITE, patients=10, key_sha256="a" * 64, node_key_sha256="b" * 64),),
        "lead_key_sha256": "c" * 64,
        "dp": DpSgd(**(dp | changes.pop("dp", {}))),
    }
    return StudySpec(**(values | changes))


def make_trainer(study: StudySpec, *, backend: str = "auto", **sources: Any) -> LocalTrainer:
    return LocalTrainer(
        study,
        SITE,
        sampling=sources.get("sampling", FirstInLine()),
        noise=sources.get("noise", NoNoise()),
        flags=PerformanceFlags(backend=backend, max_records_per_chunk=5),
    )


def make_records(sizes: tuple[int, ...] = (3, 4, 1, 3), seed: int = 0) -> PatientRecords:
    generator = np.random.default_rng(seed)
    total = sum(sizes)
    return PatientRecords(
        features=generator.uniform(-1, 1, (total, INPUTS)).astype(np.float32),
        labels=generator.integers(0, 2, total).astype(np.float32),
        patient=np.repeat(np.arange(len(sizes)), sizes),
    )


def naive_training(study: StudySpec, records: PatientRecords) -> dict[str, np.ndarray]:
    """The same local steps without noise, in float64 and by the formulas."""
    start = {k: v.astype(np.float64) for k, v in initial_tensors(study.model, INPUTS).items()}
    weights = {name: array.copy() for name, array in start.items()}
    velocity = {name: np.zeros_like(array) for name, array in start.items()}
    patients = [
        (
            records.features[records.patient == p].astype(np.float64),
            records.labels[records.patient == p].astype(np.float64),
        )
        for p in range(records.patients)
    ]
    training, mu = study.training, getattr(study.aggregation, "mu", 0.0)
    for _ in range(study.local_steps):
        total = naive_dp.clipped_sum(weights, patients, clip_norm=CLIP)
        for name, array in weights.items():
            gradient = total[name] / (study.dp.sampling_probability * study.sites[0].patients)
            gradient += training.weight_decay * array + mu * (array - start[name])
            velocity[name] = training.momentum * velocity[name] + gradient
        weights = {
            name: array - training.learning_rate * velocity[name] for name, array in weights.items()
        }
    return weights


@both_back_ends
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training": TrainingSpec(learning_rate=0.5, momentum=0.9)},
        {"training": TrainingSpec(learning_rate=0.5, weight_decay=0.1)},
        {"aggregation": {"name": "fedprox", "mu": 0.7}},
        {"model": ModelSpec(name="logistic-regression")},
    ],
    ids=["sgd", "momentum", "weight-decay", "fedprox", "logistic-regression"],
)
def test_the_update_without_noise_is_the_one_computed_by_hand(
    changes: dict[str, Any], backend: str
) -> None:
    study, records = make_study(**changes), make_records()
    start = initial_tensors(study.model, INPUTS)

    update = make_trainer(study, backend=backend).train(start, records)

    expected = naive_training(study, records)
    assert list(update.tensors) == sorted(expected)
    for name, array in update.tensors.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected[name], atol=1e-6)


def test_what_ran_is_reported_as_it_ran() -> None:
    study = make_study(local_steps=7, dp={"sampling_probability": 0.25, "noise_multiplier": 2.5})
    trainer = make_trainer(study, sampling=Repeatable(0), noise=Repeatable(1))

    update = trainer.train(initial_tensors(study.model, INPUTS), make_records())

    assert update.executed == ExecutedPlan(
        steps=7,
        noise_multiplier=2.5,
        clip_norm=CLIP,
        sampling_probability=0.25,
        denominator=2.5,
    )


@both_back_ends
def test_decay_and_the_proximal_term_never_meet_the_clip_or_the_noise(backend: str) -> None:
    """At the same random numbers the update changes by what the public formula says."""
    plain, decayed = (
        make_study(local_steps=1, training=TrainingSpec(learning_rate=0.5, weight_decay=decay))
        for decay in (0.0, 0.2)
    )
    start = initial_tensors(plain.model, INPUTS)
    updates = [
        make_trainer(study, backend=backend, noise=Repeatable(5)).train(start, make_records())
        for study in (plain, decayed)
    ]

    for name, array in start.items():
        difference = updates[1].tensors[name] - updates[0].tensors[name]
        np.testing.assert_allclose(difference, -0.5 * 0.2 * array, atol=1e-6)


@both_back_ends
def test_two_rounds_from_the_same_weights_differ(backend: str) -> None:
    study, records = make_study(), make_records()
    start = initial_tensors(study.model, INPUTS)

    first, second = (
        make_trainer(study, backend=backend, sampling=Csprng(), noise=Csprng()).train(
            start, records
        )
        for _ in range(2)
    )

    for name, array in first.tensors.items():
        assert not np.isclose(array, second.tensors[name], atol=1e-9).any()


def test_the_back_ends_agree_on_subsampled_noisy_steps() -> None:
    study = make_study(
        local_steps=5, dp={"sampling_probability": 0.5, "max_records_per_patient": 2}
    )
    start, records = initial_tensors(study.model, INPUTS), make_records((3, 1, 5, 2, 4, 4))

    tensors = [
        make_trainer(study, backend=backend, sampling=Repeatable(2), noise=Repeatable(3))
        .train(start, records)
        .tensors
        for backend in ("opacus", "loop")
    ]

    for name, array in tensors[0].items():
        np.testing.assert_allclose(array, tensors[1][name], atol=1e-5)


def test_training_leaves_the_weights_and_records_it_was_given_alone() -> None:
    study, records = make_study(), make_records()
    start = initial_tensors(study.model, INPUTS)
    for array in (*start.values(), records.features, records.labels):
        array.setflags(write=False)
    copies = {name: array.copy() for name, array in start.items()}

    make_trainer(study).train(start, records)

    assert all(np.array_equal(array, copies[name]) for name, array in start.items())


def _wrong(kind: str, start: dict[str, Array]) -> dict[str, Array]:
    name = "output.weight"
    wrong: dict[str, Any] = {
        "missing": {key: value for key, value in start.items() if key != name},
        "extra": start | {"more": np.zeros(1, dtype=np.float32)},
        "shape": start | {name: start[name].T},
        "dtype": start | {name: start[name].astype(np.float64)},
        "nan": start | {name: np.full_like(start[name], np.nan)},
    }
    return wrong[kind]


@pytest.mark.parametrize("kind", ["missing", "extra", "shape", "dtype", "nan"])
def test_weights_of_another_model_are_a_protocol_error(kind: str) -> None:
    study = make_study()

    with pytest.raises(ProtocolError, match="weights"):
        make_trainer(study).train(
            _wrong(kind, initial_tensors(study.model, INPUTS)), make_records()
        )


@pytest.mark.parametrize("patient", [[0, 0, 2, 2], [1, 1, 2, 2], [0, 1, 0, 1], [-1, 0, 0, 1]])
def test_records_not_grouped_by_patient_are_a_data_error(patient: list[int]) -> None:
    records = PatientRecords(
        features=np.zeros((4, INPUTS), dtype=np.float32),
        labels=np.zeros(4, dtype=np.float32),
        patient=np.array(patient),
    )

    with pytest.raises(DataError, match="patient"):
        PatientTensors.from_records(records, device=torch.device("cpu"))


def test_more_labels_than_records_are_a_data_error() -> None:
    with pytest.raises(DataError, match="one label for each record"):
        PatientTensors(features=torch.zeros(2, 1), labels=torch.zeros(3), starts=np.array([0, 2]))


def test_a_site_outside_the_study_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="study trial: expected to find site south"):
        LocalTrainer(
            make_study(),
            SiteId("south"),
            sampling=Csprng(),
            noise=Csprng(),
            flags=PerformanceFlags(),
        )


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "mps"])
def test_an_unknown_device_is_a_config_error(device: str) -> None:
    with pytest.raises(ConfigError, match="device: expected 'cpu' or 'cuda'"):
        LocalTrainer(
            make_study(),
            SITE,
            sampling=Csprng(),
            noise=Csprng(),
            flags=PerformanceFlags(device=device),
        )


def test_a_gpu_that_is_not_there_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(ConfigError, match="no usable GPU; set device = 'cpu'"):
        LocalTrainer(
            make_study(),
            SITE,
            sampling=Csprng(),
            noise=Csprng(),
            flags=PerformanceFlags(device="cuda"),
        )


def test_an_unknown_model_is_a_config_error_that_names_the_known_ones() -> None:
    study = make_study(model=ModelSpec(name="transformer"))

    with pytest.raises(ConfigError, match=r"expected one of \[.*'cnn', .*'mlp'"):
        make_trainer(study).train({}, make_records())


def test_a_registered_model_that_mixes_patients_is_refused_before_records_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A copy for this test: other tests of the same process name the models there are.
    monkeypatch.setattr(model_registry, "_FACTORIES", dict(model_registry._FACTORIES))

    def with_batch_norm(spec: ModelSpec, inputs: int) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Linear(inputs, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1)
        )

    register_model("test-batch-norm")(with_batch_norm)
    study = make_study(model=ModelSpec(name="test-batch-norm"))

    with pytest.raises(ModelRefused, match=r"layer 1 \(BatchNorm1d\)"):
        make_trainer(study).train({}, records=None)


def test_weights_that_overflow_are_an_error_that_names_the_learning_rate() -> None:
    study = make_study(training=TrainingSpec(learning_rate=1e30, weight_decay=1e10))

    with pytest.raises(ConfigError, match=r"training\.learning_rate"):
        make_trainer(study).train(initial_tensors(study.model, INPUTS), make_records())


def test_training_with_noise_learns_a_rule_that_is_there() -> None:
    """300 patients, 40 steps at noise multiplier 1: far from the limit, so no run fails."""
    generator = np.random.default_rng(3)
    features = generator.uniform(-1, 1, (600, INPUTS)).astype(np.float32)
    labels = (features[:, 0] + features[:, 1] > 0).astype(np.float32)
    records = PatientRecords(features=features, labels=labels, patient=np.arange(600) // 2)
    site = StudySite(id=SITE, patients=300, key_sha256="a" * 64, node_key_sha256="b" * 64)
    study = make_study(
        local_steps=40,
        model=ModelSpec(name="logistic-regression"),
        training=TrainingSpec(learning_rate=5.0),
        dp={"sampling_probability": 0.3, "noise_multiplier": 1.0},
        sites=(site,),
    )
    trainer = make_trainer(study, sampling=Csprng(), noise=Csprng())

    update = trainer.train(initial_tensors(study.model, INPUTS), records)

    scores = record_scores(study, update.tensors, features)
    assert scores.shape == (600,)
    assert ((scores > 0.5) == labels).mean() > 0.9


def test_scores_are_probabilities_of_the_positive_class() -> None:
    study = make_study(model=ModelSpec(name="logistic-regression"))
    weights = {
        "linear.weight": np.array([[2.0, 0, 0, 0]], dtype=np.float32),
        "linear.bias": np.array([-1.0], dtype=np.float32),
    }
    features = np.array([[0.5, 9, 9, 9], [100, 0, 0, 0], [-100, 0, 0, 0]], dtype=np.float32)

    scores = record_scores(study, weights, features)

    assert scores.dtype == np.float64
    assert scores.tolist() == [0.5, 1.0, 0.0]


@pytest.mark.parametrize("shape", [(3, 1), (1,), ()])
def test_a_model_without_one_logit_per_record_is_refused(shape: tuple[int, ...]) -> None:
    task = TabularClassificationTask(inputs=2)

    with pytest.raises(ModelRefused, match=r"one logit for each record, shape \[3\], found"):
        task.losses(torch.zeros(shape), torch.zeros(3))


def test_made_up_records_differ_from_each_other_and_repeat_from_the_start() -> None:
    task = TabularClassificationTask(inputs=3)
    examples = task.examples(device=torch.device("cpu"))

    rows = torch.cat([examples(6)[0], examples(6)[0]])

    assert len(rows.unique(dim=0)) == 12
    assert bool((rows.abs() <= 1).all())
    assert torch.equal(task.examples(device=torch.device("cpu"))(6)[0], rows[:6])


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": float("nan")},
        {"clip_norm": -1.0},
        {"sampling_probability": 0.0},
        {"sampling_probability": 1.1},
        {"max_records_per_patient": 0},
        {"public_patients": 0},
    ],
)
def test_a_plan_without_a_guarantee_cannot_be_made(changes: dict[str, float]) -> None:
    values = {"noise_multiplier": 1.0, "clip_norm": 1.0, "sampling_probability": 0.5}
    values |= {"max_records_per_patient": 1, "public_patients": 1}

    with pytest.raises(ValueError, match="expected"):
        PatientDpPlan(**(values | changes))


def test_importing_the_trainer_does_not_import_opacus() -> None:
    """The import costs a second and has side effects; only a process that uses it pays."""
    code = "import sys, fedward_client.training.trainer; sys.exit('opacus' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
