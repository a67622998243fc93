"""A generator of small grey images: scikit-learn's digits of 8 x 8 pixels, 297 of them held out."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from fedward_client.data.site import SiteSource
from fedward_client.settings import load_site_settings
from fedward_client.synthetic_check import check_synthetic
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.arrays import Tensors
from fedward_common.errors import ConfigError, DataError
from fedward_common.ids import SiteId
from fedward_common.models.gan import Gan
from fedward_common.models.registry import build_model, initial_tensors, load_tensors
from fedward_common.privacy.randomness import Csprng
from fedward_common.study.spec import StudySpec
from fedward_common.study.tasks import check_task
from fedward_common.trust.signing import key_sha256
from fedward_server.sandbox import baselines, made_up_rows
from fedward_server.sandbox.figures import model_figures
from fedward_server.synthesize import IMAGES, Released, synthesize
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
