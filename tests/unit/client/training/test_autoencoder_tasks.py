"""Autoencoders, plain and variational, on the patient engine: tables and expression profiles."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from fedward_client.audit.sensitivity import site_plan
from fedward_client.data.site import SiteSource
from fedward_client.data_check import check_data
from fedward_client.held_out import HeldOut
from fedward_client.tasks.made_up import with_chance
from fedward_client.tasks.registry import task_of
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.canonical import sha256_hex
from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId
from fedward_common.models.registry import build_model, initial_tensors
from fedward_common.models.start import start_tensors
from fedward_common.privacy.randomness import Csprng
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.inputs import input_size
from fedward_common.study.spec import StudySpec
from fedward_common.study.tasks import check_task
from fedward_server.private_measures import private_measures
from fedward_server.sandbox.figures import model_figures
from tests.support.studies import make_data, make_dp, make_spec
from tests.support.trained import trained
from tests.unit.client.training.test_profile_tasks import settings_of
from tests.unit.client.training.test_profile_tasks import study as profile_study

ERRORS = {"kind": "error-scores", "bins": 4, "largest": 1.5, "noise_multiplier": 3.0}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"name": "autoencoder", "hidden": [8, 3]},
    "variational": {"name": "variational-autoencoder", "hidden": [8], "shape": [3]},
}


def study(kind: str, **changes: Any) -> StudySpec:
    """A study of profiles without a label."""
    labelled = profile_study().data.model_dump(mode="json")
    data = {name: value for name, value in labelled.items() if name != "label"}
    settings = {
        "task": {"kind": "autoencoder"},
        "model": MODELS[kind],
        "data": data,
        "releases": [ERRORS],
    }
    return profile_study(**(settings | changes))


def table_study(model: str) -> StudySpec:
    """A study of a table without a label: one number and one category of three values."""
    return make_spec(
        task={"kind": "autoencoder"},
        model=MODELS[model],
        data=make_data(label=None),
        releases=[ERRORS],
        rounds=1,
        local_steps=2,
        dp=make_dp(steps=2),
    )


@pytest.mark.parametrize("backend", ["loop", "bookkeeping", "opacus"])
@pytest.mark.parametrize("model", list(MODELS))
def test_autoencoders_of_profiles_are_learned_on_the_patient_engine(
    model: str, backend: Any, tmp_path: Path
) -> None:
    spec = study(model)
    source = SiteSource(settings_of(tmp_path))

    weights = trained(spec, source, backend)

    held_out = source.records(spec, part="test")
    counts = HeldOut(study=spec, weights=weights, records=held_out).counts()
    assert counts.shape == (1, 4)
    assert counts.sum() == 8
    figures = model_figures(spec, weights, {SiteId("north"): held_out}).pooled
    assert (figures.auc, figures.accuracy, figures.held_out) == (None, None, 8)


def test_a_site_counts_what_a_study_without_a_label_would_find(tmp_path: Path) -> None:
    found = check_data(study("plain"), SiteSource(settings_of(tmp_path)))

    assert (found.people, found.training, found.held_out) == (36, 27, 8)


@pytest.mark.parametrize("model", list(MODELS))
def test_a_record_is_made_again_whoever_else_is_there(model: str) -> None:
    """With its own chance beside it, a record's loss has nothing of another record in it."""
    spec = table_study(model)
    task = task_of(spec)
    net = build_model(spec.model, task.inputs)
    plain = task.examples(device=torch.device("cpu"))
    features, labels = with_chance(plain, spec.model.sampled)(6)

    together = task.losses(net(features), labels)
    alone = [float(task.losses(net(one[None]), labels[:1])[0].detach()) for one in features]

    assert features.shape[1] == task.inputs + spec.model.sampled
    assert together.detach().numpy() == pytest.approx(alone, rel=1e-6)


def test_each_record_of_a_draw_has_its_own_chance() -> None:
    """Two patients with equal rows get different codes; the plain model draws nothing."""
    spec = table_study("variational")
    plan = site_plan(spec, SiteId("north"))
    assert plan.sampled == 3
    records = PatientRecords(
        features=np.zeros((40, 3), np.float32),
        labels=np.zeros(40, np.float32),
        patient=np.arange(40),
    )
    seen: list[torch.Tensor] = []
    trainer = LocalTrainer(
        spec,
        SiteId("north"),
        sampling=Csprng(),
        noise=Csprng(),
        flags=PerformanceFlags(backend="loop"),
    )
    task = trainer._task
    losses = task.losses

    def watched(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(outputs.detach().clone())
        return losses(outputs, labels)

    task.losses = watched  # type: ignore[method-assign]
    trainer.train(initial_tensors(spec.model, 3), records)

    real = [one for one in torch.cat([o for o in seen if len(o) == 1]) if not one[3:6].any()]
    assert len(real) > 5
    assert len({tuple(one[:3].tolist()) for one in real}) > len(real) / 2
    assert site_plan(table_study("plain"), SiteId("north")).sampled == 0


def test_a_code_is_its_mean_where_no_chance_is_given() -> None:
    net = build_model(table_study("variational").model, 3).eval()
    row = torch.tensor([[0.2, 1.0, 0.0]])
    still = torch.zeros((1, 3))

    with torch.inference_mode():
        assert torch.equal(net(row), net(torch.cat([row, still], dim=1)))
        assert not torch.equal(net(row), net(torch.cat([row, still + 1.0], dim=1)))


def test_errors_of_categories_are_those_of_their_chances() -> None:
    """A number right and the value of a category certain: no error; certain of another: 2/3."""
    spec = table_study("plain")
    task = task_of(spec)
    record = torch.tensor([[0.5, 1.0, 0.0]])
    right, wrong = torch.tensor([[0.5, 40.0, 0.0]]), torch.tensor([[0.5, 0.0, 40.0]])

    def error(made: torch.Tensor) -> float:
        return 2.0 * float(task.scores(torch.cat([made, record], dim=1))[0])

    assert error(right) == pytest.approx(0.0, abs=1e-6)
    assert error(wrong) == pytest.approx((2.0 / 3.0) ** 0.5, rel=1e-6)


def test_the_private_error_is_the_exact_one_to_half_a_bin() -> None:
    spec = table_study("plain")
    release = spec.releases[0]
    counts = np.array([[0.0, 300.0, 100.0, 0.0]])

    found = private_measures(spec, release, counts, noise=1.0)  # type: ignore[arg-type]

    assert found["reconstruction_error"].value == pytest.approx(1.5 * (0.375 * 0.75 + 0.625 * 0.25))


@pytest.mark.parametrize("model", list(MODELS))
def test_the_encoder_that_came_out_starts_a_heads_study(model: str, tmp_path: Path) -> None:
    """`hidden.` of an autoencoder are the hidden layers of an mlp of the same widths."""
    spec = study(model)
    weights = initial_tensors(spec.model, input_size(spec.data))
    encoder = {name: array for name, array in weights.items() if name.startswith("hidden.")}
    file = save(encoder)
    head = profile_study(
        "classes",
        model={
            "name": "mlp",
            "hidden": MODELS[model]["hidden"],
            "outputs": 3,
            "start": {"sha256": sha256_hex(file), "tensors": ["hidden."]},
        },
        training={"learning_rate": 0.5, "frozen": ["hidden."]},
    )
    check_task(head)

    begun = start_tensors(head.model, input_size(head.data), file=file)

    assert all(np.array_equal(begun[name], encoder[name]) for name in encoder)
    trainer = LocalTrainer(
        head, SiteId("north"), sampling=Csprng(), noise=Csprng(), flags=PerformanceFlags()
    )
    source = SiteSource(settings_of(tmp_path))
    update = trainer.train(begun, source.records(head, part="train"))
    assert all(np.array_equal(update.tensors[name], encoder[name]) for name in encoder)
    assert (update.tensors["output.weight"] != begun["output.weight"]).any()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "mlp", "hidden": [8]}},
        {"releases": [{"kind": "binned-scores", "bins": 4, "noise_multiplier": 3.0}]},
        {"task": {"kind": "expression-classification"}},
        {"model": {"name": "autoencoder", "hidden": [8], "outputs": 2}},
    ],
)
def test_an_autoencoders_study_that_does_not_fit_together_is_refused(
    changes: dict[str, Any],
) -> None:
    with pytest.raises(ConfigError):
        check_task(study("plain", **changes))


@pytest.mark.parametrize(
    "model",
    [
        {"name": "autoencoder"},
        {"name": "autoencoder", "hidden": [4], "shape": [2]},
        {"name": "variational-autoencoder", "hidden": [4]},
        {"name": "variational-autoencoder", "hidden": [4], "shape": [2], "outputs": 4},
    ],
)
def test_an_autoencoder_of_sizes_that_it_does_not_take_is_refused(model: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="model"):
        build_model(table_study("plain").model.model_validate(model), 3)
