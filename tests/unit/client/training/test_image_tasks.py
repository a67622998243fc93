"""Classes, labels and masks: from a site's file to a protected update and counts."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedward_client.data.images import ImageSource
from fedward_client.held_out import HeldOut
from fedward_client.settings import ImageFiles
from fedward_client.tasks.registry import task_of
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.errors import ConfigError, DataError, ModelRefused
from fedward_common.ids import SiteId
from fedward_common.models.registry import build_model, initial_tensors
from fedward_common.privacy.randomness import Csprng
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.imaging import ImageMasks
from fedward_common.study.spec import ModelSpec, StudySpec
from tests.support.image_studies import SIDE, classes_study, masks_npz, masks_study, npz
from tests.support.studies import SITES

BINARY = {"kind": "binned-scores", "bins": 4, "noise_multiplier": 2.0}
PEOPLE = [f"p{number // 2}" for number in range(24)]
SPLITS = ["train" if number < 12 else "test" for number in range(24)]
CODES = ["none", "none", "one", "one", "both", "both"] * 4


def source(path: Path) -> ImageSource:
    return ImageSource([ImageFiles(path=path, patient_key="patient_id", no_patient_key=False)])


def classes_set(folder: Path) -> Path:
    return npz(
        folder / "a.npz",
        patients=PEOPLE,
        labels=[0] * 24,
        splits=SPLITS,
        found=np.array(CODES),
        left=np.array([code in ("one", "both") for code in CODES]).astype(int),
        right=np.array([code == "both" for code in CODES]).astype(int),
    )


def trained(study: StudySpec, records: PatientRecords) -> dict[str, np.ndarray]:
    trainer = LocalTrainer(
        study,
        SiteId(SITES[0]),
        sampling=Csprng(),
        noise=Csprng(),
        flags=PerformanceFlags(),
    )
    start = initial_tensors(study.model, task_of(study).inputs)
    return trainer.train(start, records).tensors


@pytest.mark.parametrize("several", [False, True])
def test_classes_and_labels_train_and_every_patient_is_counted_in_each(
    several: bool, tmp_path: Path
) -> None:
    study = classes_study(several=several, rounds=1, local_steps=1)
    path = classes_set(tmp_path)

    train = source(path).checked_records(study, part="train")
    weights = trained(study, train)
    held_out = source(path).checked_records(study, part="test")
    counts = HeldOut(study=study, weights=weights, records=held_out).counts()

    assert train.labels.tolist() == ([0, 0, 1, 1, 3, 3] if several else [0, 0, 1, 1, 2, 2]) * 2
    classes = 2 if several else 3
    assert counts.shape == (2 * classes if several else 3 * classes, 6)
    pairs = counts[: 2 * classes].reshape(classes, -1).sum(axis=1)
    np.testing.assert_allclose(pairs, held_out.patients)
    if several:
        np.testing.assert_allclose(counts[1].sum(), 4)  # left: one and both, two patients each
    else:
        np.testing.assert_allclose(counts[6:].sum(axis=1), 2)


def test_one_patient_less_moves_the_counts_by_the_release_s_sensitivity(tmp_path: Path) -> None:
    study = classes_study(rounds=1, local_steps=1)
    weights = initial_tensors(study.model, SIDE * SIDE)
    everyone = source(classes_set(tmp_path)).checked_records(study, part="test")
    rest = everyone.patient > 0
    fewer = PatientRecords(
        features=everyone.features[rest],
        labels=everyone.labels[rest],
        patient=everyone.patient[rest] - 1,
    )

    counts, less = (
        HeldOut(study=study, weights=weights, records=one).counts() for one in (everyone, fewer)
    )

    assert np.linalg.norm(counts - less) <= study.releases[0].sensitivity + 1e-12  # type: ignore[attr-defined]
    units = HeldOut(study=study, weights=weights, records=everyone).units(scale=1024.0)
    np.testing.assert_allclose(units / 1024.0, counts, atol=1e-3)


def test_the_losses_are_torch_s_with_the_study_s_weights() -> None:
    outputs = torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, -1.0]])
    weighted = {"kind": "image-classification", "class_weights": [1.0, 2.0, 5.0]}
    one = task_of(classes_study(task=weighted)).losses(outputs, torch.tensor([2.0, 0.0]))
    weighted["class_weights"] = [3.0, 1.0]
    several = task_of(classes_study(several=True, task=weighted))
    both = several.losses(outputs[:, :2], torch.tensor([3.0, 1.0]))

    plain = functional.cross_entropy(outputs, torch.tensor([2, 0]), reduction="none")
    torch.testing.assert_close(one, plain * torch.tensor([5.0, 1.0]))
    bits = functional.binary_cross_entropy_with_logits(
        outputs[:, :2],
        torch.tensor([[1.0, 1.0], [1.0, 0.0]]),
        pos_weight=torch.tensor([3.0, 1.0]),
        reduction="none",
    )
    torch.testing.assert_close(both, bits.mean(dim=1))
    with pytest.raises(ModelRefused, match="one logit for each class"):
        several.losses(outputs, torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121"])
@pytest.mark.parametrize("solid", [False, True])
def test_monai_s_networks_take_flat_and_solid_images_without_mixing_records(
    name: str, solid: bool
) -> None:
    side = 32 if name == "densenet121" else 8
    shape = (1, side, side, side) if solid else (1, side, side)
    spec = ModelSpec(name=name, shape=shape, outputs=3)

    model = build_model(spec, math.prod(shape))

    layers = list(model.modules())
    assert not any("BatchNorm" in type(layer).__name__ for layer in layers)
    assert not any(getattr(layer, "inplace", False) for layer in layers)
    assert model(torch.zeros(1, math.prod(shape))).shape == (1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121"])
def test_monai_s_networks_train_on_volumes_and_keep_patients_apart(name: str) -> None:
    """The model check refuses what is in place; the gradients are autograd's."""
    side = 32 if name == "densenet121" else 8
    data = classes_study().data.model_dump(mode="json")
    study = classes_study(
        model={"name": name, "shape": [1, side, side, side], "outputs": 3},
        data={**data, "height": side, "width": side, "depth": side},
        rounds=1,
        local_steps=1,
    )
    records = PatientRecords(
        features=np.zeros((1, task_of(study).inputs), np.float32),
        labels=np.zeros(1, np.float32),
        patient=np.zeros(1, np.int64),
    )

    weights = trained(study, records)

    assert all(np.isfinite(tensor).all() for tensor in weights.values())


def test_a_patient_s_patches_are_one_patient_and_held_out_images_stay_whole(
    tmp_path: Path,
) -> None:
    study = masks_study(rounds=1, local_steps=1)
    data = study.data
    assert isinstance(data, ImageMasks)
    people, splits = ["a", "a", "b", "c", "d"], ["train", "train", "train", "train", "test"]
    path = masks_npz(tmp_path / "a.npz", patients=people, splits=splits)

    train = source(path).checked_records(study, part="train")
    held_out = source(path).checked_records(study, part="test")
    weights = trained(study, train)
    counts = HeldOut(study=study, weights=weights, records=held_out).counts()

    assert data.starts == ((0, 8),) * 3
    assert (train.patients, len(train.labels)) == (3, 4 * 8)
    assert train.labels.shape == train.features.shape == (32, 512)
    assert held_out.features.shape == (1, 4096)
    assert train.labels[:8].sum() == train.labels[8:16].sum() == 216
    np.testing.assert_allclose(counts.sum(axis=1), [1, 1])


def test_a_mask_with_an_unknown_structure_is_one_absence(tmp_path: Path) -> None:
    study = masks_study()
    path = masks_npz(tmp_path / "a.npz", patients=["a", "b"], splits=["train", "train"])
    arrays = dict(np.load(path))
    arrays["masks"][0, 0, 0, 0] = 9
    np.savez(path, **arrays)

    assert source(path).records(study, part="train").patients == 1
    with pytest.raises(DataError, match="whole numbers up to 1"):
        source(path).checked_records(study, part="train")


def test_a_release_of_another_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="class-scores of 3 classes"):
        task_of(classes_study(releases=[BINARY]))
    with pytest.raises(ConfigError, match="class_weights"):
        task_of(classes_study(task={"kind": "image-classification", "class_weights": [1.0, 2.0]}))
    with pytest.raises(ConfigError, match="outputs"):
        task_of(masks_study(model={"name": "unet", "shape": [1, 8, 8, 8], "hidden": [4, 8]}))
