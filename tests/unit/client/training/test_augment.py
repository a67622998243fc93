"""Images changed in ways that keep their label: what moves, what does not, and nobody else's."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedward_client.training.patient_dp.augment import augmented
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.errors import ConfigError
from fedward_common.ids import SiteId
from fedward_common.privacy.randomness import Csprng
from fedward_common.study.augmentation import Brightness, Contrast, Flip, Jitter, Turn, Zoom
from tests.support.image_studies import image_study
from tests.support.studies import make_spec

HEIGHT, WIDTH = 9, 13


class Drawn:
    """A source whose uniform draws are these, over and over."""

    def __init__(self, *draws: float) -> None:
        self._draws = draws

    def uniform(self, count: int) -> np.ndarray:
        return np.resize(np.array(self._draws), count)

    def normal(self, count: int) -> np.ndarray:
        raise AssertionError(count)


def pictures(records: int = 2, planes: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(records, planes, HEIGHT, WIDTH, generator=generator) * 1.2 - 0.6


def changed(features: torch.Tensor, ways: list[Any], *draws: float) -> torch.Tensor:
    flat = features.flatten(1)
    found = augmented(flat, image=(HEIGHT, WIDTH), ways=ways, sampling=Drawn(*draws))
    assert found.shape == flat.shape
    return found.view_as(features)


@pytest.mark.parametrize(("axis", "side"), [("left-right", 3), ("up-down", 2)])
@pytest.mark.parametrize("planes", [1, 3])
def test_a_flip_is_an_image_turned_over_in_every_channel(axis: Any, side: int, planes: int) -> None:
    images, way = pictures(planes=planes), Flip(axis=axis)

    torch.testing.assert_close(changed(images, [way], 0.2), images.flip(side), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(changed(images, [way], 0.7), images, atol=1e-5, rtol=0.0)


def test_two_flips_are_half_a_turn() -> None:
    images = pictures()
    flips = [Flip(axis="left-right"), Flip(axis="up-down")]

    turned = changed(images, [Turn(degrees=180.0)], 1.0)

    torch.testing.assert_close(turned, images.flip(2).flip(3), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(changed(images, flips, 0.0), turned, atol=1e-4, rtol=0.0)


def test_a_turn_is_one_of_pixels_also_where_the_sides_differ() -> None:
    """As scipy turns a smooth image about its middle, away from the edges."""
    ndimage = pytest.importorskip("scipy.ndimage")
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    smooth = np.sin(rows / 4.0) * np.cos(columns / 5.0) * 0.8
    images = torch.from_numpy(smooth).float()[None, None]

    ours = changed(images, [Turn(degrees=20.0)], 1.0)[0, 0].numpy()
    theirs = ndimage.rotate(smooth, 20.0, reshape=False, order=1, mode="nearest")
    other = ndimage.rotate(smooth, -20.0, reshape=False, order=1, mode="nearest")

    inside = (slice(3, -3), slice(4, -4))
    gaps = [np.abs(ours - one)[inside].max() for one in (theirs, other)]
    assert min(gaps) < 0.02
    assert max(gaps) > 0.05


def test_a_zoom_makes_the_middle_larger() -> None:
    image = torch.full((1, 1, HEIGHT, WIDTH), -1.0)
    image[:, :, 3:6, 5:8] = 1.0

    larger, smaller = (changed(image, [Zoom(factor=0.5)], draw) for draw in (1.0, 0.0))

    assert larger.mean() > image.mean() > smaller.mean()
    assert larger[0, 0, 4, 6] == 1.0


def test_contrast_and_brightness_stay_in_range_and_are_their_formulas() -> None:
    images = pictures()

    torch.testing.assert_close(changed(images, [Contrast(factor=0.5)], 1.0), images * 1.5)
    torch.testing.assert_close(changed(images, [Contrast(factor=0.5)], 0.5), images)
    torch.testing.assert_close(
        changed(images, [Brightness(by=1.0)], 1.0), (images + 1.0).clamp(-1.0, 1.0)
    )


WAYS = (
    Flip(axis="left-right"),
    Turn(degrees=30.0),
    Zoom(factor=0.2),
    Contrast(factor=0.3),
    Brightness(by=0.1),
)


def test_one_image_s_change_does_not_depend_on_the_others() -> None:
    images, other = pictures(3), pictures(3)
    other[1:] = 0.9
    draws = [0.1, 0.6, 0.3, 0.8, 0.2, 0.9]

    one = changed(images, list(WAYS), *draws)
    two = changed(other, list(WAYS), *draws)

    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[1], two[1])
    assert augmented(images[:0].flatten(1), image=(9, 13), ways=WAYS, sampling=Drawn()).numel() == 0


def jitter(*kinds: dict[str, Any]) -> dict[str, Any]:
    return {"learning_rate": 0.5, "jitter": {"copies": 2, "scale": 0.0, "augment": list(kinds)}}


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (
            lambda: make_spec(training=jitter({"kind": "contrast", "factor": 0.1})),
            "expected images",
        ),
        (
            lambda: image_study(
                data={"depth": 8, "height": 8, "width": 8},
                model={"name": "cnn", "shape": [1, 8, 8, 8], "hidden": [4]},
                training=jitter({"kind": "turn", "degrees": 5.0}),
            ),
            "expected flat images",
        ),
    ],
    ids=["a table", "a volume"],
)
def test_what_moves_is_for_flat_images(study: Any, message: str) -> None:
    found = study()

    with pytest.raises(ConfigError, match=message):
        LocalTrainer(
            found,
            SiteId(found.sites[0].id),
            sampling=Csprng(),
            noise=Csprng(),
            flags=PerformanceFlags(),
        )


def test_a_list_of_ways_is_part_of_the_study_and_absent_from_others() -> None:
    study = image_study(training=jitter({"kind": "flip", "axis": "up-down"}))

    assert study.training.jitter is not None
    assert study.training.jitter.augment == (Flip(axis="up-down"),)
    assert "augment" not in Jitter(copies=2, scale=0.1).model_dump(mode="json")
    with pytest.raises(ValidationError, match="found equal copies"):
        Jitter(copies=2, scale=0.0)
