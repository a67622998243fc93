"""Figures of classes and structures: exact against scikit-learn, private by simulation."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from fedward_common.ids import SiteId
from fedward_common.models.registry import initial_tensors
from fedward_common.models.whole_images import overlaps
from fedward_common.study.evaluation import ClassScores, OverlapScores, evaluation_of
from fedward_common.study.image_encoding import encode_images, npz_rows
from fedward_common.study.imaging import ImageMasks
from fedward_server.private_measures import private_measures
from fedward_server.sandbox.figures import model_figures
from fedward_server.sandbox.measures import bootstrap_weights, class_measures, intervals
from tests.support.image_studies import classes_study, masks_npz, masks_study


def test_figures_of_a_class_are_scikit_learn_s_and_lie_in_their_intervals() -> None:
    generator = np.random.default_rng(1)
    patient = np.repeat(np.arange(120), generator.integers(1, 4, 120))
    positive = generator.random(120)[patient] < 0.4
    scores = np.round(np.clip(0.3 * positive + 0.7 * generator.random(len(patient)), 0, 1), 2)
    weights = bootstrap_weights(patient)
    plain = 1.0 / np.bincount(patient)[patient]

    found = class_measures(scores, positive, weights)

    expected = roc_auc_score(positive, scores, sample_weight=plain)
    assert found["auc"][0] == pytest.approx(expected)
    assert found["f1"][0] == pytest.approx(f1_score(positive, scores > 0.5, sample_weight=plain))
    for name, (low, high) in intervals(found).items():
        assert low <= found[name][0] <= high or name == "calibration_error"
    assert 0.02 < np.diff(intervals(found)["auc"])[0] < 0.3


def test_a_class_of_nine_patients_has_no_figures() -> None:
    positive = np.arange(40) < 9

    assert class_measures(np.linspace(0, 1, 40), positive, np.ones((1, 40))) == {}


def test_overlap_of_shifted_cubes_by_hand_and_of_absent_structures() -> None:
    expected = np.zeros((16, 16, 16), np.int64)
    expected[4:10, 4:10, 4:10] = 1
    found = np.roll(expected, 2, axis=0)

    one, absent = overlaps(found, expected, structures=2, spacing_mm=(3.0, 1.0, 1.0))

    assert one.dice == pytest.approx(4 / 6)
    assert one.iou == pytest.approx(0.5)
    assert one.distance_mm == pytest.approx(6.0)
    assert (absent.dice, absent.distance_mm) == (1.0, 0.0)
    assert overlaps(found * 0, expected, structures=1, spacing_mm=(1.0, 1.0, 1.0))[0].dice == 0.0


def test_private_figures_of_classes_find_what_is_there() -> None:
    """Each true figure is in the interval in most of 8 draws of the noise."""
    study = classes_study()
    release = evaluation_of(study)
    assert isinstance(release, ClassScores)
    generator = np.random.default_rng(4)
    counts = np.zeros((release.rows, release.bins))
    for label in np.repeat(np.arange(3), 200):
        logits = generator.normal(size=3) + 2.0 * (np.arange(3) == label)
        chances = np.exp(logits) / np.exp(logits).sum()
        for k in range(3):
            place = min(int(chances[k] * release.bins), release.bins - 1)
            counts[2 * k + int(k == label), place] += 1
        counts[6 + label, chances.argmax()] += 1
    accuracy = np.trace(counts[6:, :3]) / 600
    within = 0

    for _ in range(8):
        noised = counts + release.noise_std * generator.normal(size=counts.shape)
        found = private_measures(study, release, noised, noise=release.noise_std)
        within += found["accuracy"].low <= accuracy <= found["accuracy"].high
        assert {"auc", "auc: none", "sensitivity: both"} <= found.keys()
        assert 0.9 < found["auc"].value < 0.99

    assert within >= 5


def test_private_overlap_is_the_mean_of_the_bins() -> None:
    study = masks_study()
    release = evaluation_of(study)
    assert isinstance(release, OverlapScores)
    counts = np.zeros((release.rows, release.bins))
    counts[0, -3:] = 40.0
    counts[1, 0] = 120.0

    found = private_measures(study, release, counts, noise=1.0)

    middle = (release.bins - 1.5) / release.bins
    assert found["dice: core"].value == pytest.approx(middle)
    assert found["dice"].low < middle < found["dice"].high
    assert found["hausdorff95_mm: core"].value < release.longest_mm / release.bins
    assert private_measures(study, release, counts / 40, noise=1.0) == {}


def test_masks_are_judged_on_whole_volumes_with_intervals(tmp_path: Path) -> None:
    """Whatever the model: no AUC, a Dice for each structure and their mean, in its interval."""
    study = masks_study()
    assert isinstance(study.data, ImageMasks)
    people = [f"p{number}" for number in range(6)]
    rows = npz_rows(masks_npz(tmp_path / "a.npz", patients=people, splits=["test"] * 6), study.data)
    test = encode_images(study.data, rows, part="test", strict=True)[0]
    model = initial_tensors(study.model, study.data.input_size)

    found = model_figures(study, model, {SiteId("a"): test}, draws=50).pooled

    assert (found.auc, found.accuracy, found.held_out) == (None, None, 6)
    assert found.more["dice"] == found.more["dice: core"]
    assert found.intervals["dice"][0] <= found.more["dice"] <= found.intervals["dice"][1]
