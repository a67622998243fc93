"""Clinical figures from noised counts, beside scikit-learn's from the patients themselves."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from fedward_common.ids import SiteId
from fedward_common.study.grouped_scores import GroupedScores, Grouping
from fedward_server.clinical_figures import clinical_figures, value_figures
from fedward_server.report.page import render_report
from tests.support.results import sample_result

BINS, NOISE = 20, 3.0
RELEASE = GroupedScores(
    bins=BINS,
    noise_multiplier=NOISE,
    groupings=(Grouping(by="sex", values=("female", "male")),),
    threshold=0.4,
)


def patients(
    seed: int, count: int, *, gap: float = 2.0, positive: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """Classes and scores whose logits are normal within each class, and well calibrated."""
    draws = np.random.default_rng(seed)
    labels = (draws.random(count) < positive).astype(float)
    # Equal spreads of sqrt(gap) and this middle make the slope 1 and the intercept 0.
    middle = np.log(positive / (1 - positive))
    logits = draws.normal(middle + gap * (labels - 0.5), np.sqrt(gap))
    return labels, 1 / (1 + np.exp(-logits))


def counted(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    place = np.minimum((scores * BINS).astype(int), BINS - 1)
    counts = np.zeros((2, BINS))
    np.add.at(counts, (labels.astype(int), place), 1.0)
    return counts


def noised(counts: np.ndarray, seed: int, std: float = NOISE) -> np.ndarray:
    return counts + np.random.default_rng(seed).normal(0, std, counts.shape)


def made(female: tuple[np.ndarray, np.ndarray], male: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    groups = [counted(*female), counted(*male)]
    return np.concatenate([sum(groups), *groups])


@pytest.fixture(scope="module")
def found():
    female, male = patients(1, 2500), patients(2, 1500, gap=0.8)
    everybody = tuple(np.concatenate(pair) for pair in zip(female, male, strict=True))
    figures = clinical_figures(RELEASE, noised(made(female, male), 3), noise=NOISE, sites={})
    return figures, everybody, female, male


def exact(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    logits = np.log(scores / (1 - scores)).clip(-12, 12)
    fit = LogisticRegression(C=1e6, max_iter=1000).fit(logits[:, None], labels)
    return {
        "patients": len(labels),
        "share_positive": labels.mean(),
        "auc": roc_auc_score(labels, scores),
        "average_precision": average_precision_score(labels, scores),
        "sensitivity": (scores[labels == 1] > 0.4).mean(),
        "specificity": (scores[labels == 0] <= 0.4).mean(),
        "calibration_slope": fit.coef_[0, 0],
        "calibration_intercept": fit.intercept_[0],
        "brier": brier_score_loss(labels, scores),
    }


def test_the_figures_of_everybody_are_those_of_the_patients_themselves(found) -> None:
    figures, everybody, _, _ = found
    for name, value in exact(*everybody).items():
        shown, low, high = figures.everybody.figures[name]
        tolerance = {"patients": 60.0, "calibration_slope": 0.1, "calibration_intercept": 0.15}
        assert shown == pytest.approx(value, abs=tolerance.get(name, 0.03)), name
        assert low <= shown <= high


def test_groups_and_their_differences_are_fairlearns(found) -> None:
    figures, _, female, male = found
    own = [exact(*female), exact(*male)]
    shown = {row.group: row.figures for row in figures.groups}
    for group, wanted in zip(("female", "male"), own, strict=True):
        assert shown[group]["auc"][0] == pytest.approx(wanted["auc"], abs=0.04)
        assert shown[group]["sensitivity"][0] == pytest.approx(wanted["sensitivity"], abs=0.05)
    gaps = {name: value for _, name, value, _, _ in figures.fairness}
    yes = [(scores > 0.4).mean() for _, scores in (female, male)]
    hit = abs(own[0]["sensitivity"] - own[1]["sensitivity"])
    false = abs(own[0]["specificity"] - own[1]["specificity"])
    assert gaps["demographic parity"] == pytest.approx(abs(yes[0] - yes[1]), abs=0.04)
    assert gaps["equal opportunity"] == pytest.approx(hit, abs=0.06)
    assert gaps["equalized odds"] == pytest.approx(max(hit, false), abs=0.06)


def test_the_curves_are_the_textbook_ones(found) -> None:
    figures, (labels, scores), _, _ = found
    for chance, observed, low, high in figures.calibration:
        near = np.abs(scores - chance) < 0.05
        assert observed == pytest.approx(labels[near].mean(), abs=0.08)
        assert low <= observed <= high
    for threshold, benefit, _, _, everybody in figures.decision[:14]:
        odds = threshold / (1 - threshold)
        above = scores > threshold
        wanted = (labels[above].sum() - (1 - labels[above]).sum() * odds) / len(labels)
        assert benefit == pytest.approx(wanted, abs=0.02)
        assert everybody == pytest.approx(labels.mean() - (1 - labels.mean()) * odds, abs=0.05)


def test_a_group_with_few_patients_of_a_class_is_withheld() -> None:
    female, male = patients(4, 800), patients(5, 24)

    figures = clinical_figures(RELEASE, noised(made(female, male), 6), noise=NOISE, sites={})

    shown = {row.group: row.figures for row in figures.groups}
    assert shown["female"] is not None
    assert shown["male"] is None
    assert not figures.fairness


@pytest.mark.slow
def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """AUC 0.921 = Phi(2 / sqrt(4)): in 40 draws of patients and noise, at least 33 hold it."""
    truth = roc_auc_score(*patients(99, 200_000))
    held = 0
    for seed in range(40):
        one = patients(seed, 400)
        table = noised(made(one, patients(seed + 500, 10)), seed + 1000)
        table[:2] = noised(counted(*one), seed + 2000)
        _, low, high = clinical_figures(RELEASE, table, noise=NOISE, sites={}).everybody.figures[
            "auc"
        ]
        held += low <= truth <= high

    assert held >= 33


def test_sites_are_a_group_where_their_counts_are_known_and_the_report_shows_all_of_it() -> None:
    female, male = patients(7, 900), patients(8, 900)
    one, other = (noised(made(*pair), n) for n, pair in enumerate(((female, male), (male, female))))
    sites = {SiteId("north"): one, SiteId("east"): other}

    figures = clinical_figures(RELEASE, one + other, noise=NOISE * 2**0.5, sites=sites)

    assert {(row.by, row.group) for row in figures.groups} >= {("site", "north"), ("site", "east")}
    page = render_report(sample_result(clinical=figures.as_json()))
    for words in ("Decision curve", "Calibration, from the noised bins", "equalized odds", "north"):
        assert words in page
    assert "For clinicians" not in render_report(sample_result())


def test_errors_of_a_regression_come_from_counts_in_the_label_s_unit() -> None:
    draws = np.random.default_rng(9)
    true = draws.uniform(10, 90, 3000)
    guess = np.clip(true + draws.normal(0, 8, 3000), 0, 99.9)
    counts = np.zeros((BINS, BINS))
    np.add.at(counts, ((true / 5).astype(int), (guess / 5).astype(int)), 1.0)

    found = value_figures(noised(counts, 10, 1.0), noise=1.0, low=0.0, high=100.0)

    assert found["rmse"][0] == pytest.approx(np.sqrt(np.mean((guess - true) ** 2)), abs=1.0)
    assert found["r2"][0] == pytest.approx(
        1 - np.mean((guess - true) ** 2) / np.var(true), abs=0.06
    )
    assert all(low <= value <= high for value, low, high in found.values())
    assert value_figures(counts * 0.002, noise=1.0, low=0.0, high=100.0) == {}
