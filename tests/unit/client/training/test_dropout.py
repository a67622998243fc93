"""Dropout of an mlp: by a record's own numbers, sums stay bounded, and scores draw nothing."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedward_client.audit import AuditPorts, audit_study
from fedward_client.tasks.registry import task_of
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_client.training.weights import record_scores
from fedward_common.ids import SiteId
from fedward_common.models.registry import build_model, initial_tensors
from fedward_common.models.tabular import Mlp
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.inputs import input_size
from fedward_common.study.spec import ModelSpec, StudySpec
from tests.support.naive_dp import Repeatable
from tests.support.studies import make_dp, make_spec

INPUTS, RATE = 3, 0.25
SPEC = ModelSpec(name="mlp", hidden=[8, 4], dropout=RATE)


def model() -> Mlp:
    found = build_model(SPEC, INPUTS)
    if not isinstance(found, Mlp):
        raise TypeError("expected an mlp")
    return found


def study() -> StudySpec:
    return make_spec(
        model={"name": "mlp", "hidden": [4], "dropout": RATE},
        rounds=1,
        local_steps=2,
        dp=make_dp(steps=2),
        releases=[],
    )


def test_units_are_left_out_by_their_numbers_and_the_others_scaled() -> None:
    network, features = model(), torch.randn(5, INPUTS)
    everything = torch.full((5, SPEC.sampled), 9.0)

    nothing = network(torch.cat([features, -everything], dim=1))
    scaled = network(torch.cat([features, everything], dim=1))

    assert torch.allclose(nothing, network.output.bias.expand(5))
    first = network.hidden[:3](features) / (1 - RATE)
    states = network.hidden[3:](first) / (1 - RATE)
    assert torch.allclose(scaled, network.output(states).squeeze(-1))
    assert torch.equal(network(features), network.eval()(features))


def test_the_share_of_units_left_out_is_the_study_s() -> None:
    numbers = torch.randn(20_000, generator=torch.Generator().manual_seed(1))

    share = float((numbers <= model().least).float().mean())

    assert share == pytest.approx(RATE, abs=0.015)  # five standard errors


def test_a_record_is_computed_alike_whoever_is_beside_it() -> None:
    network = model()
    rows = torch.randn(6, INPUTS + SPEC.sampled)

    together = network(rows)

    for number, row in enumerate(rows):
        assert torch.allclose(network(row[None]), together[number : number + 1], atol=1e-6)


@pytest.mark.parametrize("backend", ["auto", "loop", "opacus"])
def test_a_round_trains_and_scores_draw_nothing(backend: str) -> None:
    spec = study()
    features, labels = task_of(spec).examples(device=torch.device("cpu"))(12)
    records = PatientRecords(
        features=features.numpy(), labels=labels.numpy(), patient=np.arange(12)
    )
    start = initial_tensors(spec.model, input_size(spec.data))
    trainer = LocalTrainer(
        spec,
        SiteId(spec.sites[0].id),
        sampling=Repeatable(1),
        noise=Repeatable(2),
        flags=PerformanceFlags(backend=backend),  # type: ignore[arg-type]
    )

    update = trainer.train(start, records)

    assert all((update.tensors[name] != start[name]).any() for name in start)
    once, again = (record_scores(spec, update.tensors, records.features) for _ in range(2))
    np.testing.assert_array_equal(once, again)


def test_the_audit_finds_every_patient_bounded() -> None:
    spec = study()

    report = audit_study(
        spec,
        SiteId(spec.sites[0].id),
        flags=PerformanceFlags(),
        noise_steps=32,
        ports=AuditPorts(sampling=Repeatable(3), noise=Repeatable(4)),
    )

    assert {finding.name for finding in report.findings if not finding.passed} == set()


def test_dropout_of_another_model_is_refused() -> None:
    with pytest.raises(ValidationError, match="expected the model mlp"):
        ModelSpec(name="logistic-regression", dropout=0.1)
