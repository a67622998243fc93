"""A generator of small grey images: scikit-learn's digits of 8 x 8 pixels, 297 of them held out."""

import csv
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.datasets import load_digits

from fedward_client.data.site import SiteSource
from fedward_client.settings import load_site_settings
from fedward_client.synthetic_check import check_synthetic
from fedward_client.tasks.registry import task_of
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.arrays import Tensors
from fedward_common.errors import ConfigError, DataError, ModelRefused
from fedward_common.ids import SiteId
from fedward_common.models.gan import Gan
from fedward_common.models.registry import build_model, initial_tensors, load_tensors
from fedward_common.privacy.randomness import Csprng
from fedward_common.study.spec import StudySpec
from fedward_common.study.tasks import check_task
from fedward_common.trust.signing import key_sha256
from fedward_server.sandbox import baselines, made_up_rows
from fedward_server.sandbox.figures import model_figures
from fedward_server.synthesize import IMAGES, LABELS, Released, synthesize
from tests.support.guard_site import make_site
from tests.support.image_studies import image_study
from tests.support.studies import make_dp
from tests.unit.server.test_synthesize import KEY, package

NORTH = SiteId("north")
DATA = {
    "kind": "image",
    "height": 8,
    "width": 8,
    "patient_key": "patient_id",
    "label": {"column": "label", "low": 0, "high": 9, "positive_from": 5},
    "split": {"kind": "column", "column": "split"},
}


def study(**changes: Any) -> StudySpec:
    settings: dict[str, Any] = {
        "task": {"kind": "generation", "generator_rate": 0.001},
        "model": {"name": "gan", "hidden": [64], "shape": [8], "initial_seed": 1},
        "data": DATA,
        "releases": [],
        "rounds": 1,
        "local_steps": 2,
        "dp": make_dp(steps=2),
    }
    return image_study(**(settings | changes))


def led() -> StudySpec:
    """The study, by the lead who signs its package."""
    return study().model_copy(update={"lead_key_sha256": key_sha256(KEY.public_hex)})


def classed(shares: tuple[float, ...] = (0.25, 0.75), **changes: Any) -> StudySpec:
    """The study, whose images are of a class each: digits under 5, and the others."""
    task = {"kind": "generation", "generator_rate": 0.005, "class_shares": shares}
    model = {"name": "gan", "hidden": [32], "shape": [8], "outputs": 2, "initial_seed": 1}
    spec = study(**({"task": task, "model": model} | changes))
    return spec.model_copy(update={"lead_key_sha256": key_sha256(KEY.public_hex)})


@cache
def digits() -> Any:
    return load_digits()


@pytest.fixture
def source(tmp_path: Path) -> SiteSource:
    """A hospital whose patients have a digit each."""
    found = digits()
    count = len(found.target)
    np.savez(
        tmp_path / "digits.npz",
        images=np.rint(found.images * 255 / 16).astype(np.uint8),
        label=found.target,
        split=np.array(["train" if n < 1500 else "test" for n in range(count)]),
        patient_id=np.array([f"p{n}" for n in range(count)]),
    )
    entry = {"kind": "images", "path": str(tmp_path / "digits.npz"), "patient_key": "patient_id"}
    site = make_site(tmp_path / "site", top={"data": [entry]})
    return SiteSource(load_site_settings(site.folder / "site.toml"))


def test_a_hospital_trains_the_discriminator_on_its_images(source: SiteSource) -> None:
    spec = study()
    check_task(spec)
    before = initial_tensors(spec.model, 64)
    trainer = LocalTrainer(spec, NORTH, sampling=Csprng(), noise=Csprng(), flags=PerformanceFlags())

    after = trainer.train(before, source.records(spec, part="train")).tensors

    assert all(
        np.array_equal(before[name], after[name]) == name.startswith("generator.")
        for name in before
    )


def test_without_noise_generated_digits_are_harder_to_tell_from_real_ones_than_at_first(
    source: SiteSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made_up_rows, "MOST_PRODUCTS", 1)  # 2,080 products are slow
    monkeypatch.setattr(made_up_rows, "STEPS", 800)
    spec = study()
    held_out = {NORTH: source.records(spec, part="test")}

    weights = baselines.fit(spec, source.records(spec, part="train"))

    start = initial_tensors(spec.model, 64)
    told = [
        model_figures(spec, tensors, held_out).pooled.more["told_apart"]
        for tensors in (start, weights)
    ]
    alike = [likeness(spec, tensors) for tensors in (start, weights)]
    assert told[0] > 0.99 > told[1]
    assert alike[0] < 0.5 < 0.8 < alike[1]


def likeness(spec: StudySpec, tensors: Tensors) -> float:
    """The correlation of the mean generated image and the mean digit, pixel by pixel."""
    net = build_model(spec.model, 64)
    assert isinstance(net, Gan)
    load_tensors(net, tensors)
    numbers = torch.Generator().manual_seed(5)
    with torch.inference_mode():
        made = net.generate(torch.randn((500, net.latent), generator=numbers)).numpy()
    return float(np.corrcoef(made.mean(axis=0), digits().images.reshape(-1, 64).mean(axis=0))[0, 1])


def test_images_come_out_of_a_released_generator_and_a_hospital_checks_them(
    source: SiteSource, tmp_path: Path
) -> None:
    spec = led()
    folder = package(tmp_path / "model", spec)
    parts = {name: source.records(spec, part=part) for name, part in
             (("training", "train"), ("held_out", "test"))}  # fmt: skip

    statement = synthesize(folder, rows=40, out=tmp_path / "out", public_key=KEY.public_hex)

    images = np.load(tmp_path / "out" / IMAGES)["images"]
    assert (images.shape, images.dtype) == ((40, 8, 8), np.uint8)
    assert statement["shape"] == [8, 8]
    assert len({image.tobytes() for image in images}) == 40
    assert not check_synthetic(spec, tmp_path / "out" / IMAGES, least=10, **parts).suspect
    copied = np.rint((parts["training"].features[:200].reshape(-1, 8, 8) + 1.0) * 127.5)
    np.savez(tmp_path / "copied.npz", images=copied.astype(np.uint8))
    assert check_synthetic(spec, tmp_path / "copied.npz", least=10, **parts).suspect
    np.savez(tmp_path / "other.npz", images=images[:, :4])
    with pytest.raises(DataError, match="8 x 8"):
        check_synthetic(spec, tmp_path / "other.npz", least=10, **parts)


def test_rows_do_not_come_from_a_generator_of_images(tmp_path: Path) -> None:
    released = Released.open(package(tmp_path / "model", led()))

    with pytest.raises(ConfigError, match="table"):
        released.rows(3, source=Csprng())


@pytest.mark.parametrize("change", [{"depth": 4}, {"channels": 3}])
def test_volumes_and_colour_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="grey"):
        check_task(study(data=DATA | change))


@pytest.mark.parametrize("backend", ["loop", "bookkeeping", "opacus"])
def test_a_hospital_trains_the_discriminator_of_each_class(
    source: SiteSource, backend: Any
) -> None:
    spec = classed()
    check_task(spec)
    before = initial_tensors(spec.model, 64)
    flags = PerformanceFlags(backend=backend)
    trainer = LocalTrainer(spec, NORTH, sampling=Csprng(), noise=Csprng(), flags=flags)

    after = trainer.train(before, source.records(spec, part="train")).tensors

    assert all(
        np.array_equal(before[name], after[name]) == name.startswith("generator.")
        for name in before
    )


def test_a_record_counts_as_one_of_its_own_class_and_of_no_other() -> None:
    spec = classed()
    net, task = build_model(spec.model, 64), task_of(spec)
    features = torch.randn((6, 64 + 8), generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    assert isinstance(net, Gan)

    logits = net(features)
    losses = task.losses(logits, labels)

    made = net.generate(features[:, 64:], labels)
    softplus = torch.nn.functional.softplus
    expected = 0.5 * (
        softplus(-net.judged(features[:, :64], labels)) + softplus(net.judged(made, labels))
    )
    assert logits.shape == (6, 2, 2)
    assert torch.allclose(losses, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ModelRefused, match="class"):
        net.generate(features[:, 64:])


def test_without_noise_what_is_learned_on_synthetic_digits_holds_of_real_ones(
    source: SiteSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made_up_rows, "MOST_PRODUCTS", 1)
    monkeypatch.setattr(made_up_rows, "STEPS", 500)
    spec = classed((0.5, 0.5))
    held_out = {NORTH: source.records(spec, part="test")}

    weights = baselines.fit(spec, source.records(spec, part="train"))

    aucs = [
        model_figures(spec, tensors, held_out).pooled.more["synthetic_trained_auc"]
        for tensors in (initial_tensors(spec.model, 64), weights)
    ]
    assert aucs[1] > 0.7 > aucs[0]


def test_labelled_images_come_out_with_their_classes_and_a_hospital_checks_them(
    source: SiteSource, tmp_path: Path
) -> None:
    spec, out = classed(), tmp_path / "out"
    folder = package(tmp_path / "model", spec)
    parts = {name: source.records(spec, part=part) for name, part in
             (("training", "train"), ("held_out", "test"))}  # fmt: skip

    statement = synthesize(folder, rows=400, out=out, public_key=KEY.public_hex)

    arrays = np.load(out / IMAGES)
    with (out / LABELS).open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(row["class"]) for row in table] == arrays["labels"].tolist()
    assert 0.6 < arrays["labels"].mean() < 0.9
    assert {row["name"] for row in table} == {"label < 5", "label >= 5"}
    assert statement["classes"] == ["label < 5", "label >= 5"]
    assert statement["class_shares"] == [0.25, 0.75]
    assert statement["privacy"]["epsilon_admission"] > 0
    # Whose neighbour the alike images of an untrained generator are is chance: only rows are sure.
    found = check_synthetic(spec, out / IMAGES, least=10, **parts)
    assert (found.rows, found.same_training) == (400, 0.0)
    copied = np.rint((parts["training"].features[:200].reshape(-1, 8, 8) + 1.0) * 127.5)
    # With the labels turned around: a copy under another label is a copy.
    labels = 1 - parts["training"].labels[:200].astype(np.int64)
    np.savez(tmp_path / "copied.npz", images=copied.astype(np.uint8), labels=labels)
    assert check_synthetic(spec, tmp_path / "copied.npz", least=10, **parts).suspect
    np.savez(tmp_path / "bare.npz", images=arrays["images"])
    with pytest.raises(DataError, match="labels"):
        check_synthetic(spec, tmp_path / "bare.npz", least=10, **parts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": {"kind": "generation", "class_shares": (0.2, 0.3, 0.5)}}, "one for each class"),
        ({"data": DATA | {"label": {"labels": ["left", "right"]}}}, "one class for each"),
        ({"model": {"name": "gan", "hidden": [32], "shape": [8]}}, "outputs"),
    ],
)
def test_shares_that_do_not_fit_the_label_are_refused(change: dict[str, Any], words: str) -> None:
    spec = classed(**change)
    if "task" in change:
        spec = spec.model_copy(
            update={"model": spec.model.model_copy(update={"outputs": len(spec.task.class_shares)})}  # type: ignore[attr-defined]
        )

    with pytest.raises(ConfigError, match=words):
        check_task(spec)


def test_shares_of_more_than_a_whole_are_refused() -> None:
    with pytest.raises(ValidationError, match="sum to 1"):
        classed((0.5, 0.6))
