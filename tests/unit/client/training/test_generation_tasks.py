"""A generator of rows: hospitals train its discriminator, the coordinator moves it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedward_client.audit.sensitivity import site_plan
from fedward_client.rehearse import rehearse
from fedward_client.tasks.made_up import with_chance
from fedward_client.tasks.registry import task_of
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.arrays import Tensors
from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId
from fedward_common.models.gan import Gan
from fedward_common.models.registry import build_model, initial_tensors
from fedward_common.privacy.randomness import Csprng
from fedward_common.secagg.sums import summed
from fedward_common.study.encoding import PatientRecords, encode_table
from fedward_common.study.files import parse_study
from fedward_common.study.spec import StudySpec
from fedward_common.study.tabular import TabularData
from fedward_common.study.tasks import check_task
from fedward_server.aggregation import plain_sum, server_optimiser
from fedward_server.sandbox import baselines, made_up_rows
from fedward_server.sandbox.figures import model_figures
from fedward_server.synthesize import Released
from tests.support.ehr_studies import GENERATION, SITES, STUDY
from tests.support.studies import LEAD, make_data, make_dp, make_rows, make_spec, site_keys
from tests.unit.server.test_synthesize import KEY, package

NORTH = SiteId("north")
MODEL = {"name": "gan", "hidden": [8], "shape": [2], "categories": [[1, 3]]}
"""Of one number and one category of three values, whose reference is no input."""


def study(**changes: Any) -> StudySpec:
    settings: dict[str, Any] = {
        "task": {"kind": "generation", "generator_steps": 1},
        "model": MODEL,
        "data": make_data(label=None),
        "releases": [],
        "rounds": 1,
        "local_steps": 2,
        "dp": make_dp(steps=2),
    }
    return make_spec(**(settings | changes))


def records(patients: int = 60) -> PatientRecords:
    data = study().data
    assert isinstance(data, TabularData)
    return encode_table(data, make_rows(patients), part="train")


def start(spec: StudySpec) -> dict[str, Any]:
    return initial_tensors(spec.model, 3)


def parts(tensors: Tensors) -> tuple[set[str], set[str]]:
    own = {name for name in tensors if name.startswith("generator.")}
    return own, set(tensors) - own


@pytest.mark.parametrize("backend", ["loop", "bookkeeping", "opacus"])
def test_a_hospital_trains_the_discriminator_and_sends_the_generator_back_as_it_came(
    backend: Any,
) -> None:
    spec, before = study(), start(study())
    check_task(spec)
    trainer = LocalTrainer(
        spec,
        NORTH,
        sampling=Csprng(),
        noise=Csprng(),
        flags=PerformanceFlags(backend=backend),
    )

    after = trainer.train(before, records()).tensors

    generator, discriminator = parts(after)
    assert all(np.array_equal(before[name], after[name]) for name in generator)
    assert all((before[name] != after[name]).any() for name in discriminator)
    assert {name for name, _ in summed(spec, {n: t.shape for n, t in after.items()})} == (
        discriminator
    )


def test_a_record_is_judged_whoever_else_is_there() -> None:
    """With the numbers of its own beside it, a record's loss has nothing of another in it."""
    spec = study()
    task, net = task_of(spec), build_model(spec.model, 3)
    features, labels = with_chance(task.examples(device=torch.device("cpu")), spec.model.sampled)(6)

    together = task.losses(net(features), labels)
    alone = [float(task.losses(net(one[None]), labels[:1])[0].detach()) for one in features]

    assert features.shape[1] == 3 + 2 + 3
    assert site_plan(spec, NORTH).sampled == 5
    assert together.detach().numpy() == pytest.approx(alone, rel=1e-6)


def test_generated_records_are_on_the_records_scale_and_nearly_of_one_value() -> None:
    net = build_model(study().model, 3)
    assert isinstance(net, Gan)

    made = net.generate(torch.randn((500, 5), generator=torch.Generator().manual_seed(2)))

    assert made[:, 0].abs().max() <= 1.0
    values = torch.cat([1.0 - made[:, 1:].sum(dim=1, keepdim=True), made[:, 1:]], dim=1)
    assert values.min() > -1e-6
    assert (values.max(dim=1).values > 0.9).float().mean() > 0.6
    assert set(values.argmax(dim=1).tolist()) == {0, 1, 2}


def moved(spec: StudySpec, current: Tensors, mean: Tensors) -> dict[str, Any]:
    return server_optimiser(spec).step(current, mean)


def test_the_generator_moves_by_the_released_discriminator_and_by_nothing_else() -> None:
    """Post-processing: the step has no patient, no randomness of its own and no site's generator.

    Two sums whose discriminators agree give the same bytes, whatever sites said of the generator.
    """
    spec, current = study(), start(study())
    generator, discriminator = parts(current)
    noisy = {n: t + np.float32(0.01 * (n in discriminator)) for n, t in current.items()}
    meddled = {n: t + np.float32(7.0 * (n in generator)) for n, t in noisy.items()}

    honest, again, hostile = (moved(spec, current, mean) for mean in (noisy, noisy, meddled))

    assert all((honest[name] != current[name]).any() for name in generator)
    assert all(np.array_equal(honest[name], noisy[name]) for name in discriminator)
    assert all(np.array_equal(honest[n], again[n]) for n in honest)
    assert all(np.array_equal(honest[n], hostile[n]) for n in honest)


def test_the_generator_s_step_makes_its_records_look_more_real_to_the_discriminator() -> None:
    spec = study(task={"kind": "generation", "generator_steps": 40, "generator_rate": 0.02})
    current = start(spec)
    net = build_model(spec.model, 3)
    assert isinstance(net, Gan)
    chance = torch.randn((400, 5), generator=torch.Generator().manual_seed(3))

    def passing(weights: Tensors) -> float:
        net.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
        with torch.inference_mode():
            return float(torch.sigmoid(net.judged(net.generate(chance))).mean())

    assert passing(moved(spec, current, current)) > passing(current) + 0.05


@pytest.mark.parametrize(
    "aggregation", [{"name": "fedavg"}, {"name": "fedadam", "learning_rate": 0.1}]
)
def test_a_run_that_goes_on_from_a_checkpoint_comes_to_the_same_bytes(
    aggregation: dict[str, Any],
) -> None:
    spec = study(aggregation=aggregation)
    whole, resumed = server_optimiser(spec), server_optimiser(spec)
    model = start(spec)
    drift = {n: t + np.float32(0.01) for n, t in model.items()}
    second = whole.step(model, drift)
    resumed.restore({name: value.copy() for name, value in whole.state().items()})

    one, other = whole.step(second, drift), resumed.step(second, drift)

    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_federation_s_round_leaves_a_generator_that_nobody_s_records_touched() -> None:
    """Two federations of other patients whose noised discriminators were equal have one generator:
    here all sites answer with the same bytes, and the plain sum is theirs.
    """
    spec, before = study(), start(study())
    answer = {
        n: (t if n.startswith("generator.") else t * np.float32(1.5)) for n, t in before.items()
    }
    total = plain_sum(spec)
    for site in spec.sites:
        total.add(SiteId(site.id), answer)

    after = moved(spec, before, total.mean())

    _, discriminator = parts(before)
    assert all(np.allclose(after[name], answer[name], rtol=1e-6) for name in discriminator)
    assert all(np.isfinite(array).all() for array in after.values())


class _OneSite:
    """A site's own records."""

    def checked_records(self, study: StudySpec, *, part: Any) -> PatientRecords:
        return records()

    def records(self, study: StudySpec, *, part: Any) -> PatientRecords:
        return records()

    def rows(self, study: StudySpec) -> list[Any]:
        return []


def test_a_hospital_that_rehearses_alone_moves_the_generator_as_a_coordinator_would() -> None:
    flags = PerformanceFlags(backend="loop")

    (model,) = rehearse(study(), NORTH, _OneSite(), flags=flags, draws=1)

    generator, _ = parts(model)
    assert all((model[name] != start(study())[name]).any() for name in generator)


def correlated(patients: int, *, seed: int) -> PatientRecords:
    """A number, and a category of three values that it decides."""
    draws = np.random.default_rng(seed)
    number = draws.uniform(-0.9, 0.9, patients)
    value = np.digitize(number, [-0.3, 0.3])
    features = np.stack([number, value == 1, value == 2], axis=1).astype(np.float32)
    return PatientRecords(
        features=features, labels=np.zeros(patients, np.float32), patient=np.arange(patients)
    )


def test_without_noise_a_generator_learns_what_goes_with_what(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows of which the number decides the category: told apart from real ones less than at first,
    and of most generated rows number and category agree.
    """
    monkeypatch.setattr(made_up_rows, "STEPS", 500)
    spec = study(model=MODEL | {"hidden": [32], "initial_seed": 1})
    held_out = correlated(300, seed=8)

    weights = baselines.fit(spec, correlated(400, seed=7))

    told = [
        model_figures(spec, tensors, {NORTH: held_out}).pooled.more["told_apart"]
        for tensors in (start(spec), weights)
    ]
    net = build_model(spec.model, 3)
    assert isinstance(net, Gan)
    net.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    with torch.inference_mode():
        made = net.generate(torch.randn((1000, 5), generator=torch.Generator().manual_seed(4)))
    value = torch.cat([1.0 - made[:, 1:].sum(dim=1, keepdim=True), made[:, 1:]], 1).argmax(1)
    agree = float(
        (torch.bucketize(made[:, 0].contiguous(), torch.tensor([-0.3, 0.3])) == value)
        .float()
        .mean()
    )
    assert told[0] > 0.9
    assert told[1] < 0.75
    assert agree > 0.7


def test_rows_come_out_of_a_released_generator(tmp_path: Path) -> None:
    spec = study().model_copy(update={"lead_key_sha256": key_of_lead()})
    released = Released.open(package(tmp_path / "model", spec))

    rows = released.rows(200, source=Csprng())

    assert {row["pain"] for row in rows} == {"1", "2", "3"}
    assert all(20.0 <= float(row["age"]) <= 100.0 for row in rows)
    assert len({row["age"] for row in rows}) > 100
    assert released.statement(rows=200)["privacy"]["unit"] == "one patient of one site"


def key_of_lead() -> str:
    from fedward_common.trust.signing import key_sha256

    return key_sha256(KEY.public_hex)


def test_a_study_file_leaves_the_categories_out_and_signing_fills_them_in() -> None:
    text = GENERATION.replace(
        'name = "marker"\ntype = "number"\nunit = "1"\nlow = -1.0\nhigh = 1.0',
        'name = "sex"\ntype = "category"\nvalues = ["f", "m"]',
    )
    text = STUDY + text + "".join(f'\n[[sites]]\nid = "{one}"\npatients = 30\n' for one in SITES)

    spec = parse_study(
        text,
        source="study.toml",
        keys=site_keys(SITES),
        lead_key_sha256=LEAD,
        resolve=lambda _study, _unknown: 3.0,
    )

    assert spec.model.categories == ((1, 2),)
    assert spec.model.sampled == 4
    assert {tensor.name.partition(".")[0] for tensor in spec.model.tensors} == {
        "generator",
        "discriminator",
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "mlp", "hidden": [8]}},
        {"model": MODEL | {"categories": []}},
        {"model": MODEL | {"categories": [[0, 2]]}},
        {"task": {"kind": "autoencoder"}},
        {"data": make_data()},
        {"aggregation": {"name": "scaffold"}},
        {"releases": [{"kind": "binned-scores", "bins": 4, "noise_multiplier": 3.0}]},
        {"releases": [{"kind": "error-scores", "bins": 4, "noise_multiplier": 3.0}]},
    ],
    ids=["model", "no categories", "other categories", "task", "a label", "scaffold", "s", "e"],
)
def test_a_generator_s_study_that_does_not_fit_together_is_refused(
    changes: dict[str, Any],
) -> None:
    with pytest.raises(ConfigError):
        check_task(StudySpec.model_validate(study().model_dump(mode="json") | changes))
