"""Regression, survival and time series: likelihoods, and a round of each on the patient engine."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from fedward_client.guard.client import Grant
from fedward_client.held_out import HeldOut
from fedward_client.tasks.registry import task_of
from fedward_client.tasks.survival import SurvivalTask
from fedward_client.train_round import Worker
from fedward_client.training.patient_dp.loop_backend import LoopBackEnd
from fedward_client.training.patient_dp.plan import PatientTensors
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_client.training.weights import record_scores
from fedward_common.arrays import tensors_to_bytes
from fedward_common.canonical import sha256_hex
from fedward_common.errors import ConfigError, ModelRefused
from fedward_common.ids import SiteId
from fedward_common.models.registry import build_model, initial_tensors
from fedward_common.privacy.randomness import Csprng
from fedward_common.secagg.sums import sum_plan
from fedward_common.study.encoding import PatientRecords, encode_present, encode_table
from fedward_common.study.inputs import input_size
from fedward_common.study.spec import ModelSpec, StudySpec
from fedward_common.study.survival import Survival
from fedward_common.study.tasks import check_task
from fedward_common.wire import Instruction
from tests.support.clinical import clinical_spec, measured
from tests.support.studies import make_data, make_dp, make_rows, make_spec

CUTS = (100.0, 200.0, 400.0)
HAZARD = Survival(likelihood="discrete-hazard", cuts=CUTS, horizon_days=200.0)
COX = Survival(likelihood="proportional-hazards", cuts=CUTS, horizon_days=200.0)
TIME = {"column": "days", "event_column": "dead", "longest_days": 4000.0}
NUMBER = {"column": "stage", "unit": "stages", "low": 0.0, "high": 4.0}
SERIES = {
    "task": {"kind": "timeseries-classification"},
    "model": {"name": "gru", "hidden": [4], "steps": 3},
}


def study(**changes: Any) -> StudySpec:
    settings = {"rounds": 1, "local_steps": 2, "dp": make_dp(steps=2), "releases": []}
    return make_spec(**(settings | changes))


def survival(task: Survival, **changes: Any) -> StudySpec:
    name = "mlp" if task is HAZARD else "proportional-hazards"
    model = {"name": name, "hidden": [4], "outputs": 3}
    settings = {"task": task, "model": model, "data": make_data(label=TIME)}
    return study(**(settings | changes))


def series(**model: Any) -> StudySpec:
    spec = clinical_spec().data.model_dump(mode="json")
    weight = measured("weight", "LOINC:29463-7", unit="kg", aggregation="sequence", window=None,
                      missing="fill")  # fmt: skip
    data = spec | {
        "features": [weight, {"type": "sex"}],
        "grid": {"step_hours": 24.0, "steps": 3},
    }
    return study(**(SERIES | {"model": SERIES["model"] | model}), data=data)


STUDIES = {
    "regression": study(
        task={"kind": "tabular-regression"},
        model={"name": "mlp", "hidden": [4]},
        data=make_data(label=NUMBER),
    ),
    "ft-transformer": study(model={"name": "ft-transformer", "hidden": [4, 4]}),
    "hazard": survival(HAZARD),
    "cox": survival(COX),
    "gru": series(),
    "gru-d": series(name="gru-d", shape=[1]),
}


def records(spec: StudySpec, patients: int = 6) -> PatientRecords:
    features, labels = task_of(spec).examples(device=torch.device("cpu"))(patients)
    return PatientRecords(
        features=features.numpy(), labels=labels.numpy(), patient=np.arange(patients)
    )


@pytest.mark.parametrize("spec", STUDIES.values(), ids=STUDIES)
def test_a_round_of_the_task_runs_on_the_patient_engine(spec: StudySpec) -> None:
    site = SiteId(spec.sites[0].id)
    start = initial_tensors(spec.model, input_size(spec.data))
    trainer = LocalTrainer(spec, site, sampling=Csprng(), noise=Csprng(), flags=PerformanceFlags())

    update = trainer.train(start, records(spec))

    assert update.executed.steps == 2
    assert all((update.tensors[name] != start[name]).any() for name in start)
    scores = record_scores(spec, update.tensors, records(spec).features)
    assert ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.parametrize("spec", STUDIES.values(), ids=STUDIES)
def test_a_patient_s_gradient_depends_on_no_other_patient(spec: StudySpec) -> None:
    """What Cox's partial likelihood cannot give: the unit of clipping stays the patient."""
    task, model = task_of(spec), build_model(spec.model, input_size(spec.data))
    back_end = LoopBackEnd(model, loss=task.losses)
    everyone = PatientTensors.from_records(records(spec), device=torch.device("cpu"))

    losses = task.losses(model(everyone.features), everyone.labels)
    alone = torch.cat(
        [task.losses(model(everyone.features[[n]]), everyone.labels[[n]]) for n in range(6)]
    )

    assert losses.shape == (6,)
    assert torch.allclose(losses, alone, atol=1e-6)
    assert isinstance(back_end, LoopBackEnd)


def test_the_discrete_hazard_likelihood_is_the_product_of_its_intervals() -> None:
    task = SurvivalTask(HAZARD, inputs=1)
    logits = torch.tensor([[-1.0, 0.5, 2.0]])
    h = torch.sigmoid(logits)[0]

    def likelihood(days: float) -> float:
        return float(torch.exp(-task.losses(logits, torch.tensor([days])))[0])

    assert likelihood(50.0) == pytest.approx(float(h[0]))
    assert likelihood(150.0) == pytest.approx(float((1 - h[0]) * h[1]))
    assert likelihood(-150.0) == pytest.approx(float(1 - h[0]))
    assert likelihood(-5000.0) == pytest.approx(float((1 - h).prod()))
    assert likelihood(5000.0) == likelihood(-5000.0)
    assert float(task.scores(logits)[0]) == pytest.approx(float(1 - (1 - h[0]) * (1 - h[1])))


def test_proportional_hazards_are_the_likelihood_of_a_hazard_constant_in_intervals() -> None:
    task = SurvivalTask(COX, inputs=1)
    rates = torch.tensor([[0.5, 1.0, 2.0]])
    logs = rates.log()
    years = [100 / 365.25, 50 / 365.25]
    integral = 0.5 * years[0] + 1.0 * years[1]

    found = task.losses(logs.expand(2, 3), torch.tensor([150.0, -150.0]))

    assert found.tolist() == pytest.approx([integral - math.log(1.0), integral])
    chance = 1 - math.exp(-(0.5 * years[0] + 1.0 * years[0]))
    assert float(task.scores(logs)[0]) == pytest.approx(chance)


def test_who_was_lost_before_the_horizon_is_in_no_class() -> None:
    labels = np.array([50.0, -50.0, 200.0, -200.0, 300.0, -900.0], np.float32)

    classes = SurvivalTask(HAZARD, inputs=1).classes(labels)

    np.testing.assert_array_equal(classes, [1.0, np.nan, 1.0, 0.0, 0.0, 0.0])


def test_labels_of_a_table_are_numbers_or_days() -> None:
    rows = [row | {"days": "500", "dead": str(n % 2)} for n, row in enumerate(make_rows(12))]
    rows[0] |= {"dead": "maybe"}
    rows[1] |= {"days": "9000"}
    data = survival(HAZARD).data

    times, absent = encode_present(data, rows, part="train")  # type: ignore[arg-type]
    numbers = encode_table(STUDIES["regression"].data, make_rows(12), part="train")  # type: ignore[arg-type]

    assert absent == 1
    assert times.labels.tolist() == [-4000.0, 500.0, -500.0, -500.0, 500.0, 500.0, -500.0]
    assert set(numbers.labels.tolist()) == {-1.0, 0.0}


@pytest.mark.parametrize(
    "changes",
    [
        {"task": {"kind": "tabular-regression"}},
        {"task": HAZARD},
        {"model": {"name": "mlp", "hidden": [4], "outputs": 2}},
        {"model": {"name": "mlp", "hidden": [4], "steps": 3}},
        {"task": HAZARD, "data": make_data(label=TIME)},
        {"task": SERIES["task"], "model": SERIES["model"] | {"name": "gru-d", "shape": [1]}},
        {"task": COX, "data": make_data(label=TIME), "model": {"name": "linear", "outputs": 3}},
        {
            "task": {"kind": "tabular-regression"},
            "data": make_data(label=NUMBER),
            "releases": [{"kind": "binned-scores", "bins": 4, "noise_multiplier": 3.0}],
        },
    ],
)
def test_task_label_model_and_releases_have_to_fit(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        check_task(study(**changes))
    with pytest.raises(ConfigError):
        task_of(study(**changes))


def test_a_model_with_another_output_is_refused() -> None:
    for task in (SurvivalTask(HAZARD, inputs=1), task_of(STUDIES["regression"])):
        with pytest.raises(ModelRefused):
            task.losses(torch.zeros(4, 2), torch.zeros(4))


def test_a_recurrent_model_starts_the_same_everywhere() -> None:
    spec = ModelSpec(name="lstm", hidden=(4,), steps=3)
    torch.manual_seed(1)
    one = initial_tensors(spec, 6)
    torch.manual_seed(2)
    other = initial_tensors(spec, 6)

    assert all((one[name] == other[name]).all() for name in one)
    with pytest.raises(ConfigError, match="steps"):
        build_model(spec, 7)


def test_old_studies_have_the_digests_they_had() -> None:
    assert "outputs" not in make_spec().canonical.decode()
    assert "steps" not in make_spec(dp=make_dp()).model.model_dump()


class Nobody:
    """A guard that is never asked."""


class Patients:
    """A source of the six that `test_who_was_lost_before_the_horizon_is_in_no_class` has."""

    def records(self, study: StudySpec, *, part: str) -> PatientRecords:
        del part
        days = np.array([50.0, -50.0, 200.0, -200.0, 300.0, -900.0], np.float32)
        inputs = np.zeros((6, input_size(study.data)), np.float32)
        return PatientRecords(features=inputs, labels=days, patient=np.arange(6))


def test_a_secure_evaluation_of_survival_counts_who_has_a_class() -> None:
    release = {"kind": "binned-scores", "bins": 4, "noise_multiplier": 9.0}
    spec = survival(HAZARD, secure_sum=True, releases=[release])
    model = tensors_to_bytes(initial_tensors(spec.model, input_size(spec.data)))
    asked = Instruction(
        kind="evaluate",
        study=spec.digest,
        round=1,
        attempt=0,
        model_sha256=sha256_hex(model),
        cohort=tuple(SiteId(site.id) for site in spec.sites),
        roster_sha256=spec.roster_sha256,
    )
    worker = Worker(guard=Nobody(), source=Patients(), flags=PerformanceFlags())
    grant = Grant(receipt="r", site=SiteId(spec.sites[0].id))

    payload, _ = worker._numbers(spec, grant, asked, model)

    plan = sum_plan(spec, "evaluate", 1, shapes={})
    counts = np.frombuffer(payload, "<i8").reshape(2, 4) / plan.grid.scale
    assert counts.sum(axis=1).tolist() == pytest.approx([3.0, 2.0], abs=1e-3)


@pytest.mark.parametrize(
    ("spec", "release", "totals"),
    [
        (
            survival(HAZARD),
            {
                "kind": "grouped-scores",
                "bins": 4,
                "noise_multiplier": 9.0,
                "groupings": [{"by": "age", "cuts": [60.0]}],
            },
            # Inputs are 0: an age of 60, which is in the upper band. One is lost before.
            [3.0, 2.0, 0.0, 0.0, 3.0, 2.0],
        ),
        (
            STUDIES["regression"],
            {"kind": "value-scores", "bins": 2, "noise_multiplier": 9.0},
            [3.0, 3.0],
        ),
    ],
)
def test_groups_and_values_are_counted_alike_in_the_open_and_in_secret(
    spec: StudySpec, release: dict[str, Any], totals: list[float]
) -> None:
    document = spec.model_dump(mode="json") | {"releases": [release], "secure_sum": True}
    spec = StudySpec.model_validate(document)
    check_task(spec)
    plan = sum_plan(spec, "evaluate", 1, shapes={})
    held_out = HeldOut(
        study=spec,
        weights=initial_tensors(spec.model, input_size(spec.data)),
        records=Patients().records(spec, part="test"),
    )

    counts, units = held_out.counts(), held_out.units(scale=plan.grid.scale)

    assert counts.sum(axis=1).tolist() == totals
    assert units.size == plan.size
    np.testing.assert_allclose(units / plan.grid.scale, counts, atol=1e-6)
